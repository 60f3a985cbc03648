"""Rotary position embedding (RoPE): turn pairs of features by an angle that grows with the position.

Shapes: B batch, T tokens, H heads, D head_dim (even).

Pairs are half-split: feature j turns with feature j + D/2. This is the order of Hugging Face checkpoints; Meta's
original Llama pairs neighbours (2j, 2j + 1), the same up to a permutation of the query and key projections' rows.
Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, eq. 15 and 34.
"""

from __future__ import annotations

import torch


def rope_cos_sin(
    positions: torch.Tensor, *, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosine and sine of each position's angles: angle(t, j) = t * theta^(-2j/D).

    Args:
        positions: (B, T) or (1, T) integers.
        head_dim: D.
        theta: base of the angles.
        dtype: of the result. The angles themselves are always float32: bfloat16 cannot tell position 256 from 257.

    Returns:
        cos and sin, each (B, T, 1, D/2): one value per pair, the same for all heads.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim  # (D/2,)
    frequencies = 1.0 / theta**exponents  # rounded before the product, as in transformers: equal to the bit far out
    angles = positions[..., None, None].float() * frequencies  # (B, T, 1, D/2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x_j, x_{j + D/2}) by its angle.

    Args:
        heads: (B, T, H, D) queries or keys.
        cos, sin: (B or 1, T, 1, D/2) from `rope_cos_sin`.

    Returns:
        (B, T, H, D).
    """
    first, second = heads.chunk(2, dim=-1)  # (B, T, H, D/2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def apply_partial_rope(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the first R features of each head, in pairs (x_j, x_{j + R/2}); the others pass unchanged.

    Args:
        heads: (B, T, H, D) queries or keys.
        cos, sin: (B or 1, T, 1, R/2) from `rope_cos_sin` with R as head_dim.

    Returns:
        (B, T, H, D).
    """
    turning, still = heads.split((2 * cos.shape[-1], heads.shape[-1] - 2 * cos.shape[-1]), dim=-1)
    return torch.cat((apply_rope(turning, cos, sin), still), dim=-1)
