"""A frozen layer whose weight learns its direction by a low-rank addition and its length by a vector (DoRA).

Shapes: N outputs, K inputs, r rank; ... any leading axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tiny_transformer.layers.linear import LoRALinear, QuantizedLinear, wide_weight


class DoRALinear(LoRALinear):
    """y = m V x / |V| + b with V = W + (alpha / r) B A, where |V| is the length of each row and m learns.

    m starts at |W| and B at zero, so at first nothing changes. The gradient takes |V| for a constant, as the paper has
    it; dropout is for the inputs of the addition alone. Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank
    Adaptation", 2024, equations 5 and 11.

    Args:
        base: (..., K) to (..., N), see `LoRALinear`.
        numbers: `rank`, `alpha`, `dropout`, `dtype` and `device` of `LoRALinear`.
    """

    def __init__(self, base: nn.Linear | QuantizedLinear, **numbers: Any) -> None:
        super().__init__(base, **numbers)
        self.lora_magnitude_vector = nn.Parameter(torch.empty_like(self.lora_B[:, 0]))

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Draw A as `LoRALinear` does, and take the lengths of the rows of W as m."""
        super().start(generator)
        self.lora_magnitude_vector.copy_(row_lengths(wide_weight(self.base)))

    def _factor(self) -> torch.Tensor:
        """(N,): m / |V|."""
        with torch.no_grad():
            lengths = row_lengths(wide_weight(self.base) + self.addition())
        return self.lora_magnitude_vector / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)  # a row may be zero

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N)."""
        plain, factor = self.base(x), self._factor()
        without_bias = plain if self.base.bias is None else plain - self.base.bias
        inner = functional.linear(self.dropout(x), self.lora_A)  # (..., r)
        added = (self.alpha / self.rank) * functional.linear(inner, self.lora_B)
        return plain + (factor - 1) * without_bias + factor * added

    def merged(self) -> torch.Tensor:
        """(N, K): the weight of the ordinary layer that computes the same."""
        return self._factor()[:, None] * super().merged()


def row_lengths(weight: torch.Tensor) -> torch.Tensor:
    """(N,): the Euclidean length of each row of a weight (N, K)."""
    return torch.linalg.vector_norm(weight, dim=1)


def dora_slowly(layer: DoRALinear, x: torch.Tensor) -> torch.Tensor:
    """What `DoRALinear` computes without dropout, row by row of the whole weight."""
    weight = wide_weight(layer.base) + layer.addition()
    rows = [m * row / row.square().sum().sqrt() for m, row in zip(layer.lora_magnitude_vector, weight, strict=True)]
    return functional.linear(x, torch.stack(rows).to(x.dtype), layer.base.bias)
