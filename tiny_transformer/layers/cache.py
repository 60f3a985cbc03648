"""What a model remembers of the tokens it has read, so that the next token costs one token.

Shapes: B batch, T new tokens, S all tokens so far, G key/value heads, D head_dim; of a recurrent layer H value heads,
Dk and Dv width of a key and a value, C convolved channels, K taps.

A cache is made by `model.make_cache`, owned by the caller, passed to each call and changed by it in place. Every kind
of layer cache has the same four members (`length`, `append`, `snapshot`, `rollback`); only `append`'s arguments depend
on the layer. `rollback` counts the tokens to *keep since the snapshot*, because a recurrent state cannot forget its
last token: it can only return to a copy and read the kept tokens again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tiny_transformer.layers.convolution import next_window
from tiny_transformer.layers.delta_rule import gated_delta_rule


class KeyValueCache:
    """The keys and values of one attention layer, in memory allocated once.

    Args:
        batch_size: B.
        num_key_value_heads: G.
        max_len: the most tokens it can hold.
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
        shape = (batch_size, num_key_value_heads, max_len, head_dim)
        self._key = torch.empty(shape, dtype=dtype, device=device)
        self._value = torch.empty(shape, dtype=dtype, device=device)
        self._snapshot_length: int | None = None
        self.length = 0

    def append(self, *, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (B, G, T, D) of T new tokens and return those of all tokens, (B, G, S, D), as views.

        Raises:
            ValueError: no room left, or gradients are wanted (a cache that is overwritten cannot carry them).
        """
        end = self.length + key.shape[2]
        if end > self._key.shape[2]:
            raise ValueError(f"{end} tokens do not fit into a cache made for {self._key.shape[2]}")
        if key.requires_grad:
            raise ValueError("a cache carries no gradients: call the model under torch.no_grad() or inference_mode()")
        self._key[:, :, self.length : end] = key
        self._value[:, :, self.length : end] = value
        self.length = end
        return self._key[:, :, :end], self._value[:, :, :end]

    def snapshot(self) -> None:
        """Remember the present state for `rollback`; an earlier snapshot is forgotten."""
        self._snapshot_length = self.length

    def rollback(self, n: int) -> None:
        """Keep the first `n` tokens read since `snapshot` and forget those after them.

        The snapshot stays: a later call with a smaller `n` goes further back.

        Raises:
            ValueError: no snapshot was taken, or fewer than `n` tokens have been read since.
        """
        if self._snapshot_length is None:
            raise ValueError("rollback needs a snapshot() first")
        read = self.length - self._snapshot_length
        if not 0 <= n <= read:
            raise ValueError(f"cannot keep {n} tokens: {read} have been read since the snapshot")
        self.length = self._snapshot_length + n


class DeltaInputs(NamedTuple):
    """What T tokens bring to a recurrent layer: `channels` (B, T, C) before the convolution, the rest as
    `layers.delta_rule.gated_delta_rule` takes it."""

    channels: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    log_decay: torch.Tensor
    beta: torch.Tensor
    segments: torch.Tensor | None

    def first(self, n: int) -> DeltaInputs:
        """The first `n` of the tokens, or all if there are fewer."""
        segments = None if self.segments is None else self.segments[:, :n]
        return DeltaInputs(*(x[:, :n] for x in self[:-1] if x is not None), segments)


class RecurrentCache:
    """The memory of one layer with a delta rule: the same size after any number of tokens.

    After a `snapshot` the inputs of the tokens are kept too, until the next snapshot: `rollback` reads them again.

    Attributes:
        window: (B, K - 1, C) the last inputs of the convolution, zeros where another document stood.
        state: (B, H, Dk, Dv) float32.
        length: tokens read.
    """

    def __init__(self, window: torch.Tensor, state: torch.Tensor) -> None:
        self.window, self.state, self.length = window, state, 0
        self._snapshot: tuple[torch.Tensor, torch.Tensor, int] | None = None
        self._since: list[DeltaInputs] = []

    def append(self, inputs: DeltaInputs, *, state: torch.Tensor) -> None:
        """Take in T new tokens, and the state they lead to.

        Raises:
            ValueError: gradients are wanted.
        """
        if state.requires_grad:
            raise ValueError("a cache carries no gradients: call the model under torch.no_grad() or inference_mode()")
        if self._snapshot is not None:
            self._since.append(inputs)
        self.window = next_window(inputs.channels, window=self.window, segments=inputs.segments)
        self.state = state
        self.length += inputs.channels.shape[1]

    def snapshot(self) -> None:
        """Remember the present state for `rollback`; an earlier snapshot is forgotten."""
        self._snapshot, self._since = (self.window, self.state, self.length), []

    def rollback(self, n: int) -> None:
        """Keep the first `n` tokens read since `snapshot`, forget the rest. See `KeyValueCache.rollback`."""
        if self._snapshot is None:
            raise ValueError("rollback needs a snapshot() first")
        window, state, length = self._snapshot
        if not 0 <= n <= self.length - length:
            raise ValueError(f"cannot keep {n} tokens: {self.length - length} have been read since the snapshot")
        again, self._since = self._since, []
        self.window, self.state, self.length = window, state, length
        for inputs in again:
            kept = inputs.first(n - (self.length - length))
            if kept.channels.shape[1]:
                _, state = gated_delta_rule(
                    query=kept.key,
                    key=kept.key,
                    value=kept.value,
                    log_decay=kept.log_decay,
                    beta=kept.beta,
                    state=self.state,
                    segments=kept.segments,
                )
                self.append(kept, state=state)


class ModelCache(Sequence[Any]):
    """The caches of all layers of a model, and which document each token belongs to. Indexing gives a layer's cache.

    Args:
        layers: one cache per layer, in order.
        batch_size: B.
        max_len: the most tokens it can hold.
        device: of the document ids.
    """

    def __init__(
        self,
        layers: Sequence[KeyValueCache | RecurrentCache],
        *,
        batch_size: int,
        max_len: int,
        device: torch.device,
    ) -> None:
        self._layers = tuple(layers)
        self._doc_ids: torch.Tensor | None = None  # (B, max_len), made when a caller first gives some
        self._device = device
        self.batch_size, self.max_len = batch_size, max_len

    def __getitem__(self, index):
        return self._layers[index]

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def length(self) -> int:
        """Tokens read so far, in each row (padding included)."""
        return self._layers[0].length

    def admit(self, input_ids: torch.Tensor, doc_ids: torch.Tensor | None) -> torch.Tensor | None:
        """Check that new tokens fit and note their documents, before any layer reads them.

        Args:
            input_ids: (B, T).
            doc_ids: (B, T), -1 for padding; None continues each row's last document (0 if none was ever given).

        Returns:
            (B, S) documents of all tokens, old and new; None when no caller has ever given any.

        Raises:
            ValueError: another batch size than the cache was made for, or no room left.
        """
        batch_size, num_tokens = input_ids.shape
        start, end = self.length, self.length + num_tokens
        if batch_size != self.batch_size:
            raise ValueError(f"{batch_size} rows given to a cache made for {self.batch_size}")
        if end > self.max_len:
            raise ValueError(f"{end} tokens do not fit into a cache made for {self.max_len}")
        if doc_ids is not None and self._doc_ids is None:
            self._doc_ids = torch.zeros(batch_size, self.max_len, dtype=torch.long, device=self._device)
        if self._doc_ids is None:
            return None
        if doc_ids is None:
            doc_ids = self._doc_ids[:, start - 1 : start] if start else torch.zeros_like(input_ids)
        self._doc_ids[:, start:end] = doc_ids
        return self._doc_ids[:, :end]

    def snapshot(self) -> None:
        """Remember the present state for `rollback`; an earlier snapshot is forgotten."""
        for layer in self._layers:
            layer.snapshot()

    def rollback(self, n: int) -> None:
        """Keep the first `n` tokens read since `snapshot`, forget the rest. See `KeyValueCache.rollback`."""
        for layer in self._layers:
            layer.rollback(n)
