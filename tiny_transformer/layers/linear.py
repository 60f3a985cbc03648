"""Layers that stand in the place of `nn.Linear` and `nn.Embedding`: weights in 8 or 4 bits, or frozen with a low-rank
addition.

Shapes: N outputs, K inputs, g weights of a group, M = ceil(K / g) groups of a row, r rank; ... any leading axes.

A quantized weight is an integer times the scale of its group:  W[n, k] = Q[n, k] s[n, k // g].  Q is symmetric: 8 bits
hold -127 to 127, 4 bits hold -8 to 7, two to a byte. Four bits waste none of their range: the weight farthest from zero
becomes -8, so a scale may be negative. Groups as long as a row are one scale a row.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Bits = Literal[8, 4]


def quantize(weight: torch.Tensor, *, bits: Bits, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to the nearest integers of its groups.

    Args:
        weight: (N, K), finite.
        bits: of an integer.
        group_size: g. The last group of a row may be shorter.

    Returns:
        Q (N, M g) int8, zeros where a short group ends, and the scales (N, M): float32 with 8 bits; with 4, where they
        are many, float16.
    """
    groups = functional.pad(weight.float(), (0, -weight.shape[1] % group_size)).unflatten(1, (-1, group_size))
    extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))  # (N, M, 1), with its sign
    scale = extreme.abs() / 127 if bits == 8 else (extreme / -8).half().float()
    lowest, highest = (-127, 127) if bits == 8 else (-8, 7)
    integers = (groups / scale.masked_fill(scale == 0, 1)).round().clamp(lowest, highest)
    return integers.flatten(1).to(torch.int8), scale[..., 0].to(torch.float32 if bits == 8 else torch.float16)


def pack(integers: torch.Tensor) -> torch.Tensor:
    """Integers -8 to 7, (N, K) with K even, as (N, K / 2) uint8: the first of a pair in the lower half of a byte."""
    low, high = (integers + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
    return low | high << 4


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """What `pack` packed, (N, K) int8."""
    return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1).to(torch.int8) - 8


class QuantizedWeight(nn.Module):
    """A matrix W (N, K) in 8 or 4 bits. It does not learn: the integers are buffers, and so are the scales.

    Args:
        rows, columns: N and K.
        bits: of a weight.
        group_size: g, even with 4 bits; None: one group a row.
        device: where everything is. Nothing is set: see `set_to`.

    Attributes:
        quantized: (N, M g) int8, or (N, M g / 2) uint8 as `pack` makes it.
        scale: (N, M). Keeps its type when the model is cast: rounding the scales would move every weight.
    """

    quantized: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, rows: int, columns: int, *, bits: Bits, group_size: int | None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.bits, self.group_size, self.columns = bits, group_size, columns
        self.group_width = group_size or columns + columns % 2
        if bits not in (8, 4) or self.group_width < 1 or (bits == 4 and self.group_width % 2):
            raise ValueError(f"{bits} bits in groups of {group_size}: 8 or 4 bits, and with 4 an even group")
        groups = math.ceil(columns / self.group_width)
        width, kind, of_scale = groups * self.group_width, torch.int8, torch.float32
        if bits == 4:
            width, kind, of_scale = width // 2, torch.uint8, torch.float16
        self.register_buffer("quantized", torch.empty(rows, width, dtype=kind, device=device))
        self.register_buffer("scale", torch.empty(rows, groups, dtype=of_scale, device=device))

    @torch.no_grad()
    def set_to(self, integers: torch.Tensor, scale: torch.Tensor) -> None:
        """Take integers (N, M g) and scales (N, M), as `quantize` gives them."""
        self.quantized.copy_(integers if self.bits == 8 else pack(integers))
        self.scale.copy_(scale)

    def weight_in(self, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
        """W (N, K) as other layers have it; or of some rows (...) alone, (..., K)."""
        integers, scale = self.quantized, self.scale
        if rows is not None:
            integers, scale = integers[rows.flatten()], scale[rows.flatten()]
        integers = integers if self.bits == 8 else unpack(integers)
        groups = integers.unflatten(1, (-1, self.group_width)) * scale.float()[..., None]  # (N, M, g)
        weight = groups.flatten(1)[:, : self.columns].to(dtype)
        return weight if rows is None else weight.view(*rows.shape, self.columns)

    def _apply(self, fn, recurse: bool = True):  # .to(dtype), .cuda() and the like
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self


class QuantizedLinear(QuantizedWeight):
    """y = W x + b with W in 8 or 4 bits.

    Args:
        in_features, out_features: K and N.
        bits, group_size, device: see `QuantizedWeight`.
        bias: whether there is one; in `dtype`.
        dtype: of the bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: Bits,
        group_size: int | None,
        bias: bool,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(out_features, in_features, bits=bits, group_size=group_size, device=device)
        self.in_features, self.out_features = in_features, out_features
        vector = torch.empty(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(vector, requires_grad=False) if bias else None

    @classmethod
    def like(cls, linear: nn.Linear, *, bits: Bits, group_size: int | None) -> QuantizedLinear:
        """An empty layer for the place of `linear`."""
        weight = linear.weight
        return cls(
            linear.in_features,
            linear.out_features,
            bits=bits,
            group_size=group_size,
            bias=linear.bias is not None,
            dtype=weight.dtype,
            device=weight.device,
        )

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, *, bits: Bits, group_size: int | None) -> QuantizedLinear:
        """The layer that computes nearly what `linear` does; arguments of `like`."""
        layer = cls.like(linear, bits=bits, group_size=group_size)
        layer.set_to(*quantize(linear.weight, bits=bits, group_size=layer.group_width))
        if layer.bias is not None:
            layer.bias.copy_(linear.bias)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N)."""
        return functional.linear(x, self.weight_in(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"


class QuantizedEmbedding(QuantizedWeight):
    """A table of words with its rows in 8 or 4 bits.

    Args:
        num_embeddings, embedding_dim: N words of K features.
        bits, group_size, device: see `QuantizedWeight`.
        dtype: of what it gives out; it follows `.to(dtype)`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: Bits,
        group_size: int | None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, bits=bits, group_size=group_size, device=device)
        self.num_embeddings, self.embedding_dim, self.dtype = num_embeddings, embedding_dim, dtype

    @classmethod
    @torch.no_grad()
    def of(cls, table: nn.Embedding, *, bits: Bits, group_size: int | None) -> QuantizedEmbedding:
        """The table that gives nearly what `table` does; arguments of `like`."""
        layer = cls.like(table, bits=bits, group_size=group_size)
        layer.set_to(*quantize(table.weight, bits=bits, group_size=layer.group_width))
        return layer

    @classmethod
    def like(cls, table: nn.Embedding, *, bits: Bits, group_size: int | None) -> QuantizedEmbedding:
        """An empty table for the place of `table`."""
        weight = table.weight
        return cls(*weight.shape, bits=bits, group_size=group_size, dtype=weight.dtype, device=weight.device)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) int64 to (..., K)."""
        return self.weight_in(self.dtype, ids)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N): what a head that is tied to the table computes."""
        return functional.linear(x, self.weight_in(x.dtype))

    def _apply(self, fn, recurse: bool = True):
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.scale.device)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}, group_size={self.group_size}"


def quantized_product_slowly(layer: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    """What `QuantizedLinear` computes, group by group: the integers' product with x, then times the group's scale."""
    integers = layer.quantized
    if layer.bits == 4:
        integers = torch.empty(layer.out_features, 2 * integers.shape[1])
        for k in range(integers.shape[1]):
            integers[:, k] = (layer.quantized[:, k // 2] // 16 ** (k % 2)) % 16 - 8.0
    out = torch.zeros(*x.shape[:-1], layer.out_features, dtype=x.dtype)
    for m in range(layer.scale.shape[1]):
        columns = slice(m * layer.group_width, min((m + 1) * layer.group_width, layer.in_features))
        out += (x[..., columns] @ integers[:, columns].to(x.dtype).T) * layer.scale[:, m].to(x.dtype)
    return out if layer.bias is None else out + layer.bias


class LoRALinear(nn.Module):
    """y = base(x) + (alpha / r) B A dropout(x): a frozen layer, and an addition of rank r that learns.

    B starts at zero, so at first nothing changes. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language
    Models", 2021, section 4.1.

    Args:
        base: (..., K) to (..., N), of any kind that has `in_features` and `out_features`; its parameters are frozen.
        rank: r.
        alpha: the addition counts alpha / r, so that another rank needs no other learning rate.
        dropout: share of the addition's inputs set to zero while training.
        dtype, device: of A and B, (r, K) and (N, r). A is not set: see `start`.
    """

    def __init__(
        self,
        base: nn.Linear | QuantizedLinear,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=dtype, device=device))
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Draw A uniformly within 1 / sqrt(K), on the CPU, as `nn.Linear` draws its weight."""
        bound = self.base.in_features**-0.5
        self.lora_A.copy_(torch.empty(self.lora_A.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N)."""
        inner = functional.linear(self.dropout(x), self.lora_A)  # (..., r)
        return self.base(x) + (self.alpha / self.rank) * functional.linear(inner, self.lora_B)

    def addition(self) -> torch.Tensor:
        """(N, K): what the addition amounts to, as a weight."""
        return (self.alpha / self.rank) * (self.lora_B @ self.lora_A)

    def merged(self) -> torch.Tensor:
        """(N, K), float32 or wider: the weight of the ordinary layer that computes the same."""
        weight = wide_weight(self.base)
        return weight + self.addition().to(weight.dtype)


def wide_weight(layer: nn.Linear | QuantizedLinear) -> torch.Tensor:
    """(N, K), float32 or wider: the weight of a layer of either kind."""
    if isinstance(layer, QuantizedLinear):
        return layer.weight_in(torch.float32)
    return layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))


def lora_slowly(layer: LoRALinear, x: torch.Tensor) -> torch.Tensor:
    """What `LoRALinear` computes without dropout, with the whole weight written out."""
    base = layer.base
    weight = base.weight if isinstance(base, nn.Linear) else base.weight_in(x.dtype)
    return functional.linear(x, weight + layer.addition().to(x.dtype), base.bias)
