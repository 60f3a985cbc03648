"""What the shapes of all models have in common; see `config.model`."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DEFAULT_GROUPS = 4  # key/value heads
ABSENT: Any = None  # default of a field that a validator always resolves, so that its type has no None


class DecoderConfig(BaseModel):
    """What all architectures have."""

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

    num_key_value_heads: int = Field(ABSENT, ge=1, le=1024)
    """Key/value heads, each shared by a group of query heads. As many as query heads: multi-head; 1: multi-query.
    `null`: 4, or as many as query heads where 4 does not divide those, then stored."""

    head_dim: int = Field(ABSENT, ge=2, le=2**14)
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

    @property
    def known_vocab_size(self) -> int:
        """`vocab_size` of a model that has been built.

        Raises:
            ValueError: it is not set yet.
        """
        if self.vocab_size is None:
            raise ValueError("vocab_size is not set: take it from the tokenizer before building a model")
        return self.vocab_size

    @property
    def num_mtp_layers(self) -> int:
        """Layers of a multi-token prediction head; 0 for a model without one."""
        return 0

    @field_validator("num_key_value_heads", mode="before", json_schema_input_type=int | None)
    @classmethod
    def _resolve_key_value_heads(cls, value: Any, info: ValidationInfo) -> Any:
        heads = info.data.get("num_attention_heads", DEFAULT_GROUPS)
        return value if value is not None else heads if heads % DEFAULT_GROUPS else DEFAULT_GROUPS

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
                f"nearest: {nearest(hidden_size, heads)}. Or give head_dim"
            )
        if hidden_size // heads % 2:
            raise ValueError(
                f"hidden_size {hidden_size} / num_attention_heads {heads} makes head_dim {hidden_size // heads}, "
                f"odd, and RoPE turns pairs; nearest hidden_size: {nearest(hidden_size, 2 * heads)}. Or give head_dim"
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
                f"head_dim {self.head_dim} is odd, and RoPE turns pairs; nearest: {nearest(self.head_dim, 2)}"
            )
        return self

    def shared_hf(self, dtype: str, token_ids: dict[str, Any]) -> dict[str, Any]:
        """The part of `config.json` that all architectures share."""
        if unknown := token_ids.keys() - TOKEN_IDS:
            raise TypeError(f"unknown token ids {sorted(unknown)}; known: {', '.join(TOKEN_IDS)}")
        shape = self.model_dump(mode="json", include=set(DecoderConfig.model_fields))
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


def nearest(value: int, step: int) -> str:
    """The multiples of `step` on both sides of `value`."""
    below = value // step * step
    return f"{below} or {below + step}" if below else str(below + step)
