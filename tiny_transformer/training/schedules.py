"""The learning rate as a pure function of progress, so that a resumed run needs no memory of it.

Progress goes from 0 before the first update to 1 after the last; which step stands where, the plan says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A stretch at the peak rate, then a decay; the warm-up before both is counted in steps and is the plan's.

    Attributes:
        shape: `cosine`, `linear`, `wsd` (warm-up, stable, decay: linear as well) or `constant`.
        decay_fraction: share of the run after warm-up over which the rate falls.
        final_fraction: the last rate as a share of the peak.
    """

    shape: str
    decay_fraction: float = 1.0
    final_fraction: float = 0.1

    def factor(self, progress: float, *, warm: float = 0.0) -> float:
        """The share of the peak rate used by the update that leads to `progress`; `warm` is where the warm-up ends."""
        if self.shape == "constant":
            return 1.0
        decay_share = (1.0 - warm) * self.decay_fraction  # of the whole run
        decayed = 1.0 - (1.0 - progress) / decay_share if decay_share > 0.0 else 1.0
        decayed = max(0.0, decayed)
        share = (1 + math.cos(math.pi * decayed)) / 2 if self.shape == "cosine" else 1 - decayed
        return self.final_fraction + (1 - self.final_fraction) * share
