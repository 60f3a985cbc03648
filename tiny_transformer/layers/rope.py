"""Rotary position embedding (RoPE): turn pairs of features by an angle that grows with the position.

Shapes: B batch, T tokens, H heads, D head_dim (even).

Pairs are half-split: feature j turns with feature j + D/2. This is the order of Hugging Face checkpoints; Meta's
original Llama pairs neighbours (2j, 2j + 1), the same up to a permutation of the query and key projections' rows.
Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, eq. 15 and 34.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def rope_cos_sin(
    positions: torch.Tensor,
    *,
    head_dim: int,
    theta: float,
    dtype: torch.dtype,
    scaling: Mapping[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosine and sine of each position's angles: angle(t, j) = t * theta^(-2j/D).

    Args:
        positions: (B, T) or (1, T) integers.
        head_dim: D.
        theta: base of the angles.
        dtype: of the result. The angles themselves are always float32: bfloat16 cannot tell position 256 from 257.
        scaling: `rope_type` and its numbers, for texts longer than those of the training; see `rope_frequencies`.

    Returns:
        cos and sin, each (B, T, 1, D/2): one value per pair, the same for all heads.
    """
    frequencies, size = rope_frequencies(head_dim, theta, scaling, device=positions.device)
    angles = positions[..., None, None].float() * frequencies  # (B, T, 1, D/2)
    return (angles.cos() * size).to(dtype), (angles.sin() * size).to(dtype)


def rope_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None, *, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, float]:
    """The angle of each pair at position 1, (D/2,) float32, and what cosine and sine are multiplied by.

    Args:
        head_dim, theta: as in `rope_cos_sin`.
        scaling: None: theta^(-2j/D). `linear`: divided by `factor`. `llama3` and `yarn`: only slow pairs are, see
            `llama3_frequencies` and `yarn_frequencies`.
        device: of the result.
    """
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim  # (D/2,)
    periods = theta**exponents
    frequencies = 1.0 / periods  # rounded before the product, as in transformers: equal to the bit far out
    if scaling is None:
        return frequencies, 1.0
    numbers = {name: number for name, number in scaling.items() if name != "rope_type"}
    if scaling["rope_type"] == "linear":
        return frequencies / numbers["factor"], 1.0
    if scaling["rope_type"] == "llama3":
        return llama3_frequencies(frequencies, **numbers), 1.0
    return yarn_frequencies(periods, theta=theta, **numbers)


def llama3_frequencies(
    frequencies: torch.Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> torch.Tensor:
    """Pairs that turn `high_freq_factor` times or more within the original context stay; those that turn
    `low_freq_factor` times or less are divided by `factor`; between the two the share rises in a straight line.

    Source: Grattafiori et al., "The Llama 3 Herd of Models", 2024, and the published code.
    """
    wave_lengths = 2 * math.pi / frequencies  # (D/2,) positions to a full turn
    turns = original_max_position_embeddings / wave_lengths
    share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = (1 - share) * frequencies / factor + share * frequencies
    slow = torch.where(wave_lengths > original_max_position_embeddings / low_freq_factor, frequencies / factor, between)
    return torch.where(wave_lengths < original_max_position_embeddings / high_freq_factor, frequencies, slow)


def yarn_frequencies(
    periods: torch.Tensor,
    *,
    theta: float,
    factor: float,
    original_max_position_embeddings: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
) -> tuple[torch.Tensor, float]:
    """Pairs that turn `beta_fast` times or more within the original context stay, those that turn `beta_slow` times or
    less are divided by `factor`, with a ramp over the pairs between; and what cosine and sine are multiplied by.

    Source: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023, section 3.

    Args:
        periods: (D/2,) theta^(2j/D).
        attention_factor: None: 0.1 ln(factor) + 1.
    """
    half = periods.numel()

    def pair_that_turns(times: float) -> float:
        return half * math.log(original_max_position_embeddings / (times * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(pair_that_turns(beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(beta_slow)), 2 * half - 1)
    ramp = (torch.arange(half, device=periods.device, dtype=torch.float32) - first) / (last - first or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    frequencies = (1 - kept) / (factor * periods) + kept / periods
    return frequencies, 0.1 * math.log(factor) + 1.0 if attention_factor is None else attention_factor


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
