"""Causal attention in blocks of queries, for a CPU; `attention.attend_slowly` is its slow readable twin.

Shapes: B rows, T tokens, H query heads, G key/value heads, R = H/G query heads to each of them, D head_dim; a block has
N queries in b of the rows, which see M keys: from the first that one of them may see to the block's own end.

On a CPU the gradient of the fused operator is a third of a training step. Here each block of queries is multiplied with
its M keys only, so most of the upper triangle, and what a window or the borders of documents hide from a whole block,
is never computed; the R query heads of a key/value head are rows of one product. The gradient of O = softmax(Q K^T) V,
where Q is scaled already, is written out. With W the weights and dO the gradient of O:

    dV = W^T dO,   dW = dO V^T,   dS = W (dW - rowsum(W dW)),   dQ = dS K,   dK = dS^T Q

Source: Dao et al., "FlashAttention", 2022, appendix B; here a block has whole rows of weights, not tiles of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiny_transformer.layers.attention import attend

KEPT_BYTES = 32 * 2**20  # weights of more than this in one call are computed anew for the gradient
FAR_LESS = 0.6  # rows go one by one where documents of their own leave no more than this share of the work


def attend_in_blocks(*, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """What `attend` computes, faster where a CPU has to find the gradient; all else is handed to `attend`.

    Arguments, result and errors are those of `attend`. The same share of the weights is dropped, but not the same ones.
    """
    if not torch.is_grad_enabled() or query.device.type != "cpu" or query.shape[2] != key.shape[2]:
        return attend(query=query, key=key, value=value, mask=mask, dropout=dropout)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    seed = torch.randint(2**62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    query = query * (1 / math.sqrt(query.shape[-1]))
    return _attend(query.to(dtype), key.to(dtype), value.to(dtype), mask, dropout, seed)[0]


def read_in_blocks(*, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """What `attend` computes, faster where a CPU reads a prompt in bf16; all else is handed to `attend`.

    Arguments, result and errors are those of `attend`. It carries no gradient.
    """
    is_prompt = query.shape[2] == key.shape[2] > block_size(1, 1, query.dtype)
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or not is_prompt or dropout:
        return attend(query=query, key=key, value=value, mask=mask, dropout=dropout)
    query = query * (1 / math.sqrt(query.shape[-1]))
    call = _Call(query, key, value, mask, 0.0, torch.zeros((), dtype=torch.int64))
    return call.mixed([None] * len(call.blocks))


def block_size(num_tokens: int, head_dim: int, dtype: torch.dtype) -> int:
    """N. Small blocks compute less above the diagonal, large ones are better products; measured in docs/LOG.md."""
    return 128 if dtype.itemsize == 2 and num_tokens * head_dim >= 2**15 else 64


class Block(NamedTuple):
    """Some rows, their queries `begin` to `end`, and the keys `first` to `end`."""

    rows: slice
    begin: int
    end: int
    first: int

    @property
    def num_pairs(self) -> int:
        """N M: of one head in one row."""
        return (self.end - self.begin) * (self.end - self.first)


def cut(shape: torch.Size, dtype: torch.dtype, mask: Tensor | None) -> list[Block]:
    """The blocks of queries (B, H, T, D). Rows that may see different keys go together, with the keys that one of them
    may see, unless going one by one is far less work."""
    B, _, T, D = shape
    size = block_size(T, D, dtype)
    spans = [(begin, min(begin + size, T)) for begin in range(0, T, size)]
    if mask is None:
        return [Block(slice(0, B), begin, end, 0) for begin, end in spans]
    is_seen = torch.stack([mask[:, 0, begin:end].view(torch.uint8).amax(1) for begin, end in spans])  # (blocks, ., S)
    first = is_seen.argmax(-1)  # (blocks, B or 1), of equal ones the first
    least = first.amin(1).tolist()
    together = [Block(slice(0, B), *span, least[i]) for i, span in enumerate(spans)]
    if first.shape[1] == 1:
        return together
    alone = [
        Block(slice(b, b + 1), *spans[i], column) for b in range(B) for i, column in enumerate(first[:, b].tolist())
    ]
    work_of_all = B * sum(block.num_pairs for block in together)
    return alone if sum(block.num_pairs for block in alone) <= FAR_LESS * work_of_all else together


class _Call:
    """One call of attention, block by block. Heads are (B, G, R, T, D) for queries and (B, G, T, D) for keys."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, seed: Tensor
    ) -> None:
        self.groups, self.mask, self.dropout = key.shape[1], mask, dropout
        self.query, self.key, self.value = self.by_group(query).contiguous(), key.contiguous(), value.contiguous()
        self.blocks = cut(query.shape, query.dtype, mask)
        self._generator = torch.Generator().manual_seed(int(seed)) if dropout else None
        size = self.blocks[0].end
        self._above = query.new_full((size, size), -math.inf).triu(1)

    def by_group(self, heads: Tensor) -> Tensor:
        """(B, H, T, D) to (B, G, R, T, D)."""
        return heads.unflatten(1, (self.groups, -1))

    def weights(self, block: Block, out: Tensor | None = None) -> Tensor:
        """The softmax weights of a block, (b, G, RN, M)."""
        scores = queries_of(self.query, block) @ keys_of(self.key, block).mT  # (b, G, RN, M)
        by_query = scores.unflatten(2, (-1, block.end - block.begin))  # (b, G, R, N, M)
        if self.mask is None:
            by_query[..., block.begin :] += self._above[: by_query.shape[3], : by_query.shape[3]]
        else:
            mask = self.mask[
                block.rows, :, None, block.begin : block.end, block.first : block.end
            ]  # (b or 1, 1, 1, N, M)
            by_query += scores.new_zeros(mask.shape).masked_fill_(~mask, -math.inf)
        return torch.softmax(scores, -1, out=out)

    def mixed(self, spaces: Iterable[Tensor | None]) -> Tensor:
        """What is mixed, (B, H, T, D); the weights of each block are left in its space, where it has one."""
        mixed = _heads_like(self.query.flatten(1, 2), self.value.shape[-1])
        by_group = self.by_group(mixed)
        for block, space in zip(self.blocks, spaces, strict=True):
            weights = self.weights(block, space)
            if self.dropout:
                weights = weights * self.kept(weights)
            part = weights @ keys_of(self.value, block)  # (b, G, RN, D)
            by_group[block.rows, :, :, block.begin : block.end] = part.unflatten(2, (-1, block.end - block.begin))
        return mixed

    def kept(self, weights: Tensor) -> Tensor:
        """What dropout multiplies the weights of the next block by: 0, or 1 / (1 - dropout)."""
        drawn = torch.empty_like(weights).bernoulli_(1 - self.dropout, generator=self._generator)
        return drawn.div_(1 - self.dropout)


def queries_of(heads: Tensor, block: Block) -> Tensor:
    """From (B, G, R, T, D) a block's queries, one matrix for each key/value head: (b, G, RN, D)."""
    return heads[block.rows, :, :, block.begin : block.end].flatten(2, 3)


def keys_of(heads: Tensor, block: Block) -> Tensor:
    """From (B, G, T, D) what a block sees: (b, G, M, D)."""
    return heads[block.rows, :, block.first : block.end]


def _num_kept(query: Tensor) -> int:
    """How many weights a call keeps for its gradient: those below its blocks' ends, or none where they are many."""
    blocks = cut(query.shape, query.dtype, None)
    number = query.shape[0] * query.shape[1] * sum(block.num_pairs for block in blocks)
    return number if number * query.element_size() <= KEPT_BYTES else 0


def _spaces(kept: Tensor, call: _Call) -> Iterator[Tensor | None]:
    """Where each block's weights (b, G, RN, M) are kept; None where they are not."""
    begin = 0
    for block in call.blocks:
        rows = call.query[block.rows]
        shape = (len(rows), call.groups, rows.shape[2] * (block.end - block.begin), block.end - block.first)
        end = begin + math.prod(shape)
        yield kept[begin:end].view(shape) if kept.numel() else None
        begin = end


def _heads_like(heads: Tensor, head_dim: int | None = None) -> Tensor:
    """Empty, (B, H, T, D), and in memory as a linear layer takes and gives it: heads inside tokens."""
    B, H, T, D = heads.shape
    return heads.new_empty(B, T, H, head_dim or D).transpose(1, 2)


@torch.library.custom_op("tiny_transformer::attend_in_blocks", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """What is mixed (B, H, T, D), and the weights kept for the gradient. An operator of its own, so that a compiler
    takes the loop as it is; `query` is scaled."""
    call = _Call(query, key, value, mask, dropout, seed)
    kept = query.new_empty(_num_kept(query))
    return call.mixed(_spaces(kept, call)), kept


@torch.library.custom_op("tiny_transformer::attend_in_blocks_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    seed: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; sums over blocks are float32 at least."""
    call = _Call(query, key, value, mask, dropout, seed)
    grad, grad_query = call.by_group(grad), _heads_like(query)
    by_group = call.by_group(grad_query)
    wide = torch.promote_types(query.dtype, torch.float32)
    grad_key, grad_value = (torch.zeros(heads.shape, dtype=wide) for heads in (key, value))
    for block, space in zip(call.blocks, _spaces(kept, call), strict=True):
        weights = call.weights(block) if space is None else space  # (b, G, RN, M)
        grad_mixed = queries_of(grad, block)  # (b, G, RN, D)
        grad_weights = grad_mixed @ keys_of(call.value, block).mT  # (b, G, RN, M)
        used = weights
        if dropout:
            multiplier = call.kept(weights)
            used, grad_weights = weights * multiplier, grad_weights * multiplier
        keys_of(grad_value, block).add_(used.mT @ grad_mixed)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        part = grad_scores @ keys_of(call.key, block)  # (b, G, RN, D)
        by_group[block.rows, :, :, block.begin : block.end] = part.unflatten(2, (-1, block.end - block.begin))
        keys_of(grad_key, block).add_(grad_scores.mT @ queries_of(call.query, block))
    return grad_query, _heads_like(key).copy_(grad_key), _heads_like(value).copy_(grad_value)


@_attend.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    return _heads_like(query, value.shape[-1]), query.new_empty(_num_kept(query))


@_attend_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _heads_like(query), _heads_like(key), _heads_like(value)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, mask, ctx.dropout, seed = inputs
    ctx.save_for_backward(query, key, value, mask, seed, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, mask, seed, kept = ctx.saved_tensors
    return *_attend_backward(grad, query, key, value, mask, ctx.dropout, seed, kept), None, None, None


_attend.register_autograd(_gradients, setup_context=_remember)
