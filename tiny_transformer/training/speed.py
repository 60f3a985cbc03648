"""How long the parts of a run take, as measured, and how many updates fit a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny_transformer.config.schema import TrainingConfig


@dataclass(frozen=True)
class Speed:
    """How long things take, in seconds: an update, an evaluation (0 without one), a save, a round of samples."""

    step: float
    evaluation: float
    save: float
    sampling: float = 0.0

    def steps_in(self, seconds: float, config: TrainingConfig, num_samplings: int = 0) -> int:
        """How many updates fit, with their evaluations and saves, the last ones of both, and so many rounds of
        samples."""
        evaluations = 1 / config.eval_steps if config.eval_steps else 0.0
        saves = 1 / config.save_steps if config.save_steps else 0.0
        if config.eval_steps and config.save_steps:  # one save for both where they coincide
            saves -= 1 / math.lcm(config.eval_steps, config.save_steps)
        per_step = self.step + evaluations * (self.evaluation + self.save) + saves * self.save
        return max(1, int((seconds - self.evaluation - self.save - num_samplings * self.sampling) / per_step))


def measure_seconds(
    work: Callable[[], Any],
    agree: Callable[[Any], Any] = lambda answer: answer,
    *,
    at_least_seconds: float = 2.0,
    warm_up: int = 2,
    least: int = 3,
) -> float:
    """The median time of `work`, repeated `least` times or more, after a warm-up; `agree` as in `plan.Pace`."""
    for _ in range(warm_up):
        work()
    times: list[float] = []
    while agree(len(times) < least or (sum(times) < at_least_seconds and len(times) < 50)):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return agree(sorted(times)[len(times) // 2])
