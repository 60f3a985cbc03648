"""RoPE scaled by `llama3` in a GGUF file: a tensor of factors, and the numbers that they come from.

llama.cpp reads a tensor `rope_freqs.weight` (D/2,) and divides each pair's frequency by its factor. It wants no
numbers, and files that others make have none; a key of our own tells them. Where that is absent, the numbers of the
published models are tried. Nothing is taken that does not give the factors of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import ValidationError

from tiny_transformer.config.shapes import DecoderConfig
from tiny_transformer.config.shapes.rope import Llama3Rope
from tiny_transformer.layers.rope import rope_frequencies

ROPE_FACTORS = "rope_freqs.weight"
ROPE_NUMBERS = "tiny_transformer.rope_scaling"  # a key of our own, which other readers pass over
# Of Llama 3.1, 3.2 and 3.3: low_freq_factor, high_freq_factor, and the context of the training, 8192 in all of them.
_PUBLISHED = (1.0, 4.0, tuple(2**power for power in (13, *range(9, 21))))
_TOLERANCE = 1e-6  # of factors that another program has computed


def rope_factors(config: DecoderConfig) -> torch.Tensor | None:
    """What llama.cpp divides each pair's frequency by, (D/2,), where rope_type is `llama3`."""
    scaling = config.rope_numbers()
    if scaling is None or scaling["rope_type"] != "llama3":
        return None
    return _factors(scaling, config.head_dim, config.rope_theta)


def numbers_of_factors(factors: torch.Tensor, told: Any, *, head_dim: int, theta: float) -> dict[str, Any] | None:
    """`rope_scaling` of `llama3` that gives these factors, or None.

    Args:
        factors: (D/2,) of the file.
        told: the value of `ROPE_NUMBERS` in the file, or None.
        head_dim, theta: D and the base of the angles, as the file says.
    """
    if factors.shape != (head_dim // 2,) or not torch.isfinite(factors).all():
        return None
    for numbers in _candidates(told, float(factors.max())):
        found = _factors(numbers, head_dim, theta)
        if torch.allclose(found, factors, rtol=_TOLERANCE, atol=0):
            return numbers
    return None


def _candidates(told: Any, largest: float) -> Iterator[dict[str, Any]]:
    if isinstance(told, str):
        try:
            yield Llama3Rope.model_validate(json.loads(told)).numbers()
        except (ValidationError, ValueError, RecursionError):
            return
        return
    low, high, contexts = _PUBLISHED
    for context in contexts:
        yield {
            "rope_type": "llama3",
            "factor": float(f"{largest:.6g}"),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }


def _factors(numbers: dict[str, Any], head_dim: int, theta: float) -> torch.Tensor:
    plain, _ = rope_frequencies(head_dim, theta)
    return plain / rope_frequencies(head_dim, theta, numbers)[0]
