"""Other names for our keys: the words of nanoGPT-like configs, of Lightning and of Hugging Face's Trainer.

A reader who brings a config in those words gets the run they meant. Two names of one key with different values are an
error, never a silent choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiny_transformer.errors import UserError

# other name -> our keys. A name without a dot is understood at the top of a file too.
ALIASES: dict[str, tuple[str, ...]] = {
    "model.d_model": ("model.hidden_size",),
    "model.n_embd": ("model.hidden_size",),
    "model.n_heads": ("model.num_attention_heads",),
    "model.n_head": ("model.num_attention_heads",),
    "model.n_kv_heads": ("model.num_key_value_heads",),
    "model.n_kv_groups": ("model.num_key_value_heads",),
    "model.n_layers": ("model.num_hidden_layers",),
    "model.n_layer": ("model.num_hidden_layers",),
    "model.d_ff": ("model.intermediate_size",),
    "model.max_seq_len": ("model.max_position_embeddings",),
    "model.block_size": ("model.max_position_embeddings", "data.seq_len"),
    "model.swa_window": ("model.sliding_window",),
    "model.dropout": ("training.dropout",),
    "model.dtype": ("training.precision",),
    "data.dataset": ("data.source",),
    "data.block_size": ("data.seq_len",),
    "training.seq_len": ("data.seq_len",),
    "training.batch_size": ("training.micro_batch_size",),
    "training.per_device_train_batch_size": ("training.micro_batch_size",),
    "training.gradient_accumulation_steps": ("training.grad_accum_steps",),
    "training.accumulate_grad_batches": ("training.grad_accum_steps",),
    "training.max_iters": ("training.steps",),
    "training.max_steps": ("training.steps",),
    "training.num_epochs": ("training.epochs",),
    "training.num_train_epochs": ("training.epochs",),
    "training.max_epochs": ("training.epochs",),
    "training.warmup_iters": ("training.warmup_steps",),
    "training.lr": ("training.learning_rate",),
    "training.max_grad_norm": ("training.grad_clip",),
    "training.gradient_clip_val": ("training.grad_clip",),
    "training.eval_interval": ("training.eval_steps",),
    "training.log_interval": ("training.log_steps",),
    "training.logging_steps": ("training.log_steps",),
    "training.save_interval": ("training.save_steps",),
    "training.save_total_limit": ("training.keep_checkpoints",),
    "training.out_dir": ("out_dir",),
    "training.output_dir": ("out_dir",),
    "hardware.accelerator": ("training.device",),
    "hardware.device": ("training.device",),
    "hardware.precision": ("training.precision",),
    "hardware.compile": ("training.compile",),
    "training.mixed_precision": ("training.precision",),
    "advanced.compile": ("training.compile",),
    "advanced.gradient_checkpointing": ("training.gradient_checkpointing",),
    "advanced.gradient_clip": ("training.grad_clip",),
    "advanced.grad_clip": ("training.grad_clip",),
    "advanced.lora_rank": ("lora.rank",),
    "advanced.lora_alpha": ("lora.alpha",),
    "advanced.lora_dropout": ("lora.dropout",),
    "advanced.quantize": ("training.quantize",),
}

# names of switches -> what they switch on; off, they say nothing
SWITCHES: dict[str, tuple[str, Any]] = {
    "training.bf16": ("training.precision", "bf16"),
    "training.fp16": ("training.precision", "fp16"),
    "advanced.use_lora": ("lora.enabled", True),
    "advanced.log_attention": ("training.log_attention", True),
    "advanced.speculative_sampling": ("training.sample_drafter", "auto"),
    "advanced.use_mqa": ("model.num_key_value_heads", 1),
    "advanced.multi_query": ("model.num_key_value_heads", 1),
    "advanced.multi_query_attention": ("model.num_key_value_heads", 1),
}


_KERNELS = "leave it out: PyTorch takes the quickest kernel that the device has"
# Switches of what is not built here, and what to do instead. Off they say nothing. What is built one day gets a line in
# ALIASES, which goes first.
UNBUILT: dict[str, str] = {
    "advanced.draft_model": "training.sample_drafter names a smaller model's run",
    "advanced.use_flash_attention": _KERNELS,
    "advanced.flash_attention": _KERNELS,
    "advanced.dropout_annealing": "training.final_dropout is the rate at the last step",
}
_OFF = (None, False, 0, "", "none", "None", "null", "off", "no", "false")

_HERE: dict[str, tuple[str, ...]] = {
    "here it is data.source": (
        *("path", "file", "input_file", "data_path", "train_file", "train_path", "text_file", "local_path"),
        "dataset_name",
    ),
    "here it is data.val_fraction": ("val_split", "validation_split", "val_size", "test_size", "valid_ratio"),
    "here data.val_fraction says which share is held back": ("train_split", "train_ratio"),
    "here it is data.text_field": ("text_column", "column"),
    "here it is data.tokenizer": ("tokenizer_name", "tokenizer_type", "tokenizer_path", "encoding", "level"),
    "here it is data.seq_len": ("max_length", "sequence_length", "context_length", "ctx_len"),
    "here it is model.hidden_size": ("dim", "embed_dim", "hidden_dim"),
    "here model.intermediate_size is the width itself": ("multiple_of", "ffn_dim_multiplier", "mlp_ratio"),
    "here it is model.tie_word_embeddings": ("weight_tying", "tie_weights", "tie_embeddings"),
    "here training.final_rate_fraction is a share of learning_rate": ("min_lr", "min_learning_rate"),
    "here it is training.schedule": ("decay_lr", "lr_scheduler_type", "lr_schedule", "lr_scheduler", "scheduler"),
    "here it is training.warmup_fraction": ("warmup_ratio",),
    "here it is training.eval_tokens, in tokens": ("eval_iters", "eval_batches", "limit_val_batches"),
    "here it is training.loggers": ("wandb_log", "report_to", "logger"),
    "here it is training.compile": ("torch_compile", "use_compile"),
    "here it is training.precision: bf16 or fp16": ("use_amp", "amp"),
    "here it is out_dir": ("checkpoint_dir", "save_dir", "log_dir"),
    "here it is micro_batch_size times training.grad_accum_steps": ("global_batch_size", "effective_batch_size"),
    "leave it out: batches are ready when they are needed": ("num_workers", "pin_memory", "prefetch_factor"),
    "leave it out: the hub is always streamed, up to data.max_bytes": ("streaming",),
    "leave it out: Wikipedia is read as 20231101.en": ("subset", "dataset_config", "config_name"),
    "leave it out: writing always uses the cache": ("use_kv_cache", "kv_cache", "use_cache"),
    "leave it out: positions are always rotary": ("use_rope", "rope", "pos_encoding"),
    "leave it out: the feed-forward layer is SwiGLU": ("activation", "hidden_act", "use_swiglu"),
    _KERNELS: ("flash", "use_flash", "flash_attn", "use_flash_attn"),
    "leave it out: several devices are torchrun's (README, The road)": ("devices", "strategy", "num_nodes", "n_gpus"),
}
# Words of other programs, without their section, that are no key of the same meaning here, and what to do instead.
INSTEAD: dict[str, str] = {word: remedy for remedy, words in _HERE.items() for word in words}

# our key -> other spellings of its values
VALUES: dict[str, dict[Any, Any]] = {
    "training.precision": {
        "16-mixed": "fp16",
        "float16": "fp16",
        "torch.float16": "fp16",
        "bf16-mixed": "bf16",
        "bfloat16": "bf16",
        "torch.bfloat16": "bf16",
        "float32": "fp32",
        "torch.float32": "fp32",
        "32": "fp32",
        "32-true": "fp32",
        32: "fp32",
        16: "fp16",
        "16": "fp16",
    },
    "training.device": {"gpu": "cuda"},
    "training.schedule": {"cosine_with_warmup": "cosine", "warmup_stable_decay": "wsd"},
    "model.sliding_window": {0: None},
    "data.source": {
        "roneneldan/TinyStories": "tinystories",
        "shahrukhx01/wikipedia-bookscorpus-en-preprocessed": "wiki-bookscorpus",
        "wikimedia/wikipedia": "wikipedia",
    },
}

# Who writes one of these beside `d_model` speaks our language.
_OWN_WORDS = {
    *("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "head_dim"),
    *("use_sliding_window", "max_window_layers", "layer_types"),
}


def translate(key: str, value: Any, origin: str | None = None) -> list[tuple[str, Any]]:
    """Our keys and values for one assignment in any known vocabulary; unknown keys come back as they are.

    Raises:
        UserError: it switches on what is not built here, or is a switch with a value that is neither on nor off.
    """
    if type(value).__module__ == "torch":  # a dtype, in a dict of Python
        value = str(value)
    if key in SWITCHES and (isinstance(value, bool) or value in _OFF):
        name, meaning = SWITCHES[key]
        if value is True:
            return [(name, meaning)]
        return [(name, False)] if meaning is True else []  # a switch that is off is written, too
    if key in SWITCHES:
        raise UserError(f"{key} = {value!r}: neither true nor false", where=origin, remedy=f"{key}: true")
    if key in UNBUILT and key not in ALIASES:
        if value in _OFF:
            return []
        raise UserError(f"{key} = {value!r} is not built here", where=origin, remedy=UNBUILT[key])
    pairs = []
    for name in ALIASES.get(key, (key,)):
        spellings = VALUES.get(name, {})
        known = isinstance(value, (str, int)) and not isinstance(value, bool) and value in spellings
        pairs.append((name, spellings[value] if known else value))
    return pairs


def implied(written: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """What a config in other words means without saying so: our keys and values, weaker than anything written.

    `d_model` stands for the decoder of the document that uses the word: with `n_kv_groups` a Qwen3 with an output head
    of its own; with `block_size` or `dropout` in the model, or nothing but widths, a GPT-like decoder with LayerNorm
    and as many key/value heads as query heads; else a Llama. Widths that are not written follow from `d_model`. A
    config that has our words for the shape beside it means our default.

    Args:
        written: our key -> the name the user gave it, and its value.
    """
    names = {name.rpartition(".")[2] for name, _ in written.values()}
    width = written.get("model.hidden_size", ("", None))[1]
    model_type = written.get("model.model_type", ("", "qwen3"))[1]
    is_window = "swa_window" in names and written["model.sliding_window"][1] is not None
    is_theirs = bool(names & {"d_model", "n_embd"}) and not names & _OWN_WORDS
    if not is_theirs or type(width) is not int or width < 1:
        return {"model.use_sliding_window": True} if is_window and model_type == "qwen3" else {}
    heads = written.get("model.num_attention_heads", ("", _heads_for(width)))[1]
    found: dict[str, Any] = {
        "model.model_type": "llama",
        "model.num_attention_heads": heads,
        "model.intermediate_size": -(-8 * width // 3 // 8) * 8,
    }
    seq_len = written.get("data.seq_len", ("", None))[1]
    if type(seq_len) is int and seq_len > 2048:
        found["model.max_position_embeddings"] = seq_len
    is_llama = is_window or (names & {"n_kv_heads", "swa_window", "seq_len"} and not names & {"block_size", "dropout"})
    if "n_kv_groups" in names:
        found |= {"model.model_type": "qwen3", "model.tie_word_embeddings": False}
        return found | ({"model.use_sliding_window": True} if is_window else {})
    return found | ({"model.norm_type": "layernorm", "model.num_key_value_heads": heads} if not is_llama else {})


def _heads_for(width: int) -> int:
    """Heads of about 64: the largest number of them that divides the width into even parts."""
    fitting = [heads for heads in range(1, max(1, width // 64) + 1) if width % (2 * heads) == 0]
    return max(fitting, default=1)
