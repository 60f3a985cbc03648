"""What the shapes of all models have in common, and what every shape can be asked; see `config.shapes`.

Other rooms have no table of families: what differs from one to the next, they ask the shape. An answer that a shape
does not give is *not known*, and is reported as that; it is never another family's answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tiny_transformer.config.shapes.rope import Llama3Rope, RopeScaling, YarnRope

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DEFAULT_GROUPS = 4  # key/value heads
VLLM_CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
ABSENT: Any = None  # default of a field that a validator always resolves, so that its type has no None


@dataclass(frozen=True)
class HfForm:
    """One `model_type` of Hugging Face's `config.json`.

    Attributes:
        defaults: the keys that decide the shape, each with what transformers assumes where it is absent (the classes'
            defaults in 5.23, equal in 4.57).
        only: keys with one supported value, which is also what their absence means.
        rotary_share: share of a head that RoPE turns, where `config.json` does not say.
        rope_extras: keys of `rope_parameters` that change nothing for text.
    """

    defaults: Mapping[str, Any]
    only: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    rotary_share: float = 1.0
    rope_extras: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GgufForm:
    """One architecture of llama.cpp.

    Attributes:
        name: as in `general.architecture`.
        is_interleaved: whether it turns neighbouring features (2j, 2j + 1) where Hugging Face turns (j, j + D/2).
        copies_tied_head: whether its loader wants a head even where it equals the embedding.
        layer_norm: whether its norms are LayerNorms.
        names: parts of a block whose tensors have other names there than in llama.cpp's `llama`.
    """

    name: str
    is_interleaved: bool = False
    copies_tied_head: bool = False
    layer_norm: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


# What transformers assumes of most decoders; each `HfForm` adds its own.
HF_DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}
HF_RMS = {"head_dim": None, "rms_norm_eps": 1e-6}

LEAST_LOOK_BACK_DIM = 12  # below it the first heads look elsewhere in a third of cases and more: docs/LOG.md


class DecoderConfig(BaseModel):
    """What all architectures have."""

    if TYPE_CHECKING:
        model_type: str  # a Literal of one word in each architecture: what tells them apart in a config

    hf_forms: ClassVar[Mapping[str, HfForm]] = {}
    """The `model_type`s of Hugging Face that are read as this shape."""

    gguf_imports: ClassVar[tuple[GgufForm, ...]] = ()
    """The architectures of llama.cpp that are read as this shape, where that is built."""

    minutes_ladder: ClassVar[bool] = False
    """Whether `train --minutes` may choose the size: its costs are those of one attention and one SwiGLU a block."""

    residual_outputs: ClassVar[tuple[str, ...]] = ("o_proj.weight", "down_proj.weight")
    """Endings of the names of the last weights in each residual branch: at zero, a block is the identity."""

    previous_token_init: ClassVar[bool] = False
    """Whether `training.previous_token_init` knows the first layer: an attention with RoPE behind a norm."""

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

    rope_scaling: RopeScaling | None = Field(None)
    """For contexts longer than those of the training: `rope_type` `linear`, `llama3` or `yarn` with its numbers, such
    as `factor`. `null`: none."""

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
        if isinstance(self.rope_scaling, YarnRope) and self.rope_theta == 1:
            raise ValueError("rope_theta 1 with rope_type yarn has no slow and no fast pairs; set another base")
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} is odd, and RoPE turns pairs; nearest: {nearest(self.head_dim, 2)}"
            )
        return self

    @property
    def rotary_dim(self) -> int:
        """Features of each attention head that RoPE turns."""
        return self.head_dim

    @classmethod
    def from_hf_values(cls, model_type: str, values: dict[str, Any]) -> dict[str, Any]:
        """Our keys and values for the ones of an `HfForm`; `partial_rotary_factor` is among them.

        Raises:
            ValueError: a combination that is not computed here.
        """
        if (share := values.pop("partial_rotary_factor")) != 1.0:
            raise ValueError(f"partial_rotary_factor {share!r:.40} is not supported: the whole head is rotated")
        return values

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        """The contents of `config.json`.

        Args:
            dtype: of the weights on disk, as torch spells it without `torch.`.
            token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`; written as null where absent, as readers have
                other defaults.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its config.json is written")

    def gguf_form(self) -> GgufForm | None:
        """llama.cpp's architecture of this shape, or None where it has none or it is not known."""
        return None

    def refusals(self) -> dict[str, str | None]:
        """Why a program does not compute this shape, by program (`interop.portability`); None: it does.

        A program that is absent is one of which nothing is known.
        """
        return {}

    def attention_lengths(self, seq_len: int) -> list[tuple[int, int | None]] | None:
        """Sequence length and window (None: no limit) of each layer with softmax attention; None: not known."""
        return None

    def look_back_refusal(self) -> str | None:
        """Why no head of the first layer can start by looking at the two tokens before, or None."""
        if not self.previous_token_init:
            return f"knows the first layer of a llama or qwen3, not that of a {self.model_type}"
        lengths = self.attention_lengths(3)
        window = lengths[0][1] if lengths else None
        if window is not None and window < 3:
            return f"lets heads look two tokens back, and those of the first layer see {window}"
        if self.head_dim < LEAST_LOOK_BACK_DIM:
            least = LEAST_LOOK_BACK_DIM
            return f"needs a head_dim of at least {least} to tell one position from the next, not {self.head_dim}"
        if self.rope_theta < 2 or (self.rope_numbers() or {}).get("rope_type") == "linear":
            return (
                "needs frequencies of RoPE near 1 and far below it: a rope_theta of at least 2, and no linear scaling"
            )
        return None

    def idle_parameters(self, experts: int) -> int:
        """How many of the parameters of all experts together do no work on one token."""
        return 0

    def rope_numbers(self) -> dict[str, Any] | None:
        """`rope_type` and the numbers of a scaled RoPE, for `layers.rope.rope_cos_sin`; None: it is not scaled."""
        return None if self.rope_scaling is None else self.rope_scaling.numbers()

    def shared_hf(self, dtype: str, token_ids: dict[str, Any]) -> dict[str, Any]:
        """The part of `config.json` that all architectures share."""
        if unknown := token_ids.keys() - TOKEN_IDS:
            raise TypeError(f"unknown token ids {sorted(unknown)}; known: {', '.join(TOKEN_IDS)}")
        shape = self.model_dump(mode="json", include=set(DecoderConfig.model_fields) - {"rope_scaling"})
        scaling = self.rope_numbers()
        if scaling is not None:
            shape["rope_scaling"] = scaling  # for transformers 4.57 and mlx-lm
        return {
            **shape,
            "hidden_act": "silu",
            "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": self.rope_theta},
            "attention_dropout": 0.0,
            "use_cache": True,
            **{name: token_ids.get(name) for name in TOKEN_IDS},
            "dtype": dtype,
            "torch_dtype": dtype,
            "transformers_version": "5.0.0",  # 4.57 suspects an old Mistral tokenizer where none is said
        }


def nearest(value: int, step: int) -> str:
    """The multiples of `step` on both sides of `value`."""
    below = value // step * step
    return f"{below} or {below + step}" if below else str(below + step)


def window_refusal(config: DecoderConfig, window: int | None, whose: str) -> str | None:
    """Why a program without sliding windows does not compute one, or None: a window as long as the context cuts
    nothing, and a shorter one would be ignored without a word."""
    if window is None or window >= config.max_position_embeddings:
        return None
    return (
        f"{whose} lets every token see all before it; sliding_window {window} is shorter than "
        f"max_position_embeddings {config.max_position_embeddings}; set sliding_window null"
    )


def head_dim_refusal(config: DecoderConfig) -> str | None:
    """Why vLLM's attention does not compute heads of this width, or None."""
    if config.head_dim % 8 == 0:
        return None
    return (
        f"its attention kernels need a head_dim that is a multiple of 8, not {config.head_dim}; "
        f"set head_dim {nearest(config.head_dim, 8)}"
    )


def cpu_head_dim_refusal(config: DecoderConfig) -> str | None:
    """Why vLLM's backend for CPUs does not compute heads of this width, or None."""
    if config.head_dim in VLLM_CPU_HEAD_DIMS:
        return None
    near = min(VLLM_CPU_HEAD_DIMS, key=lambda width: abs(width - config.head_dim))
    return f"its attention there has no head_dim {config.head_dim}; set head_dim {near}"


def layers_refusal(config: DecoderConfig) -> str | None:
    """Why llama.cpp does not hold so many layers, or None."""
    if config.num_hidden_layers <= 512:
        return None
    return f"it has room for 512 layers, not {config.num_hidden_layers}; set num_hidden_layers 512 at most"


def rope_refusal(config: DecoderConfig, reader: str) -> str | None:
    """Why a program does not scale RoPE as this shape asks for, or None."""
    scaling, form = config.rope_scaling, config.gguf_form()
    if reader == "llama.cpp" and isinstance(scaling, Llama3Rope) and (form is None or form.name != "llama"):
        return "it scales RoPE by rope_type llama3 in its llama alone; set rope_scaling null"
    if isinstance(scaling, YarnRope) and reader in ("llama.cpp", "mlx-lm") and scaling.attention_factor is not None:
        return "its yarn takes the attention_factor from factor; set rope_scaling without attention_factor"
    return None
