"""One token through a whole dense decoder, as one function that Numba compiles: no operator calls, no Python between.

Shapes: L layers, C hidden_size, H query heads, G key/value heads, D head_dim, F intermediate_size, V vocab_size, S
slots of the cache, n tokens in it; N outputs and K inputs of a matrix, M groups of a row.

At one token every matrix meets one vector, so a step takes as long as reading the weights does. `F.linear` reads them
at a fifth to a third of what the memory gives; a loop over a row, compiled, at most of it. Rows are shared out to
threads, each row is summed by one of them: the result does not depend on their number. Activations are float32
throughout; weights are float32, bfloat16 (as its upper 16 bits of a float32), or integers with scales as
`layers.linear` stores them.

`engines.choose_engine` decides who uses this. What it computes is `models/*/model.py` with one new token; the tests
compare them. Compiled code is kept beside this file or in the user's cache directory.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import float32, njit, prange, types, uint16, uint32
from numba.extending import intrinsic, overload
from torch import Tensor

PARALLEL: dict[str, Any] = {"parallel": True, "fastmath": True, "cache": True, "nogil": True, "error_model": "numpy"}
SERIAL: dict[str, Any] = {**PARALLEL, "parallel": False}


class Matrix(NamedTuple):
    """The same matrix of all layers.

    Attributes:
        data: (L, N, K) float32, or uint16 for bfloat16, or int8; or (L, N, K / 2) uint8, two integers a byte.
        scale: (L, N, M) float32 for integers; else empty.
        group: weights that share a scale.
        bias: (L, N) float32, or (L, 0).
    """

    data: np.ndarray
    scale: np.ndarray
    group: int
    bias: np.ndarray


class Weights(NamedTuple):
    """A dense decoder. Norms (L, size) are float32; (L, 0) where there is none.

    Attributes:
        head: what makes logits, L = 1.
        qkv, out, gate_up, down: (H + 2 G) D x C, C x H D, 2 F x C, C x F.
        before_attention, before_mlp: norms of what a branch reads.
        after_attention, after_mlp: norms of what a branch gives.
        query, key: norms of each head (D), or of all heads together (H D and G D).
        last: (1, C) the final norm.
    """

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    head: Matrix
    before_attention: np.ndarray
    after_attention: np.ndarray
    before_mlp: np.ndarray
    after_mlp: np.ndarray
    query: np.ndarray
    key: np.ndarray
    last: np.ndarray
    windows: np.ndarray  # (L,) how many tokens a query sees; all: a number larger than any text
    eps: float


# --- a row of a matrix times a vector


def _bitcast(source: Any, target: Any) -> Any:
    """A compiled function that reads the 32 bits of one type as another's."""

    def typed(context: Any, bits: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return intrinsic(typed)


from_bits = _bitcast(types.uint32, types.float32)
to_bits = _bitcast(types.float32, types.uint32)


class Layer(NamedTuple):
    """One layer of a `Matrix`: data (N, K) or (N, K / 2), scale (N, M).

    Rows are read as `data[n, k]` in one loop: a view of each row, or a loop for each group, costs as much as the row.
    """

    data: np.ndarray
    scale: np.ndarray
    group: int


def bits(tensor: Tensor) -> Any:
    """A tensor as compiled code reads it; bfloat16 as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def dot(matrix: Layer, n: int, x: np.ndarray) -> float:
    """The product of row n with a vector that `arranged` has arranged; compiled for each kind of weight below."""
    raise NotImplementedError


def arranged(matrix: Layer, x: np.ndarray) -> np.ndarray:
    """The vector (K,) as `dot` reads it; where a byte holds two integers, what first ones meet and what second ones."""
    raise NotImplementedError


@overload(dot, inline="always")
def _dot(matrix, n, x):
    return {"float32": _dot_float32, "uint16": _dot_bfloat16, "int8": _dot_int8, "uint8": _dot_int4}[
        weight_kind(matrix)
    ]


@overload(arranged)
def _arranged(matrix, x):
    return _halves if weight_kind(matrix) == "uint8" else lambda matrix, x: x


def weight_kind(matrix: Any) -> str:
    """The type of the numbers of a matrix, as Numba knows it."""
    return str(matrix.types[0].dtype)


def _dot_float32(matrix, n, x):
    total = float32(0)
    for k in range(x.shape[0]):
        total += matrix.data[n, k] * x[k]
    return total


def _dot_bfloat16(matrix, n, x):
    total = float32(0)
    for k in range(x.shape[0]):
        total += from_bits(uint32(matrix.data[n, k]) << uint32(16)) * x[k]
    return total


def _dot_int8(matrix, n, x):
    total = float32(0)
    if matrix.scale.shape[1] == 1:
        for k in range(x.shape[0]):
            total += float32(matrix.data[n, k]) * x[k]
        return total * matrix.scale[n, 0]
    if matrix.group == 32:  # a shift instead of a division
        for k in range(x.shape[0]):
            total += matrix.scale[n, k >> 5] * (float32(matrix.data[n, k]) * x[k])
        return total
    for k in range(x.shape[0]):
        total += matrix.scale[n, k // matrix.group] * (float32(matrix.data[n, k]) * x[k])
    return total


def _dot_int4(matrix, n, x):
    first, second = x
    size, total = matrix.group // 2, float32(0)
    if size == 16:  # groups of 32
        for k in range(first.shape[0]):
            pair = uint32(matrix.data[n, k])
            both = sixteenths(pair << uint32(19)) * first[k] + sixteenths(pair << uint32(15)) * second[k]
            total += matrix.scale[n, k >> 4] * both
    else:
        for k in range(first.shape[0]):
            pair = uint32(matrix.data[n, k])
            both = sixteenths(pair << uint32(19)) * first[k] + sixteenths(pair << uint32(15)) * second[k]
            total += matrix.scale[n, k // size] * both
    return float32(16) * total


@njit(**SERIAL)
def sixteenths(bits):
    """(q - 8) / 16, exactly, of a q (0 to 15) in bits 19 to 22: there it begins the fraction of a float32, 1 + q / 16.
    Half the work of converting an integer."""
    return from_bits((bits & uint32(0x780000)) | uint32(0x3F800000)) - float32(1.5)


def _halves(matrix, x):
    whole = np.zeros(2 * matrix.data.shape[1], np.float32)  # the last group may be shorter than the others
    whole[: x.shape[0]] = x
    return whole[0::2].copy(), whole[1::2].copy()


@njit(**PARALLEL)
def product(matrix, layer, x, out):
    """Matrix times vector: x (K,) to out (N,)."""
    one = Layer(matrix.data[layer], matrix.scale[layer], matrix.group)
    x, bias = arranged(one, x), matrix.bias[layer]
    for n in prange(out.shape[0]):
        out[n] = dot(one, n, x)
    if bias.shape[0] > 0:
        out += bias


@njit(**PARALLEL)
def gated_product(matrix, layer, x, both, out):
    """silu(gate x) * (up x), (F,): the first F rows are the gate's, the others the up projection's; both (2 F,) is
    room for them."""
    product(matrix, layer, x, both)
    size = out.shape[0]
    gate, up = both[:size], both[size:]
    for n in prange(size):
        out[n] = gate[n] / (float32(1) + math.exp(-gate[n])) * up[n]


# --- the rest of a layer


@njit(**SERIAL)
def normed(x, weight, eps):
    """RMSNorm of a vector (C,); the vector itself where there is no weight."""
    if weight.shape[0] == 0:
        return x
    squares = float32(0)
    for value in x:
        squares += value * value
    return x * (float32(1) / math.sqrt(squares / float32(x.shape[0]) + float32(eps))) * weight


@njit(**SERIAL)
def turn_heads(heads, weight, cos, sin, eps):
    """Norm and RoPE of queries or keys (heads, D), in place; cos and sin (D/2,) of the token's position."""
    half = heads.shape[1] // 2
    if weight.shape[0] > heads.shape[1]:
        heads[:] = normed(heads.copy().reshape(-1), weight, eps).reshape(heads.shape)
    for h in range(heads.shape[0]):
        if weight.shape[0] == heads.shape[1]:
            heads[h] = normed(heads[h], weight, eps)
        first, second = heads[h, :half], heads[h, half:]
        for j in range(half):
            one, other = first[j], second[j]
            first[j] = one * cos[j] - other * sin[j]
            second[j] = other * cos[j] + one * sin[j]


def wide(value: Any) -> float:
    """A number of the cache, float32 or the bits of a bfloat16, as float32."""
    raise NotImplementedError


def narrow(value: Any, like: Any) -> Any:
    """A float32 as the cache stores it; bfloat16 is rounded to nearest, to even between two."""
    raise NotImplementedError


@overload(wide)
def _wide(value):
    if value == types.uint16:
        return lambda value: from_bits(uint32(value) << uint32(16))
    return lambda value: value


@overload(narrow)
def _narrow(value, like):
    if like.dtype == types.uint16:

        def rounded(value, like):
            bits = to_bits(value)
            return uint16((bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16))

        return rounded
    return lambda value, like: value


@njit(**PARALLEL)
def attend(query, keys, values, first, n, scores, out):
    """softmax(query keys^T / sqrt(D)) values, (H, D), over the slots `first` to `n` of (G, S, D); scores is room."""
    heads = query.shape[0]
    for h in prange(heads):
        g = h // (heads // keys.shape[0])
        attend_head(query[h], keys[g], values[g], first, n, scores[h], out[h])


@njit(**SERIAL)
def attend_head(query, keys, values, first, n, scores, out):
    """One head of `attend`: query and out (D,), keys and values (S, D), scores (S,)."""
    size, largest, total = query.shape[0], float32(-np.inf), float32(0)
    scale = float32(1 / math.sqrt(size))
    for s in range(first, n):
        score = float32(0)
        for d in range(size):
            score += query[d] * wide(keys[s, d])
        scores[s] = score * scale
        largest = max(largest, scores[s])
    out[:] = 0
    for s in range(first, n):
        weight = math.exp(scores[s] - largest)
        total += weight
        for d in range(size):
            out[d] += weight * wide(values[s, d])
    out /= total


@njit(**SERIAL)
def store(new, stored, position):
    """Write new keys or values (G, D) into their slot of (G, S, D)."""
    for g in range(new.shape[0]):
        slot = stored[g, position]
        for d in range(new.shape[1]):
            slot[d] = narrow(new[g, d], slot)


# --- the step


@njit(**SERIAL)
def step(weights, x, cos, sin, keys, values, position, logits):
    """The decoder on one new token: x (C,) its embedding, changed into the hidden state after the final norm; keys and
    values (L, G, S, D) get one slot more, `position`; logits (V,) are written."""
    layers, groups, slots, size = keys.shape
    eps, heads = weights.eps, weights.qkv.data.shape[1] // size - 2 * groups
    qkv = np.empty((heads + 2 * groups, size), np.float32)
    mixed, scores = np.empty((heads, size), np.float32), np.empty((heads, slots), np.float32)
    both, branch = np.empty(weights.gate_up.data.shape[1], np.float32), np.empty_like(x)
    inner = np.empty(both.shape[0] // 2, np.float32)
    query, key, value = qkv[:heads], qkv[heads : heads + groups], qkv[heads + groups :]
    for layer in range(layers):
        product(weights.qkv, layer, normed(x, weights.before_attention[layer], eps), qkv.reshape(-1))
        turn_heads(query, weights.query[layer], cos, sin, eps)
        turn_heads(key, weights.key[layer], cos, sin, eps)
        store(key, keys[layer], position)
        store(value, values[layer], position)
        first = max(0, position + 1 - weights.windows[layer])
        attend(query, keys[layer], values[layer], first, position + 1, scores, mixed)
        product(weights.out, layer, mixed.reshape(-1), branch)
        x += normed(branch, weights.after_attention[layer], eps)
        gated_product(weights.gate_up, layer, normed(x, weights.before_mlp[layer], eps), both, inner)
        product(weights.down, layer, inner, branch)
        x += normed(branch, weights.after_mlp[layer], eps)
    x[:] = normed(x, weights.last[0], eps)
    product(weights.head, 0, x, logits)
