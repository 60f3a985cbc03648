"""The shape of a model: field names and meanings are Hugging Face's, and `config.json` is what `to_hf` writes.

Three architectures: `LlamaConfig`, the classic decoder, `Qwen3Config`, and `Qwen3NextConfig`, which has a file of its
own. On disk the classic decoder is the `model_type` whose readers compute exactly the same: `llama`; with
`sliding_window` set `mistral`; with LayerNorm `stablelm`. Rotary base, data type and layer pattern are written in the
forms of transformers 5 and of 4.57: each passes over the other's keys without a word, so only both together mean the
same to both. `config.hf` reads such files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tiny_transformer.config.decoder import ABSENT, DecoderConfig, nearest
from tiny_transformer.config.qwen3_next import Qwen3NextConfig

LayerType = Literal["full_attention", "sliding_attention"]


class LlamaConfig(DecoderConfig):
    """The classic decoder: RMSNorm or LayerNorm, RoPE, multi-head to multi-query attention, SwiGLU, optional window."""

    model_type: Literal["llama"] = "llama"
    """Which architecture; decides which other keys exist."""

    norm_type: Literal["rmsnorm", "layernorm"] = Field("rmsnorm")
    """`layernorm` subtracts the mean and has a bias; its epsilon is `rms_norm_eps` too."""

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
        if self.norm_type == "layernorm" and self.head_dim * heads != size:
            raise ValueError(
                f"head_dim {self.head_dim} with norm_type layernorm has no Hugging Face architecture "
                f"(stablelm's is always hidden_size / num_attention_heads, here {size // heads}); leave head_dim out "
                "or use norm_type rmsnorm"
            )
        return self

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        """The contents of `config.json`: a `llama`, `mistral` or `stablelm`.

        Args:
            dtype: of the weights on disk, as torch spells it without `torch.`.
            token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`; null when absent, as readers have other defaults.
        """
        config = self.shared_hf(dtype, token_ids)
        if self.norm_type == "layernorm":
            config = {k: v for k, v in config.items() if k not in ("rms_norm_eps", "head_dim", "attention_bias")}
            extra = {
                "layer_norm_eps": self.rms_norm_eps,
                "partial_rotary_factor": 1.0,
                "use_qkv_bias": False,
                "qk_layernorm": False,
                "use_parallel_residual": False,
                "hidden_dropout": 0.0,
            }
            return {"model_type": "stablelm", "architectures": ["StableLmForCausalLM"], **config, **extra}
        if self.sliding_window is not None:
            del config["attention_bias"]
            extra = {"sliding_window": self.sliding_window}
            return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], **config, **extra}
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config, "mlp_bias": False}


class Qwen3Config(DecoderConfig):
    """Qwen3: RMSNorm on each query and key head before RoPE, heads of any size, late layers with a window or none."""

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

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        """The contents of `config.json`.

        Args:
            dtype: of the weights on disk, as torch spells it without `torch.`.
            token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`; written as null when absent.
        """
        windows = self.model_dump(mode="json", include=set(Qwen3Config.model_fields) - set(DecoderConfig.model_fields))
        return {**windows, "architectures": ["Qwen3ForCausalLM"], **self.shared_hf(dtype, token_ids)}


ModelConfig = Annotated[LlamaConfig | Qwen3Config | Qwen3NextConfig, Field(discriminator="model_type")]
"""Any model's shape; `model_type` tells which."""
