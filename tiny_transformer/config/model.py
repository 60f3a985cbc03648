"""The shape of a model: field names and meanings are Hugging Face's, and `config.json` is what `to_hf` writes.

Two architectures: `LlamaConfig`, the classic decoder, and `Qwen3Config`. On disk the classic decoder is the
`model_type` whose readers compute exactly the same: `llama`; with `sliding_window` set `mistral`; with LayerNorm
`stablelm`. Rotary base, data type and layer pattern are written in the forms of transformers 5 and of 4.57: each passes
over the other's keys without a word, so only both together mean the same to both. `config.hf` reads such files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

LayerType = Literal["full_attention", "sliding_attention"]
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ABSENT: Any = None  # default of a field that a validator always resolves, so that its type has no None


class _DecoderConfig(BaseModel):
    """What both architectures have."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    vocab_size: int | None = Field(None, ge=1, le=2**24)
    """Rows of the embedding. `null`: the number of ids of the tokenizer."""

    hidden_size: int = Field(256, ge=1, le=2**17)
    """Width of the residual stream."""

    intermediate_size: int = Field(768, ge=1, le=2**20)
    """Width inside the feed-forward block."""

    num_hidden_layers: int = Field(6, ge=1, le=1024)
    """Blocks, one after the other."""

    num_attention_heads: int = Field(8, ge=1, le=1024)
    """Query heads."""

    num_key_value_heads: int = Field(4, ge=1, le=1024)
    """Key/value heads, each shared by a group of query heads. As many as query heads: multi-head; 1: multi-query."""

    head_dim: int = Field(_ABSENT, ge=2, le=2**14)
    """Width of one head, even because RoPE turns pairs. `null`: `hidden_size / num_attention_heads`, then stored."""

    max_position_embeddings: int = Field(2048, ge=1, le=2**24)
    """Longest context the model is meant for, in tokens. Allocates nothing."""

    rope_theta: float = Field(10_000.0, ge=1, le=1e12, allow_inf_nan=False)
    """Base of the rotary position angles; larger bases suit longer contexts."""

    rms_norm_eps: float = Field(1e-6, gt=0, le=1, allow_inf_nan=False)
    """Added to the mean square (or variance) inside every norm, so that it never divides by zero."""

    initializer_range: float = Field(0.02, gt=0, le=1, allow_inf_nan=False)
    """Standard deviation of the initial weights."""

    tie_word_embeddings: bool = Field(True)
    """Use one matrix as input embedding and as output head."""

    attention_bias: bool = Field(False)
    """Give the four attention projections a bias."""

    @field_validator("head_dim", mode="before", json_schema_input_type=int | None)
    @classmethod
    def _resolve_head_dim(cls, value: Any, info: ValidationInfo) -> Any:
        hidden_size, heads = info.data.get("hidden_size"), info.data.get("num_attention_heads")
        if value is not None:
            return value
        if hidden_size is None or heads is None:
            return 2  # the field that is missing has its own error
        if hidden_size % heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}; "
                f"nearest: {_nearest(hidden_size, heads)}. Or give head_dim"
            )
        if hidden_size // heads % 2:
            raise ValueError(
                f"hidden_size {hidden_size} / num_attention_heads {heads} makes head_dim {hidden_size // heads}, "
                f"odd, and RoPE turns pairs; nearest hidden_size: {_nearest(hidden_size, 2 * heads)}. Or give head_dim"
            )
        return hidden_size // heads

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            allowed = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise ValueError(
                f"num_key_value_heads {groups} does not divide num_attention_heads {heads}; allowed: {allowed}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} is odd, and RoPE turns pairs; nearest: {_nearest(self.head_dim, 2)}"
            )
        return self

    def _shared_hf(self, dtype: str, token_ids: dict[str, Any]) -> dict[str, Any]:
        if unknown := token_ids.keys() - TOKEN_IDS:
            raise TypeError(f"unknown token ids {sorted(unknown)}; known: {', '.join(TOKEN_IDS)}")
        shape = self.model_dump(mode="json", include=set(_DecoderConfig.model_fields))
        return {
            **shape,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_dropout": 0.0,
            "use_cache": True,
            **{name: token_ids.get(name) for name in TOKEN_IDS},
            "dtype": dtype,
            "torch_dtype": dtype,
        }


class LlamaConfig(_DecoderConfig):
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
                f"refuse; nearest: {_nearest(size, heads)}. Or use model_type qwen3"
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
        config = self._shared_hf(dtype, token_ids)
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


class Qwen3Config(_DecoderConfig):
    """Qwen3: RMSNorm on each query and key head before RoPE, heads of any size, late layers with a window or none."""

    model_type: Literal["qwen3"] = "qwen3"
    """Which architecture; decides which other keys exist."""

    use_sliding_window: bool = Field(False)
    """Let the layers from `max_window_layers` on see only `sliding_window` tokens."""

    sliding_window: int | None = Field(None, ge=1, le=2**24)
    """Tokens a sliding layer sees, the token itself included. Needs `use_sliding_window`."""

    max_window_layers: int = Field(0, ge=0, le=1024)
    """The first this many layers always see everything, if `use_sliding_window` is on."""

    layer_types: tuple[LayerType, ...] = Field(_ABSENT)
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
        windows = self.model_dump(mode="json", include=set(Qwen3Config.model_fields) - set(_DecoderConfig.model_fields))
        return {**windows, "architectures": ["Qwen3ForCausalLM"], **self._shared_hf(dtype, token_ids)}


ModelConfig = Annotated[LlamaConfig | Qwen3Config, Field(discriminator="model_type")]
"""Any model's shape; `model_type` tells which."""


def _nearest(value: int, step: int) -> str:
    """The multiples of `step` on both sides of `value`."""
    below = value // step * step
    return f"{below} or {below + step}" if below else str(below + step)
