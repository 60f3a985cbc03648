"""The memory of a layer with a delta rule, and how it goes back: to a copy, from which it reads the kept tokens again.

Shapes: B rows, T new tokens, H value heads, Dk and Dv width of a key and a value, C convolved channels, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tiny_transformer.layers.cache import NO_GRADIENTS, LayerCache
from tiny_transformer.layers.convolution import next_window
from tiny_transformer.layers.delta_rule import gated_delta_rule


class DeltaInputs(NamedTuple):
    """What T tokens bring to a recurrent layer: `channels` (B, T, C) before the convolution, `padding` as in `Place`,
    the rest as `layers.delta_rule.gated_delta_rule` takes it."""

    channels: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    log_decay: torch.Tensor
    beta: torch.Tensor
    segments: torch.Tensor | None
    padding: torch.Tensor | None

    def for_the_rule(self) -> dict[str, Any]:
        """Keyword arguments of `gated_delta_rule`, but for the query and the state."""
        return {name: getattr(self, name) for name in ("key", "value", "log_decay", "beta", "segments")}

    def real(self) -> torch.Tensor:
        """(B, T) bool, False for padding."""
        return torch.ones_like(self.beta[..., 0], dtype=torch.bool) if self.padding is None else ~self.padding

    def keep(self, kept: torch.Tensor) -> DeltaInputs:
        """The same, where only each row's first tokens count, (B, T) True; the state passes the others unchanged."""
        segments = self.segments
        if segments is not None:
            segments = torch.minimum(segments, (segments * kept).amax(dim=1, keepdim=True))
        beta, log_decay = (x.masked_fill(~kept[..., None], 0.0) for x in (self.beta, self.log_decay))
        return self._replace(beta=beta, log_decay=log_decay, segments=segments, padding=~kept)

    def cut(self, rows: slice | torch.Tensor, num_tokens: int | None = None) -> DeltaInputs:
        """Some of the rows, some of the first tokens."""
        return DeltaInputs(*(None if x is None else x[rows, :num_tokens] for x in self))  # ty: ignore[invalid-argument-type]


class RecurrentCache(LayerCache):
    """The memory of one layer with a delta rule: the same size after any number of tokens.

    After a `snapshot` the inputs of the tokens are kept too, until the next snapshot: `rollback` reads them again.

    Attributes:
        window: (B, K - 1, C) the last inputs of the convolution, zeros where another document stood.
        state: (B, H, Dk, Dv), at least float32.
    """

    def __init__(self, window: torch.Tensor, state: torch.Tensor) -> None:
        self.window, self.state = window, state
        self._snapshot: tuple[torch.Tensor, torch.Tensor] | None = None
        self._since: list[DeltaInputs] = []

    def append(self, inputs: DeltaInputs, *, state: torch.Tensor) -> None:
        """Take in T new tokens, and the state they lead to.

        Raises:
            ValueError: gradients are wanted.
        """
        if state.requires_grad:
            raise ValueError(NO_GRADIENTS)
        if self._snapshot is not None:
            self._since.append(inputs)
        counts = None if inputs.padding is None else inputs.real().sum(dim=1)
        self.window = next_window(inputs.channels, window=self.window, segments=inputs.segments, counts=counts)
        self.state = state

    def snapshot(self) -> None:
        self._snapshot, self._since = (self.window, self.state), []

    def rollback(self, kept: Sequence[int]) -> None:
        if self._snapshot is None:
            raise ValueError("rollback needs a snapshot() first")
        again, self._since = self._since, []
        self.window, self.state = self._snapshot
        left = torch.tensor(kept, device=self.state.device)[:, None]  # (B, 1)
        for inputs in again:
            real = inputs.real()
            keep = real & (real.cumsum(dim=1) <= left)
            left = left - keep.sum(dim=1, keepdim=True)
            if keep.any():
                last = int(keep.any(dim=0).nonzero()[-1])
                part = (inputs if torch.equal(keep, real) else inputs.keep(keep)).cut(slice(None), last + 1)
                _, state = gated_delta_rule(query=part.key, state=self.state, **part.for_the_rule())
                self.append(part, state=state)

    def reset(self, rows: Sequence[int]) -> None:
        stays = torch.ones(len(self.state), 1, dtype=torch.bool, device=self.state.device)
        stays[list(rows)] = False
        self.window, self.state = _zero_rows(stays, self.window, self.state)
        if self._snapshot is not None:
            self._snapshot = _zero_rows(stays, *self._snapshot)
            self._since = [inputs.keep(inputs.real() & stays) for inputs in self._since]

    def select(self, rows: torch.Tensor) -> RecurrentCache:
        chosen = RecurrentCache(self.window[rows], self.state[rows])
        if self._snapshot is not None:
            chosen._snapshot = self._snapshot[0][rows], self._snapshot[1][rows]
            chosen._since = [inputs.cut(rows) for inputs in self._since]
        return chosen

    def adopt(self, row: int, other: RecurrentCache, length: int) -> None:
        self.window, self.state = self.window.clone(), self.state.clone()
        self.window[row], self.state[row] = other.window[0], other.state[0]


def _zero_rows(stays: torch.Tensor, window: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with zeros in the rows where `stays`, (B, 1), is False; the old tensors may be a snapshot's."""
    return window.masked_fill(~stays[..., None], 0.0), state.masked_fill(~stays[..., None, None], 0.0)
