"""One token in each of many rows: the matrix products are the library's, what stands between them is compiled.

Shapes: R rows, C hidden_size, H query heads, G key/value heads, D head_dim, F intermediate_size, V vocab_size, S slots
of the cache, N outputs of a product.

A weight that is read once serves R rows, so the products become arithmetic, and `F.linear` is good at that. The plain
engine loses its time between them: sixteen rows of 36M parameters spend two thirds of a step there. Here the residual
stream is float32; what goes into a product and comes out of it has the weights' type, float32 or bfloat16 (in compiled
code uint16). `kernels` has the same step for one row, and what a row is made of.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import float32, njit, prange
from torch import Tensor
from torch.nn import functional

from tiny_transformer.generation.kernels import (
    PARALLEL,
    SERIAL,
    Matrix,
    Weights,
    attend_head,
    narrow,
    normed,
    store,
    turn_heads,
    wide,
)


@njit(**SERIAL)
def widened(values):
    """A vector in float32."""
    out = np.empty(values.shape[0], np.float32)
    for i in range(values.shape[0]):
        out[i] = wide(values[i])
    return out


@njit(**PARALLEL)
def add_and_norm(x, branch, after, before, eps, out):
    """x += norm(branch), with the norm of what a branch gives, `after`; out = norm(x), with `before`. All (R, C)."""
    for r in prange(x.shape[0]):
        x[r] += normed(widened(branch[r]), after, eps)
        row = normed(x[r], before, eps)
        for i in range(row.shape[0]):
            out[r, i] = narrow(row[i], out)


@njit(**PARALLEL)
def attend_rows(qkv, norms, turns, memory, lengths, window, eps, out):
    """Each row's new token stores its key and value, and looks back: (R, (H + 2 G) D) to (R, H D).

    norms are those of queries and keys; turns cos and sin (S, D/2); memory the layer's keys and values (R, G, S, D);
    lengths (R,) what each row held before.
    """
    keys, values = memory
    groups, slots, size = keys.shape[1:]
    heads = qkv.shape[1] // size - 2 * groups
    for r in prange(qkv.shape[0]):
        position, row = lengths[r], widened(qkv[r]).reshape(-1, size)
        query, key = row[:heads], row[heads : heads + groups]
        turn_heads(query, norms[0], turns[0][position], turns[1][position], eps)
        turn_heads(key, norms[1], turns[0][position], turns[1][position], eps)
        store(key, keys[r], position)
        store(row[heads + groups :], values[r], position)
        scores, mixed = np.empty(slots, np.float32), np.empty(size, np.float32)
        for h in range(heads):
            g, first = h // (heads // groups), max(0, position + 1 - window)
            attend_head(query[h], keys[r, g], values[r, g], first, position + 1, scores, mixed)
            place = out[r, h * size : (h + 1) * size]
            for d in range(size):
                place[d] = narrow(mixed[d], place)


@njit(**PARALLEL)
def gate_rows(both, out):
    """silu(gate) * up, (R, 2 F) to (R, F)."""
    size = out.shape[1]
    for r in prange(out.shape[0]):
        gate, up = both[r, :size], both[r, size:]
        for i in range(size):
            value = wide(gate[i])
            out[r, i] = narrow(value / (float32(1) + math.exp(-value)) * wide(up[i]), out)


class Products:
    """The products of a matrix in all layers with R rows at once, as `F.linear` computes them.

    Args:
        matrix: float32 or bfloat16.
    """

    def __init__(self, matrix: Matrix) -> None:
        weights = torch.from_numpy(matrix.data)
        self._dtype = torch.bfloat16 if weights.dtype == torch.uint16 else torch.float32
        self._weights = weights.view(self._dtype)
        self._bias = torch.from_numpy(matrix.bias).to(self._dtype) if matrix.bias.shape[1] else None

    def room(self, rows: int) -> tuple[Tensor, Any]:
        """What a product reads, (R, K), as a tensor and as compiled code sees it."""
        inputs = torch.empty(rows, self._weights.shape[2], dtype=self._dtype)
        return inputs, bits(inputs)

    def __call__(self, layer: int, x: Tensor) -> Any:
        """(R, K) to (R, N), for compiled code."""
        return bits(self.of(layer, x))

    def of(self, layer: int, x: Tensor) -> Tensor:
        """(R, K) to (R, N)."""
        return functional.linear(x, self._weights[layer], None if self._bias is None else self._bias[layer])


def bits(tensor: Tensor) -> Any:
    """A tensor as compiled code reads it; bfloat16 as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class RowStep:
    """`kernels.step` for R rows.

    Args:
        weights: float32 or bfloat16.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._products = {name: Products(getattr(weights, name)) for name in ("qkv", "out", "gate_up", "down", "head")}

    def __call__(self, x: Tensor, turns: Any, keys: Any, values: Any, lengths: Any) -> tuple[Tensor, Tensor]:
        """Hidden states (R, C) after the final norm and logits (R, V), float32, after one more token of each row.

        Args:
            x: (R, C) float32, their embeddings; overwritten.
            turns: cos and sin (S, D/2) of every position.
            keys, values: (L, R, G, S, D); they get one slot more.
            lengths: (R,) int64, what each row held before.
        """
        weights, eps, products = self._weights, self._weights.eps, self._products
        (normed_x, to_normed), (mixed, to_mixed), (inner, to_inner) = (
            products[name].room(len(x)) for name in ("qkv", "out", "down")
        )
        stream, branch = x.numpy(), bits(torch.zeros_like(normed_x))
        after = weights.after_attention[0][:0]  # the norm of the branch before; at first there is none
        for layer in range(len(keys)):
            add_and_norm(stream, branch, after, weights.before_attention[layer], eps, to_normed)
            qkv = products["qkv"](layer, normed_x)
            norms, memory = (weights.query[layer], weights.key[layer]), (keys[layer], values[layer])
            attend_rows(qkv, norms, turns, memory, lengths, weights.windows[layer], eps, to_mixed)
            branch, after = products["out"](layer, mixed), weights.after_attention[layer]
            add_and_norm(stream, branch, after, weights.before_mlp[layer], eps, to_normed)
            gate_rows(products["gate_up"](layer, normed_x), to_inner)
            branch, after = products["down"](layer, inner), weights.after_mlp[layer]
        add_and_norm(stream, branch, after, weights.last[0], eps, to_normed)
        return normed_x.float(), products["head"].of(0, normed_x).float()
