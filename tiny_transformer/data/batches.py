"""Batches of token windows as pure functions of the step: nothing to save, nothing to replay.

Update number `step` reads examples step * B .. step * B + B - 1 of an endless sequence. Example i of that sequence is
item i mod N of epoch i div N, and `order` says which window that is. So any number of processes, each taking its part
of the batch, sees the same examples in every step, and resuming needs the step and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from tiny_transformer.data.order import Permutation
from tiny_transformer.data.shards import TokenFile
from tiny_transformer.errors import ExitCode, UserError

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Batch:
    """Token windows with their targets; B rows of T tokens.

    Attributes:
        input_ids: (B, T) int64.
        labels: (B, T) int64, the token that follows each; `IGNORE_INDEX` where there is none.
        num_tokens: how many labels count.
        sample_ids: (B,) int64, which example of its epoch each row is.
        doc_ids: (B, T) int64 or None; attention must not cross a change of id.
        positions: (B, T) int64 or None, the place of each token in its document.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    num_tokens: int
    sample_ids: torch.Tensor
    doc_ids: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start to stop as a batch of their own."""
        part = self._each(lambda tensor: tensor[start:stop])
        return replace(part, num_tokens=int((part.labels != IGNORE_INDEX).sum()))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            labels=change(self.labels),
            sample_ids=change(self.sample_ids),
            doc_ids=None if self.doc_ids is None else change(self.doc_ids),
            positions=None if self.positions is None else change(self.positions),
        )


class Batches:
    """Training batches: windows of `seq_len` + 1 tokens, every token a target exactly once per epoch.

    Window i is tokens i * seq_len .. i * seq_len + seq_len; neighbours share one token, which is the last target of one
    and the first input of the other. Documents are joined by their end tokens. The last few tokens of the file, fewer
    than a window, are left out.

    Args:
        tokens: the split to read.
        seq_len: T.
        global_batch_size: rows of one step over all processes.
        seed: of the order.
        rank, world_size: which equal part of each batch this process takes.

    Raises:
        UserError: the split is shorter than one window.
    """

    def __init__(
        self,
        tokens: TokenFile,
        *,
        seq_len: int,
        global_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch_size % world_size:
            raise UserError(
                f"a batch of {global_batch_size} sequences cannot be shared equally by {world_size} processes",
                remedy="choose a batch size that is a multiple of the number of processes",
            )
        self.num_examples = (len(tokens) - 1) // seq_len
        if self.num_examples < 1:
            raise too_short(tokens, seq_len)
        self.seq_len, self.global_batch_size = seq_len, global_batch_size
        self._tokens, self._seed = tokens, seed
        self._local_rows = global_batch_size // world_size
        self._first_row = rank * self._local_rows

    @property
    def steps_per_epoch(self) -> float:
        """How many steps see every example once."""
        return self.num_examples / self.global_batch_size

    def epoch(self, step: int) -> float:
        """How many times the data has been seen before update number `step`."""
        return step * self.global_batch_size / self.num_examples

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of update number `step`, counted from 0."""
        sample_ids = self._sample_ids(step)
        rows = [self._window(int(i)) for i in sample_ids]
        return _make_batch(np.stack(rows), sample_ids)

    def micro_batches(self, step: int, micro_batch_size: int) -> Iterator[Batch]:
        """The same rows in the same order, `micro_batch_size` at a time; the last may have fewer."""
        batch = self.batch(step)
        for start in range(0, self._local_rows, micro_batch_size):
            yield batch.rows(start, min(start + micro_batch_size, self._local_rows))

    def _sample_ids(self, step: int) -> np.ndarray:
        first = step * self.global_batch_size + self._first_row
        places = np.arange(first, first + self._local_rows, dtype=np.int64)
        epochs, places = np.divmod(places, self.num_examples)
        sample_ids = np.empty_like(places)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            sample_ids[now] = _permutation(self.num_examples, self._seed, int(epoch))(places[now])
        return sample_ids

    def _window(self, i: int) -> np.ndarray:
        return self._tokens.read(i * self.seq_len, (i + 1) * self.seq_len + 1)


def evaluation_batches(tokens: TokenFile, *, seq_len: int, batch_size: int) -> Iterator[Batch]:
    """The whole split in order, every token but the first a target exactly once; the last window is padded.

    Raises:
        UserError: the split has fewer than two tokens.
    """
    if len(tokens) < 2:
        raise too_short(tokens, 1)
    num_windows = -(-(len(tokens) - 1) // seq_len)
    for first in range(0, num_windows, batch_size):
        sample_ids = np.arange(first, min(first + batch_size, num_windows), dtype=np.int64)
        rows = np.full((len(sample_ids), seq_len + 1), IGNORE_INDEX, dtype=np.int64)
        for row, i in zip(rows, sample_ids, strict=True):
            window = tokens.read(int(i) * seq_len, min((int(i) + 1) * seq_len + 1, len(tokens)))
            row[: len(window)] = window
        yield _make_batch(rows, sample_ids)


def too_short(tokens: TokenFile, seq_len: int) -> UserError:
    """The error for a split that has no whole window."""
    return UserError(
        f"{tokens.path.name} has {len(tokens):,} tokens, fewer than one sequence of {seq_len} + 1",
        where=str(tokens.path),
        remedy="prepare more text, or train with a smaller data.seq_len",
        exit_code=ExitCode.BAD_DATA,
    )


def _make_batch(rows: np.ndarray, sample_ids: np.ndarray) -> Batch:
    """Inputs and targets from windows (B, T + 1), in which `IGNORE_INDEX` marks the padding at the end."""
    rows = rows.astype(np.int64)
    labels = np.ascontiguousarray(rows[:, 1:])
    return Batch(
        input_ids=torch.from_numpy(np.maximum(rows[:, :-1], 0)),  # padding is read as token 0, and never scored
        labels=torch.from_numpy(labels),
        num_tokens=int((labels != IGNORE_INDEX).sum()),
        sample_ids=torch.from_numpy(sample_ids),
    )


@lru_cache(maxsize=4)
def _permutation(num_items: int, seed: int, epoch: int) -> Permutation:
    return Permutation(num_items, seed=seed, epoch=epoch)
