"""Normalisation over the last axis.

Shapes: C features; ... any leading axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class UnitRMS(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps), over the last axis, with its gradient written out.

    Autograd's own gradient of `unit_rms_slowly` visits memory more often: a whole training step on a CPU takes 2 to 5 %
    longer. With n the result and r what x was multiplied by, the gradient is  r (g - n mean(g n)):  the part of g along
    n is taken out, since stretching x changes nothing. docs/TRAINING_MATH_QWEN3.md derives it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> torch.Tensor:
        """(..., C) float to the same shape."""
        scale = torch.rsqrt(torch.linalg.vecdot(x, x).unsqueeze(-1) / x.shape[-1] + eps)  # (..., 1)
        normed = x * scale
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # ty: ignore[incompatible-method-override]
        """Gradient of the result to gradient of x."""
        normed, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, normed).unsqueeze(-1) / -normed.shape[-1]
        return torch.addcmul(grad, normed, along).mul_(scale), None


def unit_rms_slowly(x: torch.Tensor, eps: float) -> torch.Tensor:
    """What `UnitRMS` computes, for autograd: the reference for it."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 if its type is narrower, else as it is: a float64 model computes in float64 throughout."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), over the last axis.

    The statistics are computed in float32 at least, and the normalised value is cast back before it meets the weight:
    Llama's and Qwen3's order in transformers, which in bfloat16 is not the same as casting last.
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
        return self.weight * UnitRMS.apply(at_least_float32(hidden), self.eps).to(hidden.dtype)


class LateCastRMSNorm(RMSNorm):
    """What `RMSNorm` computes, but cast after the weight and not before: OLMo 2's order. Arguments of `RMSNorm`."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., C), same dtype."""
        return (self.weight * UnitRMS.apply(at_least_float32(hidden), self.eps)).to(hidden.dtype)


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
        normed = UnitRMS.apply(at_least_float32(hidden), self.eps)
        return (normed * (1.0 + at_least_float32(self.weight))).to(hidden.dtype)


class GatedRMSNorm(RMSNorm):
    """RMSNorm, then times silu(gate) in float32. Arguments of `RMSNorm`; source as in `ZeroCentredRMSNorm`."""

    def forward(self, hidden: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # ty: ignore[incompatible-method-override]
        """(..., C) and gate (..., C) to (..., C), in the dtype of `hidden`."""
        return (super().forward(hidden) * functional.silu(at_least_float32(gate))).to(hidden.dtype)


class LayerNorm(nn.LayerNorm):
    """weight * (x - mean(x)) / sqrt(var(x) + eps) + bias, over the last axis.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Args:
        size: C, the length of the last axis.
        eps: added to the variance.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps=eps)
