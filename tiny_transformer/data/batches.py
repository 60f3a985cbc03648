"""Batches of token windows as pure functions of the step: nothing to save, nothing to replay.

Update number `step` reads examples step * B .. step * B + B - 1 of an endless sequence. Example i of that sequence is
item i mod N of epoch i div N, and `order` says which window that is. So any number of processes, each taking its part
of the batch, sees the same examples in every step, and resuming needs the step and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch

from tiny_transformer.data.order import Permutation
from tiny_transformer.data.packing import IGNORE_INDEX, BestFit, Concatenated, Packing
from tiny_transformer.data.token_file import TokenFile
from tiny_transformer.errors import UserError

__all__ = [
    "IGNORE_INDEX",
    "Batches",
    "BatchesInOrder",
    "ExampleBatches",
    "TokenBatch",
    "batches_in_order",
    "evaluation_batches",
]

B = TypeVar("B")


@dataclass(frozen=True)
class TokenBatch:
    """Token windows with their targets; B rows of T tokens.

    Attributes:
        input_ids: (B, T) int64.
        labels: (B, T) int64, the token that follows each; `IGNORE_INDEX` where there is none.
        num_targets: how many labels count.
        sample_ids: (B,) int64, which example of its epoch each row is.
        doc_ids: (B, T) int64 or None; attention must not cross a change of id.
        positions: (B, T) int64 or None, the place of each token in its document.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    num_targets: int
    sample_ids: torch.Tensor
    doc_ids: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on a device."""

        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return TokenBatch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            num_targets=self.num_targets,
            sample_ids=self.sample_ids,
            doc_ids=move(self.doc_ids),
            positions=move(self.positions),
        )


class BatchesInOrder(ABC, Generic[B]):
    """Training batches of any list of examples; the order is a keyed permutation of each epoch.

    Args:
        num_examples: what an epoch consists of.
        global_batch_size: examples of one step over all processes.
        seed: of the order.
        rank, world_size: which equal part of each batch this process takes.

    Raises:
        UserError: the batch cannot be shared equally.
    """

    def __init__(
        self, num_examples: int, *, global_batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if global_batch_size % world_size:
            raise UserError(
                f"a batch of {global_batch_size} examples cannot be shared equally by {world_size} processes",
                remedy="choose a batch size that is a multiple of the number of processes",
            )
        self.num_examples, self.global_batch_size, self._seed = num_examples, global_batch_size, seed
        self._local_rows = global_batch_size // world_size
        self._first_row = rank * self._local_rows

    @abstractmethod
    def make(self, sample_ids: np.ndarray, step: int) -> B:
        """The examples of these numbers as one batch of update number `step`."""

    @property
    def steps_per_epoch(self) -> float:
        """How many steps see every example once."""
        return self.num_examples / self.global_batch_size

    def epoch(self, step: int) -> float:
        """How many times the data has been seen before update number `step`."""
        return step * self.global_batch_size / self.num_examples

    def batch(self, step: int) -> B:
        """This process's part of the batch of update number `step`, counted from 0."""
        return self.make(self._own_ids(step), step)

    def micro_batches(self, step: int, micro_batch_size: int) -> Iterator[B]:
        """The same rows in the same order, `micro_batch_size` at a time; the last may have fewer."""
        sample_ids = self._own_ids(step)
        for start in range(0, len(sample_ids), micro_batch_size):
            yield self.make(sample_ids[start : start + micro_batch_size], step)

    def sample_ids(self, step: int) -> np.ndarray:
        """Which examples of their epochs the whole batch of a step has, all processes together."""
        first = step * self.global_batch_size
        return self._numbers(first, first + self.global_batch_size)

    def _own_ids(self, step: int) -> np.ndarray:
        first = step * self.global_batch_size + self._first_row
        return self._numbers(first, first + self._local_rows)

    def _numbers(self, first: int, stop: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(first, stop), self.num_examples)
        sample_ids = np.empty_like(places)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            sample_ids[now] = _permutation(self.num_examples, self._seed, int(epoch))(places[now])
        return sample_ids


class ExampleBatches(BatchesInOrder[TokenBatch]):
    """Training batches of token windows.

    Args:
        examples: what an epoch consists of.
        order: see `BatchesInOrder`.
    """

    def __init__(self, examples: Packing, **order: int) -> None:
        super().__init__(len(examples), **order)
        self._examples = examples

    def make(self, sample_ids: np.ndarray, step: int) -> TokenBatch:
        """The windows of these numbers."""
        return _make_batch(self._examples, sample_ids)


class Batches(ExampleBatches):
    """Training batches.

    Args:
        tokens: the split to read.
        seq_len: T.
        global_batch_size: rows of one step over all processes.
        seed: of the order.
        packing: `concat` or `documents`; see `packing`.
        rank, world_size: which equal part of each batch this process takes.

    Raises:
        UserError: the split is shorter than one sequence, or the batch cannot be shared equally.
    """

    def __init__(
        self,
        tokens: TokenFile,
        *,
        seq_len: int,
        global_batch_size: int,
        seed: int,
        packing: str = "concat",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        examples = _pack(tokens, seq_len, packing, keep_rest=False)
        super().__init__(examples, global_batch_size=global_batch_size, seed=seed, rank=rank, world_size=world_size)
        self.seq_len = seq_len


def evaluation_batches(
    tokens: TokenFile, *, seq_len: int, batch_size: int, packing: str = "concat"
) -> Iterator[TokenBatch]:
    """The whole split in order, each target once; with `concat` the last row is padded.

    Raises:
        UserError: the split has fewer than two tokens.
    """
    return batches_in_order(_pack(tokens, seq_len, packing, keep_rest=True), batch_size)


def batches_in_order(examples: Packing, batch_size: int) -> Iterator[TokenBatch]:
    """Each example once, in order."""
    for first in range(0, len(examples), batch_size):
        yield _make_batch(examples, np.arange(first, min(first + batch_size, len(examples))))


def _pack(tokens: TokenFile, seq_len: int, packing: str, *, keep_rest: bool) -> Packing:
    if packing == "concat":
        return Concatenated(tokens, seq_len, keep_rest=keep_rest)
    if packing == "documents":
        return BestFit(tokens, seq_len)
    raise UserError(f"no packing called {packing!r}", remedy="choose concat or documents")


def _make_batch(examples: Packing, sample_ids: np.ndarray) -> TokenBatch:
    rows = [examples[int(i)] for i in sample_ids]
    labels = _stack([row.labels for row in rows])
    packed = rows[0].doc_ids is not None
    return TokenBatch(
        input_ids=_stack([row.input_ids for row in rows]),
        labels=labels,
        num_targets=int((labels != IGNORE_INDEX).sum()),
        sample_ids=torch.from_numpy(sample_ids),
        doc_ids=_stack([row.doc_ids for row in rows]) if packed else None,
        positions=_stack([row.positions for row in rows]) if packed else None,
    )


def _stack(arrays: list) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))


@lru_cache(maxsize=4)
def _permutation(num_items: int, seed: int, epoch: int) -> Permutation:
    return Permutation(num_items, seed=seed, epoch=epoch)
