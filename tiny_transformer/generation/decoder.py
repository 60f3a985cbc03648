"""A model reading rows of tokens through a cache: feed ids, get logits; take tokens back; copy, empty and choose rows.

It knows nothing of sampling, of prompts or of when a text ends: whatever writes text, drafts or verifies stands on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tiny_transformer.layers.cache import ModelCache
from tiny_transformer.models.contract import CausalLM

PAD_DOCUMENT = -1


class TokenStep(Protocol):
    """Another way to read one token of each row, on the same cache; see `engines`."""

    def takes(self, ids: Tensor | Sequence[Sequence[int]], cache: ModelCache) -> TypeGuard[Tensor]:
        """Whether it can read these ids."""
        ...

    def __call__(self, ids: Tensor, cache: ModelCache) -> tuple[Tensor, Tensor]:
        """Hidden states (B, 1, C) and logits (B, 1, V)."""
        ...


# model -> what makes a step for a decoder of it. `engines.choose_engine` puts models here; the others are called.
TOKEN_STEPS: WeakKeyDictionary[CausalLM, Callable[[CausalLM], TokenStep]] = WeakKeyDictionary()


class Decoder:
    """A model, and what it has read in each row of a batch.

    Args:
        model: in evaluation mode; called, never changed.
        batch_size: B rows.
        max_len: the most tokens a row can hold.
        num_tokens: V, logits of higher ids are left out; None: all. A head may have more rows than a tokenizer tokens.

    Attributes:
        cache: everything the model remembers; see `layers.cache.ModelCache`.
        hidden: (B, T, C) hidden states of the last call, which a drafter may read; undefined where a row was padded.
    """

    def __init__(self, model: CausalLM, batch_size: int, max_len: int, *, num_tokens: int | None = None) -> None:
        self._model, self._num_tokens = model, num_tokens
        self._device = next(model.parameters()).device
        self.cache = model.make_cache(batch_size, max_len)
        self.hidden = torch.empty(0)
        self._token_step = TOKEN_STEPS[model](model) if model in TOKEN_STEPS else None

    def feed(self, ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Read new tokens and return logits (B, T, V) after each of them.

        Args:
            ids: (B, T) int64; or B lists of any lengths, of which T is the longest. What follows a shorter list's last
                token in the result is undefined.

        Raises:
            ValueError: another number of rows, or more tokens than they can hold.
        """
        return self._read(ids, last_only=False)

    def feed_last(self, ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """The same with logits (B, V) after the last new token of each row alone; the head is applied to no other.

        A row without new tokens gets undefined logits.
        """
        return self._read(ids, last_only=True)

    @torch.inference_mode()
    def _read(self, ids: Tensor | Sequence[Sequence[int]], *, last_only: bool) -> Tensor:
        if self._token_step is not None and self._token_step.takes(ids, self.cache):
            self.hidden, logits = self._token_step(ids, self.cache)
            return (logits[:, -1] if last_only else logits)[..., : self._num_tokens]
        doc_ids, last = None, None
        if not isinstance(ids, Tensor):
            ids, doc_ids, last = pad_right(ids, self._device)
        self.hidden = self._model.backbone(ids, None, doc_ids, self.cache).hidden
        hidden = self.hidden
        if last_only:
            hidden = hidden[:, -1] if last is None else hidden[torch.arange(len(last)), last]  # (B, C)
        return self._model.lm_head(hidden)[..., : self._num_tokens]

    def snapshot(self) -> None:
        """Remember the present state for `rollback`; an earlier snapshot is forgotten."""
        self.cache.snapshot()

    @torch.inference_mode()
    def rollback(self, n: int | Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Keep the first `n` tokens that each row has read since the snapshot; see `ModelCache.rollback`."""
        self.cache.rollback(n, rows)

    @torch.inference_mode()
    def reset(self, rows: Sequence[int]) -> None:
        """Empty these rows, so that another text can begin there."""
        self.cache.reset(rows)

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, each as often as it is named: `[0] * k` continues one read prompt in k ways."""
        self.cache = self.cache.select(rows)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`input_ids` and `doc_ids`, (B, T) int64, and the index of each row's last token, (B,); the last two are None when
    no row needs padding."""
    longest = max(map(len, rows), default=0)
    filled = [list(row) + [0] * (longest - len(row)) for row in rows]
    input_ids = torch.tensor(filled, dtype=torch.int64, device=device).view(len(rows), longest)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
    if all(len(row) == longest for row in rows):
        return input_ids, None, None
    is_padding = torch.arange(longest, device=device) >= lengths[:, None]
    return input_ids, torch.where(is_padding, PAD_DOCUMENT, 0), (lengths - 1).clamp(min=0)
