"""The shape of OLMo 2: norms after attention and feed-forward, and over all query and key heads together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from tiny_transformer.config.shapes.decoder import (
    HF_DEFAULTS,
    DecoderConfig,
    GgufForm,
    HfForm,
    cpu_head_dim_refusal,
    head_dim_refusal,
    layers_refusal,
    rope_refusal,
)

_OLMO2 = {
    **HF_DEFAULTS,
    "vocab_size": 50304,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
}
_GGUF = GgufForm(
    "olmo2",
    copies_tied_head=True,
    names={"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"},
)


class Olmo2Config(DecoderConfig):
    """OLMo 2: each block's norms come after attention and feed-forward; queries and keys are normalised whole."""

    hf_forms: ClassVar = {"olmo2": HfForm(_OLMO2)}
    gguf_imports = (_GGUF,)
    minutes_ladder = True
    # A norm would magnify what little a closed projection lets through a thousandfold: the norms' scales close instead.
    residual_outputs = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")

    model_type: Literal["olmo2"] = "olmo2"
    """Which architecture; decides which other keys exist."""

    @model_validator(mode="after")
    def _has_a_home(self) -> Self:
        if self.head_dim * self.num_attention_heads != self.hidden_size:
            raise ValueError(
                f"head_dim {self.head_dim} is not hidden_size {self.hidden_size} / num_attention_heads "
                f"{self.num_attention_heads}, which readers of OLMo 2 models take it for; leave head_dim out, or use "
                "model_type qwen3"
            )
        return self

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        return {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], **self.shared_hf(dtype, token_ids)}

    def gguf_form(self) -> GgufForm:
        return _GGUF

    def refusals(self) -> dict[str, str | None]:
        bias = "olmo2 has no bias on the attention projections; set attention_bias false"
        scaled = "its olmo2 has rope_scaling in an older form; set rope_scaling null, or use 5.x"
        return {
            "transformers 5": None,
            "transformers 4.57": None if self.rope_scaling is None else scaled,
            "vLLM": head_dim_refusal(self),
            "vLLM on a CPU": cpu_head_dim_refusal(self),
            "llama.cpp": layers_refusal(self)
            or rope_refusal(self, "llama.cpp")
            or (f"llama.cpp's {bias}" if self.attention_bias else None),
            "mlx-lm": rope_refusal(self, "mlx-lm"),
        }

    def attention_lengths(self, seq_len: int) -> list[tuple[int, int | None]]:
        return [(seq_len, None)] * self.num_hidden_layers
