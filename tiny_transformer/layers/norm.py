"""Normalisation over the last axis.

Shapes: C features; ... any leading axes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


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


class ZeroCentredRMSNorm(nn.Module):
    """(1 + weight) * x / sqrt(mean(x^2) + eps), over the last axis; the weight starts at zero.

    Everything is float32 until the last cast, unlike in `RMSNorm`. Source: Qwen3-Next as transformers computes it.

    Args:
        size: C, the length of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., C), same dtype."""
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).to(hidden.dtype)


class GatedRMSNorm(RMSNorm):
    """RMSNorm, then times silu(gate) in float32. Arguments of `RMSNorm`; source as in `ZeroCentredRMSNorm`."""

    def forward(self, hidden: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # ty: ignore[incompatible-method-override]
        """(..., C) and gate (..., C) to (..., C), in the dtype of `hidden`."""
        return (super().forward(hidden) * functional.silu(gate.float())).to(hidden.dtype)


class LayerNorm(nn.LayerNorm):
    """weight * (x - mean(x)) / sqrt(var(x) + eps) + bias, over the last axis.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Args:
        size: C, the length of the last axis.
        eps: added to the variance.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps=eps)
