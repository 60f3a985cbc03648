"""The shape of Qwen3: heads of any size, each query and key head normalised, late layers with a window or none."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tiny_transformer.config.shapes.decoder import (
    ABSENT,
    HF_DEFAULTS,
    HF_RMS,
    DecoderConfig,
    GgufForm,
    HfForm,
    cpu_head_dim_refusal,
    head_dim_refusal,
    layers_refusal,
    rope_refusal,
    window_refusal,
)

LayerType = Literal["full_attention", "sliding_attention"]

_QWEN3 = {
    **HF_DEFAULTS,
    **HF_RMS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "attention_bias": False,
}


class Qwen3Config(DecoderConfig):
    """Qwen3: RMSNorm on each query and key head before RoPE, heads of any size, late layers with a window or none."""

    hf_forms: ClassVar = {"qwen3": HfForm(_QWEN3)}
    gguf_imports = (GgufForm("qwen3"),)
    minutes_ladder = True
    previous_token_init = True

    model_type: Literal["qwen3"] = "qwen3"
    """Which architecture; decides which other keys exist."""

    use_sliding_window: bool = Field(False)
    """Let the layers from `max_window_layers` on see only `sliding_window` tokens."""

    sliding_window: int | None = Field(None, ge=1, le=2**24)
    """Tokens a sliding layer sees, the token itself included. Needs `use_sliding_window`."""

    max_window_layers: int = Field(0, ge=0, le=1024)
    """The first this many layers always see everything, if `use_sliding_window` is on."""

    layer_types: tuple[LayerType, ...] = Field(ABSENT)
    """`full_attention` or `sliding_attention` for each layer. `null`: from the three keys above, and then stored."""

    @field_validator("layer_types", mode="before", json_schema_input_type=tuple[LayerType, ...] | None)
    @classmethod
    def _resolve_layer_types(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            return value
        first = info.data.get("max_window_layers", 0) if info.data.get("use_sliding_window") else 1024
        num_layers = info.data.get("num_hidden_layers", 1)
        return tuple("sliding_attention" if i >= first else "full_attention" for i in range(num_layers))

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for num_hidden_layers {self.num_hidden_layers}"
            )
        if self.use_sliding_window and self.sliding_window is None:
            raise ValueError("use_sliding_window true needs sliding_window, the number of tokens a layer sees")
        if not self.use_sliding_window and self.sliding_window is not None:
            raise ValueError(f"sliding_window {self.sliding_window} has no effect without use_sliding_window true")
        if not self.use_sliding_window and "sliding_attention" in self.layer_types:
            raise ValueError(
                "layer_types names a sliding_attention layer; set use_sliding_window true and sliding_window"
            )
        return self

    @classmethod
    def from_hf_values(cls, model_type: str, values: dict[str, Any]) -> dict[str, Any]:
        values = super().from_hf_values(model_type, values)
        if not values["use_sliding_window"]:
            values["sliding_window"] = None
        return values

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        windows = self.model_dump(mode="json", include=set(Qwen3Config.model_fields) - set(DecoderConfig.model_fields))
        return {**windows, "architectures": ["Qwen3ForCausalLM"], **self.shared_hf(dtype, token_ids)}

    def gguf_form(self) -> GgufForm:
        return self.gguf_imports[0]

    def refusals(self) -> dict[str, str | None]:
        return {
            "transformers 5": None,
            "transformers 4.57": None,
            "vLLM": head_dim_refusal(self) or self._refusal("vLLM's"),
            "vLLM on a CPU": cpu_head_dim_refusal(self) or self._refusal("vLLM's"),
            "llama.cpp": layers_refusal(self) or rope_refusal(self, "llama.cpp") or self._refusal("llama.cpp's"),
            "mlx-lm": rope_refusal(self, "mlx-lm") or self._refusal("mlx-lm's"),
        }

    def _refusal(self, whose: str) -> str | None:
        if self.attention_bias:
            return f"{whose} qwen3 has no bias on o_proj; set attention_bias false"
        if "sliding_attention" in self.layer_types:
            reason = window_refusal(self, self.sliding_window, f"{whose} qwen3")
            return reason and f"{reason} and use_sliding_window false"
        return None

    def attention_lengths(self, seq_len: int) -> list[tuple[int, int | None]]:
        return [(seq_len, self.sliding_window if kind == "sliding_attention" else None) for kind in self.layer_types]
