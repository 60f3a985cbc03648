"""Other names for our keys: the words of nanoGPT-like configs, of Lightning and of Hugging Face's Trainer.

A reader who brings a config in those words gets the run they meant. Two names of one key with different values are an
error, never a silent choice.
"""

from __future__ import annotations

from typing import Any

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
}

# names of switches -> what they switch on; off, they say nothing
SWITCHES: dict[str, tuple[str, str]] = {
    "training.bf16": ("training.precision", "bf16"),
    "training.fp16": ("training.precision", "fp16"),
}

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


def translate(key: str, value: Any) -> list[tuple[str, Any]]:
    """Our keys and values for one assignment in any known vocabulary; unknown keys come back as they are."""
    if key in SWITCHES and isinstance(value, bool):
        name, meaning = SWITCHES[key]
        return [(name, meaning)] if value else []
    pairs = []
    for name in ALIASES.get(key, (key,)):
        spellings = VALUES.get(name, {})
        known = isinstance(value, (str, int)) and not isinstance(value, bool) and value in spellings
        pairs.append((name, spellings[value] if known else value))
    return pairs
