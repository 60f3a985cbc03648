"""Reading the shape of a model from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Iterable
from reprlib import repr as short
from typing import Any

from pydantic import ValidationError

from tiny_transformer.config.model import LlamaConfig, ModelConfig, Qwen3Config, Qwen3NextConfig
from tiny_transformer.errors import ExitCode, UserError

# What transformers assumes for a key that config.json lacks (the classes' defaults in 5.23, equal in 4.57).
_DECODER_DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}
_RMS = {"head_dim": None, "rms_norm_eps": 1e-6}
_LLAMA = {"vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": None, "max_position_embeddings": 2048}
_MISTRAL = {
    "vocab_size": 32000,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
_STABLELM = {"vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "max_position_embeddings": 4096}
_QWEN3 = {"vocab_size": 151936, "intermediate_size": 22016, "head_dim": 128, "max_position_embeddings": 32768}
_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
_HYBRID = {
    "num_attention_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": None,
    "full_attention_interval": None,
    "layer_types": None,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "mtp_loss_coef": 0.1,  # ours alone
}
_QWEN3_NEXT = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "router_aux_loss_coef": 0.001,
    "num_nextn_predict_layers": 0,
}
_QWEN3_5 = {"vocab_size": 248320, "intermediate_size": 12288, "num_key_value_heads": 4, "mtp_num_hidden_layers": 0}
_HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER_DEFAULTS, **_RMS, **_LLAMA, "attention_bias": False},
    "mistral": {**_DECODER_DEFAULTS, **_RMS, **_MISTRAL, "sliding_window": 4096},
    "stablelm": {**_DECODER_DEFAULTS, **_STABLELM, "layer_norm_eps": 1e-5},
    "qwen3": {**_DECODER_DEFAULTS, **_RMS, **_QWEN3, **_WINDOWS, "attention_bias": False},
    "qwen3_next": {**_DECODER_DEFAULTS, **_RMS, **_HYBRID, **_QWEN3_NEXT, "attention_bias": False},
    "qwen3_5_text": {**_DECODER_DEFAULTS, **_RMS, **_HYBRID, **_QWEN3_5, "attention_bias": False},
}
# Keys with one supported value, which is also what their absence means.
_ONLY: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "mlp_bias": False, "rope_interleaved": False},
    "mistral": {"hidden_act": "silu"},
    "stablelm": {"hidden_act": "silu", "use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False},
    "qwen3": {"hidden_act": "silu"},
    "qwen3_next": {"hidden_act": "silu", "attn_output_gate": True, "use_sliding_window": False},
    "qwen3_5_text": {
        "hidden_act": "silu",
        "attn_output_gate": True,
        "use_sliding_window": False,
        "mtp_use_dedicated_embeddings": False,
    },
}
# Keys that do not change what a forward pass computes.
_HARMLESS = {
    *("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type", "pretraining_tp"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
    *("attention_dropout", "hidden_dropout", "is_encoder_decoder", "is_llama_config", "transformers.js_config"),
    *("output_router_logits", "mamba_ssm_dtype"),
}
_MOST_ENTRIES = 4096  # of a list; each wrong one would be told at length
# Keys that `_rope` judges.
_ROPE = {"rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"}

_REMEDY = "fetch config.json again; if you wrote it, give that key a value that this model_type has"

_CLASSES = {"qwen3": Qwen3Config, "qwen3_next": Qwen3NextConfig, "qwen3_5_text": Qwen3NextConfig}


def config_from_hf(hf: dict[str, Any], where: str) -> ModelConfig:
    """The shape that a Hugging Face `config.json` describes; absent keys take Hugging Face's class defaults, not ours.

    Args:
        hf: the parsed file.
        where: the file's name, for messages.

    Raises:
        UserError: a model type, key or value that is not computed here, or one out of range. Nothing is passed over in
            silence but the keys of `_HARMLESS`.
    """
    model_type = hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in _HF_DEFAULTS:
        raise _bad_config(
            f"model_type {short(model_type)} is not supported", where, f"supported: {', '.join(_HF_DEFAULTS)}"
        )
    for key, value in _ONLY[model_type].items():
        given = hf.get(key, value)
        if given != value or type(given) is not type(value):  # 0 is not false
            raise _bad_config(
                f"{key} {short(hf[key])} is not supported", where, f"for {model_type} only {key} {value!r}"
            )
    for key, value in hf.items():
        if isinstance(value, list) and len(value) > _MOST_ENTRIES and key not in _HARMLESS:
            raise _bad_config(f"{key[:40]} has {len(value):,} entries", where, f"at most {_MOST_ENTRIES:,}")
    defaults = _HF_DEFAULTS[model_type]
    if unknown := hf.keys() - defaults - _ONLY[model_type].keys() - _ROPE - _HARMLESS:
        raise _bad_config(
            f"{model_type} with {_some(unknown)} is not supported", where, "remove keys that have no effect"
        )
    values = {key: hf.get(key, default) for key, default in defaults.items()}
    values["rope_theta"], factor = _rope(hf, where)
    if values["vocab_size"] is None:
        raise _bad_config("vocab_size is null", where, "the number of rows of model.embed_tokens.weight")
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if model_type == "stablelm":
        values |= {"norm_type": "layernorm", "rms_norm_eps": values.pop("layer_norm_eps")}
    if model_type == "qwen3" and not values["use_sliding_window"]:
        values["sliding_window"] = None
    if model_type in ("qwen3_next", "qwen3_5_text"):
        values["partial_rotary_factor"] = factor
        values["full_attention_interval"] = _interval(values)
        values["mlp_only_layers"] = values.get("mlp_only_layers") or ()
    if model_type == "qwen3_5_text":
        values |= {"num_experts": 0, "num_nextn_predict_layers": values.pop("mtp_num_hidden_layers")}
    try:
        # Strictly, as the readers of this file differ over a 4.0 or a true where a whole number belongs.
        return _CLASSES.get(model_type, LlamaConfig).model_validate(
            {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}, strict=True
        )
    except ValidationError as error:
        first = error.errors()[0]
        problem = (
            f"{'.'.join(map(str, first['loc']))} {short(first['input'])}: {first['msg']}"
            if first["loc"]
            else first["msg"]
        )
        raise _bad_config(problem.replace("Value error, ", ""), where, _REMEDY) from None


def _interval(values: dict[str, Any]) -> Any:
    """`full_attention_interval`: as given, or read off the layers' pattern, which is all that transformers 5 writes."""
    layers = values["layer_types"]
    if values["full_attention_interval"] is not None:
        return values["full_attention_interval"]
    return layers.index("full_attention") + 1 if isinstance(layers, list) and "full_attention" in layers else 4


def _rope(hf: dict[str, Any], where: str) -> tuple[Any, Any]:
    """Rotary base and turning share, at the top level (transformers 4) or in a mapping (5); no scaling."""
    model_type, rope = hf["model_type"], {"rope_type": "default"}
    for name in ("rope_parameters", "rope_scaling"):
        given = hf.get(name) or {}
        if not isinstance(given, dict):
            raise _bad_config(f"{name} {short(given)} is not a mapping", where, "leave it out for plain RoPE")
        rope |= given
    kind = rope.pop("type", rope.pop("rope_type"))
    if kind != "default":
        raise _bad_config(f"rope_type {short(kind)} is not supported", where, "only rope_type 'default' (no scaling)")
    found = []
    usual_factor = 1.0 if model_type in ("llama", "mistral", "qwen3") else 0.25
    for name, default in (("rope_theta", 10_000.0), ("partial_rotary_factor", usual_factor)):
        top = hf.get(name, default)
        value = rope.pop(name, top)
        if name in hf and top != value:
            # transformers 5 would use one and 4.57 the other
            raise _bad_config(
                f"{name} {short(top)} and the {short(value)} of rope_parameters disagree", where, "make them equal"
            )
        found.append(value)
    if model_type == "qwen3_5_text":  # how the angles are shared between time, height and width; text has time only
        rope.pop("mrope_section", None), rope.pop("mrope_interleaved", None)
    elif model_type != "qwen3_next" and found[1] != 1.0:
        raise _bad_config(
            f"partial_rotary_factor {short(found[1])} is not supported", where, "only 1.0 (the whole head is rotated)"
        )
    if rope:
        raise _bad_config(f"RoPE with {_some(rope)} is not supported", where, "only rope_type and rope_theta")
    return found[0], found[1]


def _some(keys: Iterable[str]) -> str:
    """The first keys, cut short where a hostile file has many or long ones."""
    names = sorted(keys)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:40] for name in names[:3]) + more


def _bad_config(what: str, where: str, remedy: str) -> UserError:
    return UserError(what, where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA)
