"""What every model offers, as the type checker sees it: training, evaluation and generation rely on nothing else.

Shapes: B rows, T tokens, C hidden_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from tiny_transformer.config.shapes import ModelConfig, Qwen3NextConfig
    from tiny_transformer.layers.cache import ModelCache


class BackboneOutput(NamedTuple):
    """What a model computes before its head.

    Attributes:
        hidden: (B, T, C) after the final norm.
        auxiliary_loss: a scalar, already weighted, to be added to the mean loss per token; 0 for dense models and with
            a cache.
        expert_load: (sparse layers, E), the share of each layer's tokens that went to each expert, for the log; None
            without experts and with a cache.
    """

    hidden: Tensor
    auxiliary_loss: Tensor
    expert_load: Tensor | None = None


class CausalLM(Protocol):
    """A decoder-only language model: an `nn.Module` with Hugging Face's parameter names."""

    training: bool
    KEEP_BITS: ClassVar[tuple[str, ...]]
    """Patterns of the linear layers that quantization leaves as they are."""

    @property
    def config(self) -> ModelConfig:
        """The shape."""
        ...

    @property
    def model(self) -> Any:
        """Embedding, blocks (`layers`) and final norm."""
        ...

    @property
    def lm_head(self) -> nn.Module:
        """(..., C) to logits (..., V)."""
        ...

    def __call__(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> Tensor:
        """Logits (B, T, V) for the token after each of `input_ids` (B, T) int64.

        Args:
            input_ids: the tokens.
            positions: (B, T) place of each in its document; None counts on from the cache, or from 0.
            doc_ids: (B, T); attention never crosses a change of id. None: each row is one document.
            cache: from `make_cache`; read, and extended by these tokens.
        """
        ...

    def backbone(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> BackboneOutput:
        """Everything but the head: a loss may apply that in chunks, a classifier may attach another."""
        ...

    def make_cache(self, batch_size: int, max_len: int, *, fixed: bool = False) -> ModelCache:
        """An empty cache, owned by the caller; `fixed` gives every call the same shapes."""
        ...

    # From here on as in `nn.Module`.
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def get_submodule(self, target: str) -> nn.Module: ...
    def set_submodule(self, target: str, module: nn.Module) -> None: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Tensor]: ...


class MultiTokenLM(CausalLM, Protocol):
    """A model that can also predict the token after the next (multi-token prediction)."""

    @property
    def config(self) -> Qwen3NextConfig:
        """The shape; `mtp_loss_coef` weighs the loss of the second prediction."""
        ...

    def draft(
        self,
        *,
        hidden: Tensor,
        next_ids: Tensor,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> BackboneOutput:
        """From hidden states (B, T, C) of tokens t and the tokens t + 1, what `lm_head` makes token t + 2 of."""
        ...

    def make_draft_cache(self, batch_size: int, max_len: int) -> ModelCache:
        """An empty cache for `draft`."""
        ...


def has_mtp_head(model: CausalLM) -> TypeGuard[MultiTokenLM]:
    """Whether a model has a multi-token prediction head."""
    return model.config.num_mtp_layers > 0


def trainable(model: CausalLM) -> list[tuple[str, nn.Parameter]]:
    """Names and weights that training moves, in the model's order; frozen ones are left out."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
