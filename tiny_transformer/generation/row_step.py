"""One token in each of many rows: products of several rows at once, and compiled functions between them.

Shapes: R rows, C hidden_size, H query heads, G key/value heads, D head_dim, F intermediate_size, V vocab_size, S slots
of the cache, N outputs and K inputs of a product.

A weight that is read once serves R rows, so the products become arithmetic. In bfloat16 the library is good at that; in
float32, and where integers have to be widened first, tiles of four weight rows and four texts, summed in registers, are
twice as fast as it. The plain engine loses most of its time between the products. Here the residual stream is float32;
what goes into a product of the library and comes out of it is bfloat16 (in compiled code uint16), all else float32.
`kernels` has the same step for one row, and what a row is made of.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import float32, njit, prange, uint32
from numba.extending import overload
from torch import Tensor
from torch.nn import functional

from tiny_transformer.generation.kernels import (
    PARALLEL,
    SERIAL,
    Layer,
    Matrix,
    Weights,
    attend_head,
    bits,
    narrow,
    normed,
    sixteenths,
    store,
    turn_heads,
    weight_kind,
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
    for r in prange(both.shape[0]):
        gate, up = both[r, :size], both[r, size:]
        for i in range(size):
            value = wide(gate[i])
            out[r, i] = narrow(value / (float32(1) + math.exp(-value)) * wide(up[i]), out)


def widen(matrix: Layer, n: int, out: np.ndarray) -> None:
    """Write row n of a matrix as float32, in the order of `ordered`; compiled for each kind of weight below."""
    raise NotImplementedError


def ordered(matrix: Layer, x: np.ndarray) -> np.ndarray:
    """Vectors (R, K) as `widen` orders a row: where a byte holds two integers, what first ones meet, then the rest."""
    raise NotImplementedError


@overload(widen)
def _widen(matrix, n, out):
    return {"float32": _copy, "int8": _widen_int8, "uint8": _widen_int4}[weight_kind(matrix)]


@overload(ordered)
def _ordered(matrix, x):
    return _evens_and_odds if weight_kind(matrix) == "uint8" else lambda matrix, x: x


def _copy(matrix, n, out):
    row = matrix.data[n]
    for k in range(out.shape[0]):
        out[k] = row[k]


def _widen_int8(matrix, n, out):
    row, scales = matrix.data[n], matrix.scale[n]
    if scales.shape[0] == 1:
        scale = scales[0]
        for k in range(out.shape[0]):
            out[k] = float32(row[k]) * scale
    elif matrix.group == 32:  # a shift instead of a division
        for k in range(out.shape[0]):
            out[k] = float32(row[k]) * scales[k >> 5]
    else:
        for k in range(out.shape[0]):
            out[k] = float32(row[k]) * scales[k // matrix.group]


def _widen_int4(matrix, n, out):
    row, scales, size = matrix.data[n], matrix.scale[n], matrix.group // 2
    first, second = out[: row.shape[0]], out[row.shape[0] :]
    if size == 16:  # groups of 32
        for k in range(row.shape[0]):
            pair, scale = uint32(row[k]), float32(16) * scales[k >> 4]
            first[k] = scale * sixteenths(pair << uint32(19))
            second[k] = scale * sixteenths(pair << uint32(15))
    else:
        for k in range(row.shape[0]):
            pair, scale = uint32(row[k]), float32(16) * scales[k // size]
            first[k] = scale * sixteenths(pair << uint32(19))
            second[k] = scale * sixteenths(pair << uint32(15))


def _evens_and_odds(matrix, x):
    half = matrix.data.shape[1]
    out = np.zeros((x.shape[0], 2 * half), np.float32)  # the last group may be shorter than the others
    for r in range(x.shape[0]):
        for k in range(x.shape[1]):
            out[r, (k & 1) * half + (k >> 1)] = x[r, k]
    return out


@njit(**PARALLEL)
def product_of_rows(matrix, layer, x, out):
    """Matrix times vectors: x (R, K) to out (R, N), R a multiple of four."""
    one, bias = Layer(matrix.data[layer], matrix.scale[layer], matrix.group), matrix.bias[layer]
    x = ordered(one, x)
    size, inputs = out.shape[1], x.shape[1]
    for block in prange((size + 3) // 4):
        rows, tile = np.empty((4, inputs), np.float32), np.empty((4, 4), np.float32)
        for j in range(4):  # where the last block is short, its last row stands for the missing ones
            widen(one, min(4 * block + j, size - 1), rows[j])
        for r in range(0, x.shape[0], 4):
            multiply(rows[0], rows[1], rows[2], rows[3], x[r : r + 4], tile)
            for j in range(min(4, size - 4 * block)):
                n = 4 * block + j
                for i in range(4):
                    out[r + i, n] = tile[i, j] + (bias[n] if bias.shape[0] > 0 else float32(0))


@njit(**SERIAL)
def multiply(a, b, c, d, x, tile):
    """Four rows (K,) of a matrix times four vectors x (4, K) to tile (4, 4): each number is loaded once for four
    products, and the sixteen sums stay in registers, which takes a name for each."""
    p, q, r, s = x[0], x[1], x[2], x[3]
    pa = pb = pc = pd = qa = qb = qc = qd = ra = rb = rc = rd = sa = sb = sc = sd = float32(0)
    for k in range(a.shape[0]):
        pa, pb, pc, pd = pa + p[k] * a[k], pb + p[k] * b[k], pc + p[k] * c[k], pd + p[k] * d[k]
        qa, qb, qc, qd = qa + q[k] * a[k], qb + q[k] * b[k], qc + q[k] * c[k], qd + q[k] * d[k]
        ra, rb, rc, rd = ra + r[k] * a[k], rb + r[k] * b[k], rc + r[k] * c[k], rd + r[k] * d[k]
        sa, sb, sc, sd = sa + s[k] * a[k], sb + s[k] * b[k], sc + s[k] * c[k], sd + s[k] * d[k]
    tile[0, 0], tile[0, 1], tile[0, 2], tile[0, 3] = pa, pb, pc, pd
    tile[1, 0], tile[1, 1], tile[1, 2], tile[1, 3] = qa, qb, qc, qd
    tile[2, 0], tile[2, 1], tile[2, 2], tile[2, 3] = ra, rb, rc, rd
    tile[3, 0], tile[3, 1], tile[3, 2], tile[3, 3] = sa, sb, sc, sd


class Products:
    """The products of a matrix in all layers with R rows at once: in bfloat16 by `F.linear`, else by `product_of_rows`.

    Args:
        matrix: of any kind.
        inputs: K.
        rows: R.

    Attributes:
        inputs: (R or a few more, K), to be filled before each product, as compiled code sees it.
    """

    def __init__(self, matrix: Matrix, inputs: int, rows: int) -> None:
        self._matrix, self._size = matrix, matrix.data.shape[1]
        self._is_bfloat16 = matrix.data.dtype == np.uint16
        dtype = torch.bfloat16 if self._is_bfloat16 else torch.float32
        self._x = torch.zeros(rows if self._is_bfloat16 else -(-rows // 4) * 4, inputs, dtype=dtype)
        self.inputs, self._rows = bits(self._x), rows
        if self._is_bfloat16:
            self._weights = torch.from_numpy(matrix.data).view(dtype)
            self._bias = torch.from_numpy(matrix.bias).to(dtype) if matrix.bias.shape[1] else None

    def of(self, layer: int) -> Tensor:
        """(R, N), of what `inputs` holds."""
        if self._is_bfloat16:
            return functional.linear(self._x, self._weights[layer], None if self._bias is None else self._bias[layer])
        out = torch.empty(len(self._x), self._size)
        product_of_rows(self._matrix, layer, self.inputs, out.numpy())
        return out[: self._rows]


class RowStep:
    """`kernels.step` for R rows.

    Args:
        weights: of any kind.
        rows: R.
        head_dim, groups: D and G.
    """

    def __init__(self, weights: Weights, rows: int, *, head_dim: int, groups: int) -> None:
        hidden, heads = weights.last.shape[1], weights.qkv.data.shape[1] - 2 * groups * head_dim
        inner = weights.gate_up.data.shape[1] // 2
        sizes = {"qkv": hidden, "out": heads, "gate_up": hidden, "down": inner, "head": hidden}
        self._weights, self.rows = weights, rows
        self._products = {name: Products(getattr(weights, name), size, rows) for name, size in sizes.items()}

    def __call__(self, x: Tensor, turns: Any, keys: Any, values: Any, lengths: Any) -> tuple[Tensor, Tensor]:
        """Hidden states (R, C) after the final norm and logits (R, V), float32, after one more token of each row.

        Args:
            x: (R, C) float32, their embeddings; overwritten.
            turns: cos and sin (S, D/2) of every position.
            keys, values: (L, R, G, S, D); they get one slot more.
            lengths: (R,) int64, what each row held before.
        """
        weights, eps, products = self._weights, self._weights.eps, self._products
        qkv, out, gate_up, down, head = products.values()
        stream = x.numpy()
        branch = np.zeros_like(down.inputs, shape=x.shape)  # nothing yet, of the type that the product `down` gives
        after = weights.after_attention[0][:0]  # the norm of the branch before; at first there is none
        for layer in range(len(keys)):
            add_and_norm(stream, branch, after, weights.before_attention[layer], eps, qkv.inputs)
            norms, memory = (weights.query[layer], weights.key[layer]), (keys[layer], values[layer])
            attend_rows(bits(qkv.of(layer)), norms, turns, memory, lengths, weights.windows[layer], eps, out.inputs)
            branch, after = bits(out.of(layer)), weights.after_attention[layer]
            add_and_norm(stream, branch, after, weights.before_mlp[layer], eps, gate_up.inputs)
            gate_rows(bits(gate_up.of(layer)), down.inputs)
            branch, after = bits(down.of(layer)), weights.after_mlp[layer]
        add_and_norm(stream, branch, after, weights.last[0], eps, head.inputs)
        hidden = torch.from_numpy(head.inputs)[: len(x)]
        hidden = hidden.view(torch.bfloat16) if hidden.dtype == torch.uint16 else hidden
        return hidden.float().clone(), head.of(0).float()
