"""The learning rate as a pure function of the step, so that a resumed run needs no memory of it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, an optional stretch at the peak, then a decay.

    Attributes:
        shape: `cosine`, `linear` or `constant`: the decay.
        total_steps: steps in the whole run.
        warmup_steps: steps over which the rate rises from zero to its peak.
        decay_fraction: share of the steps after warm-up over which it falls.
        final_fraction: the last rate as a share of the peak.
    """

    shape: str
    total_steps: int
    warmup_steps: int
    decay_fraction: float = 1.0
    final_fraction: float = 0.1

    def factor(self, step: int) -> float:
        """The share of the peak rate used by the update number `step` (the first is 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return 1.0
        decay_steps = max(1, round((self.total_steps - self.warmup_steps) * self.decay_fraction))
        progress = min(1.0, max(0.0, (step + 1 - (self.total_steps - decay_steps)) / decay_steps))
        share = (1 + math.cos(math.pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.final_fraction + (1 - self.final_fraction) * share
