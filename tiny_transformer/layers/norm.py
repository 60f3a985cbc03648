"""Normalisation over the last axis.

Shapes: C features; ... any leading axes.
"""

from __future__ import annotations

import torch
from torch import nn


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), over the last axis.

    The statistics are computed in float32 whatever the input's dtype, and the normalised value is cast back before it
    meets the weight: Llama's and Qwen3's order in transformers, which in bfloat16 is not the same as casting last.
    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4.

    Args:
        size: C, the length of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., C), same dtype."""
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(hidden.dtype)


class LayerNorm(nn.LayerNorm):
    """weight * (x - mean(x)) / sqrt(var(x) + eps) + bias, over the last axis.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Args:
        size: C, the length of the last axis.
        eps: added to the variance.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps=eps)
