"""The shape of the classic decoder (Llama and its relatives).

On disk it is the `model_type` whose readers compute exactly the same: `llama`; with `sliding_window` set `mistral`;
with LayerNorm `stablelm`; with biases on queries, keys and values alone `qwen2`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tiny_transformer.config.shapes.decoder import (
    HF_DEFAULTS,
    HF_RMS,
    DecoderConfig,
    GgufForm,
    HfForm,
    cpu_head_dim_refusal,
    head_dim_refusal,
    layers_refusal,
    nearest,
    rope_refusal,
    window_refusal,
)

_SILU = {"hidden_act": "silu"}
_LLAMA = {
    **HF_DEFAULTS,
    **HF_RMS,
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "attention_bias": False,
}
_MISTRAL = {
    **HF_DEFAULTS,
    **HF_RMS,
    "vocab_size": 32000,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_STABLELM = {
    **HF_DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "use_qkv_bias": False,
}
_QWEN2 = {
    **HF_DEFAULTS,
    **HF_RMS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_STABLELM_ONLY = {**_SILU, "qk_layernorm": False, "use_parallel_residual": False}


class LlamaConfig(DecoderConfig):
    """The classic decoder: RMSNorm or LayerNorm, RoPE, multi-head to multi-query attention, SwiGLU, optional window."""

    hf_forms: ClassVar = {
        "llama": HfForm(_LLAMA, {**_SILU, "mlp_bias": False, "rope_interleaved": False}),
        "mistral": HfForm(_MISTRAL),
        "stablelm": HfForm(_STABLELM, _STABLELM_ONLY, rotary_share=0.25),
        "qwen2": HfForm(_QWEN2),
    }
    gguf_imports = (GgufForm("llama", is_interleaved=True), GgufForm("qwen2"))
    minutes_ladder = True
    previous_token_init = True

    model_type: Literal["llama"] = "llama"
    """Which architecture; decides which other keys exist."""

    norm_type: Literal["rmsnorm", "layernorm"] = Field("rmsnorm")
    """`layernorm` subtracts the mean and has a bias; its epsilon is `rms_norm_eps` too."""

    qkv_bias: bool = Field(False)
    """Give the query, key and value projections a bias and the output projection none, as Qwen2 and Qwen2.5 do."""

    sliding_window: int | None = Field(None, ge=1, le=2**24)
    """Each token sees this many tokens, itself included, in every layer. `null`: all before it."""

    @model_validator(mode="after")
    def _has_a_home(self) -> Self:
        # Each refusal is a shape that no Hugging Face architecture computes: the model could not be opened elsewhere.
        size, heads = self.hidden_size, self.num_attention_heads
        if size % heads:
            raise ValueError(
                f"hidden_size {size} is not a multiple of num_attention_heads {heads}, which readers of Llama models "
                f"refuse; nearest: {nearest(size, heads)}. Or use model_type qwen3"
            )
        if self.sliding_window is not None and self.attention_bias:
            raise ValueError(
                f"attention_bias true with sliding_window {self.sliding_window} has no Hugging Face architecture "
                "(mistral has no biases); set one of them off"
            )
        if self.norm_type == "layernorm" and self.sliding_window is not None:
            raise ValueError(
                f"norm_type layernorm with sliding_window {self.sliding_window} has no Hugging Face architecture "
                "(stablelm has no window, mistral no LayerNorm); use norm_type rmsnorm or sliding_window null"
            )
        if self.norm_type == "layernorm" and self.attention_bias:
            raise ValueError(
                "norm_type layernorm with attention_bias true has no Hugging Face architecture (stablelm has no bias "
                "on o_proj); set attention_bias false"
            )
        if self.qkv_bias and (self.attention_bias or self.sliding_window is not None):
            other = "attention_bias true" if self.attention_bias else f"sliding_window {self.sliding_window}"
            raise ValueError(
                f"qkv_bias true with {other} has no Hugging Face architecture (qwen2 has no bias on o_proj, and no "
                "window in every layer); set one of them off"
            )
        if (self.norm_type == "layernorm" or self.qkv_bias) and self.head_dim * heads != size:
            key, home = ("norm_type layernorm", "stablelm") if self.norm_type == "layernorm" else ("qkv_bias", "qwen2")
            raise ValueError(
                f"head_dim {self.head_dim} with {key} has no Hugging Face architecture ({home}'s is always "
                f"hidden_size / num_attention_heads, here {size // heads}); leave head_dim out, or use "
                "norm_type rmsnorm without qkv_bias"
            )
        return self

    @classmethod
    def from_hf_values(cls, model_type: str, values: dict[str, Any]) -> dict[str, Any]:
        values = super().from_hf_values(model_type, values)
        if model_type == "stablelm":
            values |= {"norm_type": "layernorm", "rms_norm_eps": values.pop("layer_norm_eps")}
            values["qkv_bias"] = values.pop("use_qkv_bias")
        if model_type == "qwen2":
            has_windows = values.pop("use_sliding_window")
            del values["sliding_window"], values["max_window_layers"]
            kinds = values.pop("layer_types")
            if has_windows is not False or (isinstance(kinds, list) and kinds.count("full_attention") != len(kinds)):
                raise ValueError("sliding windows of qwen2 are not supported: only use_sliding_window false")
            values["qkv_bias"] = True
        return values

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        """A `llama`, `mistral`, `stablelm` or `qwen2`; see `DecoderConfig.to_hf`."""
        config = self.shared_hf(dtype, token_ids)
        if self.norm_type == "layernorm":
            config = {k: v for k, v in config.items() if k not in ("rms_norm_eps", "head_dim", "attention_bias")}
            extra = {
                "layer_norm_eps": self.rms_norm_eps,
                "partial_rotary_factor": 1.0,
                "use_qkv_bias": self.qkv_bias,
                "qk_layernorm": False,
                "use_parallel_residual": False,
                "hidden_dropout": 0.0,
            }
            return {"model_type": "stablelm", "architectures": ["StableLmForCausalLM"], **config, **extra}
        if self.qkv_bias:
            del config["attention_bias"]
            extra = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": self.num_hidden_layers}
            return {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **config, **extra}
        if self.sliding_window is not None:
            del config["attention_bias"]
            extra = {"sliding_window": self.sliding_window}
            return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], **config, **extra}
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config, "mlp_bias": False}

    def gguf_form(self) -> GgufForm:
        if self.norm_type == "layernorm":
            return GgufForm("stablelm", copies_tied_head=True, layer_norm=True)
        return self.gguf_imports[1 if self.qkv_bias else 0]

    def refusals(self) -> dict[str, str | None]:
        mlx = window_refusal(self, self.sliding_window, "mlx-lm's llama")
        if self.norm_type == "layernorm" and self.tie_word_embeddings:
            mlx = (
                "its stablelm (what LayerNorm is saved as) always has a head of its own; set tie_word_embeddings false"
            )
        return {
            "transformers 5": None,
            "transformers 4.57": None,
            "vLLM": head_dim_refusal(self),
            "vLLM on a CPU": cpu_head_dim_refusal(self),
            "llama.cpp": layers_refusal(self)
            or rope_refusal(self, "llama.cpp")
            or window_refusal(self, self.sliding_window, "llama.cpp's llama"),
            "mlx-lm": mlx or rope_refusal(self, "mlx-lm"),
        }

    def attention_lengths(self, seq_len: int) -> list[tuple[int, int | None]]:
        return [(seq_len, self.sliding_window)] * self.num_hidden_layers
