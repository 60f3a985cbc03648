"""From a run of tokens to training examples of `seq_len`: how documents share the rows of a batch.

- `concat`: documents stand one after another and the run is cut into windows. Nothing is wasted; a window may hold the
  end of one document and the beginning of the next, and tokens see across.
- `documents`: whole documents are packed into rows, each with its own `doc_ids` and `positions`, so that nothing is
  seen across documents. Each piece goes into the row that it fills best (best-fit decreasing, as in "Fewer Truncations
  Improve Language Modeling", Ding et al. 2024); only documents longer than a row are cut.

Both know every example from the start, so example i is found in O(1) and the order stays a function of its number.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from tiny_transformer.data.token_file import TokenFile
from tiny_transformer.errors import ExitCode, UserError

IGNORE_INDEX = -100


class Example(NamedTuple):
    """One row: arrays (T,) int64; `labels` are `IGNORE_INDEX` where nothing is to be predicted."""

    input_ids: np.ndarray
    labels: np.ndarray
    doc_ids: np.ndarray | None = None
    positions: np.ndarray | None = None


class Packing(Protocol):
    """A list of examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


class Tokens(Protocol):
    """A run of tokens with the places where its documents begin, such as a `TokenFile`."""

    path: Path

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1."""
        ...

    def documents(self) -> np.ndarray:
        """Where each document starts."""
        ...


class Concatenated:
    """Windows of `seq_len` + 1 tokens: example i is tokens i * seq_len .. i * seq_len + seq_len.

    Neighbours share a token, the last target of one and the first input of the other, so every token but the first is
    a target exactly once.

    Args:
        tokens: the split.
        seq_len: T.
        keep_rest: whether the last few tokens, fewer than a window, are an example too (padded), or left out.
    """

    def __init__(self, tokens: TokenFile, seq_len: int, *, keep_rest: bool) -> None:
        self._tokens, self._seq_len = tokens, seq_len
        num_targets = len(tokens) - 1
        self._num_examples = -(-num_targets // seq_len) if keep_rest else num_targets // seq_len
        if self._num_examples < 1:
            raise _too_short(tokens, seq_len)

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, i: int) -> Example:
        start = i * self._seq_len
        window = self._tokens.read(start, min(start + self._seq_len + 1, len(self._tokens))).astype(np.int64)
        if len(window) == self._seq_len + 1:
            return Example(window[:-1], window[1:])
        input_ids, labels = np.zeros(self._seq_len, np.int64), np.full(self._seq_len, IGNORE_INDEX)
        input_ids[: len(window) - 1], labels[: len(window) - 1] = window[:-1], window[1:]
        return Example(input_ids, labels)


class BestFit:
    """Whole documents packed into rows; every token but the first of each document is a target exactly once.

    A document longer than `seq_len` + 1 tokens is cut into pieces that overlap by one token; a piece counts as a
    document of its own. What is left of a row is padding: token 0 under a doc id of its own, nothing to predict.

    Args:
        tokens: the split, with its `.docs` file beside it.
        seq_len: T.
    """

    def __init__(self, tokens: Tokens, seq_len: int) -> None:
        self._tokens, self._seq_len = tokens, seq_len
        starts = tokens.documents()
        num_targets = np.diff(starts, append=len(tokens)) - 1
        self._starts, self._num_targets = _cut_long(starts, num_targets, seq_len)
        rows, num_rows = _best_fit(self._num_targets, seq_len)
        if num_rows < 1:
            raise _too_short(tokens, 1)
        # The pieces of row r, in the order of the file: self._pieces[bounds[r] : bounds[r + 1]].
        self._pieces = np.argsort(rows, kind="stable")
        self._bounds = np.searchsorted(rows[self._pieces], np.arange(num_rows + 1))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, i: int) -> Example:
        seq_len = self._seq_len
        input_ids, labels = np.zeros(seq_len, np.int64), np.full(seq_len, IGNORE_INDEX)
        doc_ids, positions = np.zeros(seq_len, np.int64), np.zeros(seq_len, np.int64)
        place = 0
        pieces = self._pieces[self._bounds[i] : self._bounds[i + 1]]
        for doc_id, piece in enumerate(pieces):
            start, size = int(self._starts[piece]), int(self._num_targets[piece])
            window = self._tokens.read(start, start + size + 1)
            here = slice(place, place + size)
            input_ids[here], labels[here] = window[:-1], self.targets(start, window)
            doc_ids[here], positions[here] = doc_id, np.arange(size)
            place += size
        doc_ids[place:], positions[place:] = len(pieces), np.arange(seq_len - place)
        return Example(input_ids, labels, doc_ids, positions)

    def targets(self, start: int, window: np.ndarray) -> np.ndarray:
        """The labels of a piece: what follows each of its tokens, which begin at token `start` of the split."""
        return window[1:]


def _cut_long(starts: np.ndarray, num_targets: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of at most `seq_len` targets, in file order: first token and number of targets of each."""
    has_target = num_targets > 0
    starts, num_targets = starts[has_target], num_targets[has_target]
    num_pieces = -(-num_targets // seq_len)
    first_piece = np.cumsum(num_pieces) - num_pieces
    place = np.arange(num_pieces.sum()) - np.repeat(first_piece, num_pieces)  # of the piece in its document
    offsets = place * seq_len
    sizes = np.minimum(np.repeat(num_targets, num_pieces) - offsets, seq_len)
    return np.repeat(starts, num_pieces) + offsets, sizes


def _best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Row of each piece, and the number of rows: the longest piece first, each into the fullest row that holds it.

    Open rows are kept by the space left in them; bit s of `spaces` says that there is one with space s, so the best
    fit is the lowest set bit at or above the piece's size.
    """
    rows = np.empty(len(sizes), dtype=np.int64)
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces, num_rows = 0, 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[space].pop()
            if not open_rows[space]:
                spaces &= ~(1 << space)
        else:
            space, row = capacity, num_rows
            num_rows += 1
        rows[piece] = row
        if space > size:
            open_rows[space - size].append(row)
            spaces |= 1 << (space - size)
    return rows, num_rows


def _too_short(tokens: Tokens, seq_len: int) -> UserError:
    return UserError(
        f"{tokens.path.name} has {len(tokens):,} tokens, fewer than one sequence of {seq_len} + 1",
        where=str(tokens.path),
        remedy="prepare more text, or train with a smaller data.seq_len",
        exit_code=ExitCode.BAD_DATA,
    )
