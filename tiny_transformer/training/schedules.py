"""The learning rate as a pure function of the step and the plan, so that a resumed run needs no memory of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Segment(NamedTuple):
    """A stretch of a run, planned to go straight from `progress` after `step` steps to 1 after `total_steps`; the next
    segment, if there is one, begins before that."""

    step: int
    progress: float
    total_steps: int

    def at(self, step: int) -> float:
        """Progress after `step` steps."""
        return self.progress + (1.0 - self.progress) * (step - self.step) / (self.total_steps - self.step)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, an optional stretch at the peak, then a decay.

    The decay is drawn over *progress*, which goes from 0 at the first step to 1 at the last. A run whose length is
    known from the start has one segment; each revision of its length adds one.

    Attributes:
        shape: `cosine`, `linear`, `wsd` (warm-up, stable, decay: linear as well) or `constant`.
        segments: the first from (0, 0.0); the last one's end is the run's.
        warmup_steps: steps over which the rate rises from zero to its peak.
        decay_fraction: share of the steps after warm-up over which it falls.
        final_fraction: the last rate as a share of the peak.
    """

    shape: str
    segments: tuple[Segment, ...]
    warmup_steps: int
    decay_fraction: float = 1.0
    final_fraction: float = 0.1

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self.segments[-1].total_steps

    def progress(self, step: int) -> float:
        """How much of the run is done after `step` steps: 0 to 1."""
        segment = next(segment for segment in reversed(self.segments) if segment.step <= step)
        return min(1.0, segment.at(step))

    def factor(self, step: int) -> float:
        """The share of the peak rate used by the update number `step` (the first is 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return 1.0
        decay_share = (1.0 - self.progress(self.warmup_steps)) * self.decay_fraction  # of the whole run
        decayed = 1.0 - (1.0 - self.progress(step + 1)) / decay_share if decay_share > 0.0 else 1.0
        decayed = max(0.0, decayed)
        share = (1 + math.cos(math.pi * decayed)) / 2 if self.shape == "cosine" else 1 - decayed
        return self.final_fraction + (1 - self.final_fraction) * share
