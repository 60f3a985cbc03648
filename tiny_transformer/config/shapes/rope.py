"""Scaled rotary positions: how a model that was trained on short texts is made to read longer ones.

Names and meanings are those of `rope_parameters` in Hugging Face's `config.json`; `layers/rope.py` has the formulas.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Scaling(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    factor: float = Field(ge=1, le=1e6, allow_inf_nan=False)
    """How many times as long the texts may be."""

    def numbers(self) -> dict[str, Any]:
        """What `layers.rope.rope_frequencies` takes, and what stands in `config.json`."""
        return self.model_dump(mode="json", exclude_none=True)


class LinearRope(_Scaling):
    """Every position divided by the factor."""

    rope_type: Literal["linear"]


class Llama3Rope(_Scaling):
    """Slow pairs divided by the factor, fast ones left as they are, with a ramp between (Llama 3.1 and later)."""

    rope_type: Literal["llama3"]
    low_freq_factor: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    high_freq_factor: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    original_max_position_embeddings: int = Field(ge=1, le=2**24)

    @model_validator(mode="after")
    def _there_is_a_ramp(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"high_freq_factor {self.high_freq_factor} must exceed low_freq_factor")
        return self


class YarnRope(_Scaling):
    """The same with a ramp over the pairs, and attention a little sharper (YaRN)."""

    rope_type: Literal["yarn"]
    original_max_position_embeddings: int = Field(ge=1, le=2**24)
    beta_fast: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    beta_slow: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    attention_factor: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)

    @model_validator(mode="after")
    def _there_is_a_ramp(self) -> Self:
        if (self.beta_fast or 32) <= (self.beta_slow or 1):
            raise ValueError(f"beta_fast {self.beta_fast or 32} must exceed beta_slow {self.beta_slow or 1}")
        return self


RopeScaling = Annotated[LinearRope | Llama3Rope | YarnRope, Field(discriminator="rope_type")]
ROPE_TYPES = ("linear", "llama3", "yarn")
