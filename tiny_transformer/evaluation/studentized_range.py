"""How far the largest of several equal things lies above the smallest by chance alone. Only numpy is needed.

Who looks at many models and picks the best compares it with the worst: of ten equal models these two lie further apart
than two that were chosen beforehand. The studentized range is that distance in standard deviations.

Source: Tukey 1949, Comparing Individual Means in the Analysis of Variance.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

_MOST = 12.0  # standard deviations; beyond it no range of a sensible number of values lies
_HALVINGS = 60


@cache
def studentized_range(count: int, degrees: int | None = None, confidence: float = 0.95) -> float:
    """What the range of `count` normal values, in standard deviations, stays below with this confidence.

    Args:
        count: how many values, at least 2.
        degrees: of freedom of the standard deviation, where it was estimated apart from them; None: it is known.
        confidence: above 0, below 1.
    """
    z = np.linspace(-8.0, 8.0, 1601)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([math.erfc(-one / math.sqrt(2)) / 2 for one in z.tolist()])
    # The largest value at z, all others at most w below it.
    w = np.linspace(0.0, _MOST, 1201)
    between = below - np.interp(z - w[:, None], z, below)
    reached = count * np.trapezoid(density * between.clip(min=0.0) ** (count - 1), z, axis=1)
    if degrees is None:
        return float(np.interp(confidence, reached, w))
    # The estimate s of a standard deviation of 1: degrees s^2 has a chi-square distribution.
    s, half = np.exp(np.linspace(math.log(1e-4), math.log(10.0), 8001)), degrees / 2
    logs = math.log(2) + half * math.log(half) - math.lgamma(half) + (degrees - 1) * np.log(s) - half * s**2
    low, high = 0.0, 1e3
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        share = float(np.trapezoid(np.exp(logs) * np.interp(middle * s, w, reached), s))
        low, high = (middle, high) if share < confidence else (low, middle)
    return high
