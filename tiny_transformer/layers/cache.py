"""What a model remembers of the tokens it has read, so that the next token costs one token.

Shapes: B rows, T new tokens, S slots that are read, G key/value heads, D head_dim.

A cache is made by `model.make_cache`, owned by the caller, passed to each call and changed by it in place. Every row
has a length of its own, and the n-th token of a row stands in slot n: rows may be fed, rolled back and emptied apart
from each other. `ModelCache.admit` says once a call where the new tokens go (`Place`); the layers' caches follow.

`rollback` counts the tokens to *keep since the snapshot*, because a recurrent state (`layers/recurrent_cache.py`)
cannot forget its last token: it can only return to a copy and read the kept tokens again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from tiny_transformer.layers.delta_rule import count_beginnings

NO_GRADIENTS = "a cache carries no gradients: call the model under torch.no_grad() or inference_mode()"


class Place(NamedTuple):
    """Where the tokens of one call stand among all tokens of their rows.

    Attributes:
        positions: (1 or B, T), for RoPE.
        num_keys: S.
        doc_ids: (B, S) document of each key; None: all one document.
        query_index: (B, T) slot of each query; None: the queries are the last T of the S tokens.
        segments: (B, T) from `count_beginnings`; None: no document begins here.
        padding: (B, T) True for what fills a short row and is not kept; None: nothing does.
    """

    positions: torch.Tensor
    num_keys: int
    doc_ids: torch.Tensor | None
    query_index: torch.Tensor | None
    segments: torch.Tensor | None
    padding: torch.Tensor | None


def find_place(
    input_ids: torch.Tensor,
    positions: torch.Tensor | None,
    doc_ids: torch.Tensor | None,
    cache: ModelCache | None,
) -> Place:
    """Where the tokens (B, T) of a call stand, with a cache or without; arguments as in a model's `forward`."""
    if cache is not None:
        place = cache.admit(input_ids, doc_ids)
    else:
        T = input_ids.shape[1]
        segments = None if doc_ids is None else count_beginnings(doc_ids)
        place = Place(torch.arange(T, device=input_ids.device)[None], T, doc_ids, None, segments, None)
    return place if positions is None else place._replace(positions=positions)


class LayerCache:
    """What all layers' caches have; where a length says everything, there is nothing to do."""

    def expect(self, slots: slice | torch.Tensor, num_keys: int) -> None:
        """Note where the tokens of this call go, one slice for all rows or (B, T) slots, and that S slots are read."""

    def snapshot(self) -> None:
        """Remember the present state for `rollback`; an earlier snapshot is forgotten."""

    def rollback(self, kept: Sequence[int]) -> None:
        """Keep of each row the first so many tokens since the snapshot."""

    def reset(self, rows: Sequence[int]) -> None:
        """Forget everything of these rows."""

    def select(self, rows: torch.Tensor) -> Self:
        """A cache whose row i is row `rows[i]` of this one."""
        raise NotImplementedError

    def adopt(self, row: int, other: Self, length: int) -> None:
        """Let a row be the only row of another cache, which holds so many tokens."""
        raise NotImplementedError


class KeyValueCache(LayerCache):
    """The keys and values of one attention layer, in memory allocated once.

    Args:
        batch_size: B.
        num_key_value_heads: G.
        max_len: the most tokens a row can hold.
        head_dim: D.
        dtype, device: of the stored tensors.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        num_key_value_heads: int,
        max_len: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # One slot more than tokens: padding goes there. Zeros, as a short row's unused slots are read (and masked).
        shape = (batch_size, num_key_value_heads, max_len + 1, head_dim)
        self._key = torch.zeros(shape, dtype=dtype, device=device)
        self._value = torch.zeros(shape, dtype=dtype, device=device)
        self._slots: slice | torch.Tensor = slice(0, 0)
        self._num_keys = 0

    def expect(self, slots: slice | torch.Tensor, num_keys: int) -> None:
        self._slots, self._num_keys = slots, num_keys

    def append(self, *, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (B, G, T, D) of T new tokens and return those of all slots, (B, G, S, D), as views.

        Raises:
            ValueError: gradients are wanted (a cache that is overwritten cannot carry them).
        """
        if key.requires_grad:
            raise ValueError(NO_GRADIENTS)
        for stored, new in ((self._key, key), (self._value, value)):
            if isinstance(self._slots, slice):
                stored[:, :, self._slots] = new
            else:
                stored.scatter_(2, self._slots[:, None, :, None].expand_as(new), new)
        return self._key[:, :, : self._num_keys], self._value[:, :, : self._num_keys]

    @property
    def memory(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All stored keys and values, (B, G, max_len + 1, D); the last slot is for padding."""
        return self._key, self._value

    def move_into(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Go on in other memory, which holds the same."""
        self._key, self._value = key, value

    def select(self, rows: torch.Tensor) -> KeyValueCache:
        chosen = object.__new__(KeyValueCache)
        for name in ("_key", "_value"):
            old = getattr(self, name)
            new = old.new_zeros(len(rows), *old.shape[1:])
            new[:, :, : self._num_keys] = old[
                rows, :, : self._num_keys
            ]  # memory that no token has reached stays unused
            setattr(chosen, name, new)
        chosen.expect(slice(0, 0), self._num_keys)
        return chosen

    def adopt(self, row: int, other: KeyValueCache, length: int) -> None:
        self._key[row, :, :length] = other._key[0, :, :length]
        self._value[row, :, :length] = other._value[0, :, :length]


class ModelCache(Sequence[LayerCache]):
    """The caches of all layers of a model, how long each row is, and which document each token belongs to. Indexing
    gives a layer's cache.

    Args:
        layers: one cache per layer, in order.
        batch_size: B.
        max_len: the most tokens a row can hold.
        device: of the cached tensors.
        fixed: read all `max_len` slots in every call, whatever they hold, and keep the lengths in a tensor: then no
            shape and no number outside tensors changes from call to call, and a compiled step is compiled once. Inside
            compiled code nobody checks that the tokens fit, and that padding stands behind them: the caller must.
    """

    def __init__(
        self, layers: Sequence[LayerCache], *, batch_size: int, max_len: int, device: torch.device, fixed: bool = False
    ) -> None:
        self._layers = tuple(layers)
        self.batch_size, self.max_len, self._device = batch_size, max_len, device
        self._lengths = [0] * batch_size
        self._filled = torch.zeros(batch_size, dtype=torch.long, device=device) if fixed else None
        self._snapshot: list[int] | None = None
        self._doc_ids: torch.Tensor | None = None  # (B, max_len + 1), made when a second document first appears

    def __getitem__(self, index):
        return self._layers[index]

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return self._lengths if self._filled is None else self._filled.tolist()

    @lengths.setter
    def lengths(self, lengths: list[int]) -> None:
        self._lengths = lengths
        if self._filled is not None:
            self._filled.copy_(torch.tensor(lengths))

    @property
    def length(self) -> int:
        """Tokens that the longest row holds."""
        return max(self.lengths, default=0)

    @property
    def is_plain(self) -> bool:
        """Whether all rows are one document each, and nothing is `fixed`: a row's length then says everything."""
        return self._doc_ids is None and self._filled is None

    def gather_memory(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the keys of all layers into one tensor and their values into another, (L, B, G, max_len + 1, D), and go
        on in these. All layers must be `KeyValueCache`s of one shape."""
        layers = [layer for layer in self._layers if isinstance(layer, KeyValueCache)]
        keys, values = (torch.stack(parts) for parts in zip(*(layer.memory for layer in layers), strict=True))
        for layer, key, value in zip(layers, keys, values, strict=True):
            layer.move_into(key, value)
        return keys, values

    def admit(self, input_ids: torch.Tensor, doc_ids: torch.Tensor | None) -> Place:
        """Check that new tokens fit, and note where they stand, before any layer reads them.

        Args:
            input_ids: (B, T).
            doc_ids: (B, T); -1 is padding, which must stand behind a row's tokens and is not kept. None continues each
                row's last document (0 if none was ever given).

        Raises:
            ValueError: another batch size than the cache was made for, no room left, or padding before a token.
        """
        batch_size, T = input_ids.shape
        if batch_size != self.batch_size:
            raise ValueError(f"{batch_size} rows given to a cache made for {self.batch_size}")
        padding = None if doc_ids is None else doc_ids < 0
        if self._filled is not None:
            if not torch.compiler.is_compiling():
                self._lengths_after(T, padding)
            return self._admit_by_tensors(self._filled, T, doc_ids, padding, self.max_len)
        if padding is not None and not padding.any():
            padding = None
        before, after = self._lengths, self._lengths_after(T, padding)
        num_keys, start = max(after, default=T), max(before, default=0)
        self._lengths = after
        is_one_document = self._doc_ids is None and (doc_ids is None or not (doc_ids > 0).any())
        if padding is None and is_one_document and min(before, default=0) == start:
            for layer in self._layers:
                layer.expect(slice(start, num_keys), num_keys)
            positions = torch.arange(start, num_keys, device=self._device)[None]
            return Place(positions, num_keys, None, None, None, None)
        filled = torch.tensor(before, device=self._device)
        return self._admit_by_tensors(filled, T, None if is_one_document else doc_ids, padding, num_keys)

    def _lengths_after(self, T: int, padding: torch.Tensor | None) -> list[int]:
        """What each row will hold after T more tokens, padding not counted. Nothing has been changed yet, so a cache
        that refuses tokens stays as it was.

        Raises:
            ValueError: as in `admit`.
        """
        if padding is not None and (padding[:, :-1] & ~padding[:, 1:]).any():
            raise ValueError("with a cache, padding stands behind the tokens of a row, not before them")
        counts = [T] * self.batch_size if padding is None else (~padding).sum(dim=1).tolist()
        after = [n + new for n, new in zip(self.lengths, counts, strict=True)]
        if max(after, default=T) > self.max_len:
            raise ValueError(f"{max(after, default=T)} tokens do not fit into a cache made for {self.max_len}")
        return after

    def _admit_by_tensors(
        self,
        filled: torch.Tensor,
        T: int,
        doc_ids: torch.Tensor | None,
        padding: torch.Tensor | None,
        num_keys: int,
    ) -> Place:
        """`admit` for rows of different lengths `filled`, (B,), or with documents."""
        positions = filled[:, None] + torch.arange(T, device=self._device)  # (B, T)
        slots = positions if padding is None else torch.where(padding, self.max_len, positions)
        keys, segments = self._note_documents(filled, slots, doc_ids, padding)
        for layer in self._layers:
            layer.expect(slots, num_keys)
        if self._filled is not None:
            self._filled += T if padding is None else (~padding).sum(dim=1)
        return Place(
            positions,
            num_keys,
            None if keys is None else keys[:, :num_keys],
            positions.clamp(max=num_keys - 1),  # only padding is beyond; there too the softmax has something to see
            segments,
            padding,
        )

    def _note_documents(
        self,
        filled: torch.Tensor,
        slots: torch.Tensor,
        doc_ids: torch.Tensor | None,
        padding: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Documents of all slots, (B, max_len + 1), and the new tokens' segments; None where no documents are kept."""
        if self._doc_ids is None and doc_ids is None:
            return None, None
        if self._doc_ids is None:
            self._doc_ids = torch.zeros(self.batch_size, self.max_len + 1, dtype=torch.long, device=self._device)
        last = self._doc_ids.gather(1, (filled[:, None] - 1).clamp(min=0)).masked_fill(filled[:, None] == 0, 0)
        new = last.expand_as(slots) if doc_ids is None else doc_ids
        if padding is not None:  # no document begins there: it belongs to the row's last token
            ends = (~padding).sum(dim=1, keepdim=True) - 1
            new = torch.where(padding, torch.where(ends < 0, last, new.gather(1, ends.clamp(min=0))), new)
        self._doc_ids.scatter_(1, slots, new)
        return self._doc_ids, count_beginnings(new, last)

    def snapshot(self) -> None:
        """Remember the present state for `rollback`; an earlier snapshot is forgotten."""
        self._snapshot = list(self.lengths)
        for layer in self._layers:
            layer.snapshot()

    def rollback(self, n: int | Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Keep the first `n` tokens that each row has read since `snapshot`, and forget those after them.

        The snapshot stays: a later call with a smaller `n` goes further back.

        Args:
            n: one number for all, or one for each of `rows`.
            rows: which; None: all. The others stay as they are.

        Raises:
            ValueError: no snapshot was taken, or fewer than `n` tokens have been read since.
        """
        if self._snapshot is None:
            raise ValueError("rollback needs a snapshot() first")
        rows = range(self.batch_size) if rows is None else rows
        read = [length - start for length, start in zip(self.lengths, self._snapshot, strict=True)]
        kept = list(read)
        for row, number in zip(rows, [n] * len(rows) if isinstance(n, int) else n, strict=True):
            if not 0 <= number <= read[row]:
                raise ValueError(f"cannot keep {number} tokens: {read[row]} have been read since the snapshot")
            kept[row] = number
        if kept != read:
            for layer in self._layers:
                layer.rollback(kept)
            self.lengths = [start + new for start, new in zip(self._snapshot, kept, strict=True)]

    def reset(self, rows: Sequence[int] | int) -> None:
        """Empty these rows, as if they had read nothing, now and at the snapshot: another text can begin there."""
        rows = [rows] if isinstance(rows, int) else rows
        chosen = frozenset(range(self.batch_size)[row] for row in rows)
        for layer in self._layers:
            layer.reset(rows)
        self.lengths = [0 if row in chosen else n for row, n in enumerate(self.lengths)]
        if self._snapshot is not None:
            self._snapshot = [0 if row in chosen else n for row, n in enumerate(self._snapshot)]

    def adopt(self, row: int, other: ModelCache) -> None:
        """Let a row go on where the only row of another cache stands, of the same model: a text joins the others.

        Raises:
            ValueError: no room for its tokens; or a snapshot or documents, for which nobody has needed this.
        """
        if other.batch_size != 1 or other.length > self.max_len:
            raise ValueError(f"{other.batch_size} rows of {other.length} tokens do not fit into one of {self.max_len}")
        if self._snapshot is not None or self._doc_ids is not None or other._doc_ids is not None:
            raise ValueError("a row cannot join a cache with a snapshot or with documents")
        for mine, theirs in zip(self._layers, other, strict=True):
            mine.adopt(row, theirs, other.length)
        self.lengths = [other.length if index == row else n for index, n in enumerate(self.lengths)]

    def select(self, rows: Sequence[int]) -> ModelCache:
        """A new cache whose row i is row `rows[i]` of this one: `[0] * k` copies a prompt, read once, to k samples."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self._device)
        chosen = ModelCache(
            [layer.select(index) for layer in self._layers],
            batch_size=len(index),
            max_len=self.max_len,
            device=self._device,
            fixed=self._filled is not None,
        )
        chosen.lengths = [self.lengths[row] for row in rows]
        chosen._snapshot = None if self._snapshot is None else [self._snapshot[row] for row in rows]
        chosen._doc_ids = None if self._doc_ids is None else self._doc_ids[index]
        return chosen
