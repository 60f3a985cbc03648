"""How long the parts of a run take, measured as it goes on, and how many steps fit a time at that speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.training.state import TrainState

FEWEST_STEPS = 3  # that a speed is taken from
NUM_EVALUATIONS = 8  # of a run whose config does not say how often it is evaluated
# Of the time left before the last tenth, the least share that is planned for steps.
LEAST_SHARE, LAST_PART = 0.5, 0.1


@dataclass(frozen=True)
class Speed:
    """How long things take, in seconds: an update, an evaluation (0 without one), a save, a round of samples."""

    step: float
    evaluation: float
    save: float
    sampling: float = 0.0

    def steps_in(
        self,
        seconds: float,
        config: TrainingConfig,
        num_samplings: int = 0,
        done: int = 0,
        num_evaluations: int = NUM_EVALUATIONS,
    ) -> int:
        """How many updates after `done` come nearest to a time, with their evaluations and saves, the last ones of
        both, and so many rounds of samples. (A step more can cost an evaluation more.) `num_evaluations` is how many
        are left with `eval_steps: auto`."""
        seconds -= num_samplings * self.sampling
        if config.eval_steps == "auto":  # however many steps there will be
            seconds -= num_evaluations * (self.evaluation + self.save)
        fits, too_many = 1, 2 + int(max(0.0, seconds) / max(self.step, 1e-9))
        while too_many - fits > 1:
            steps = (fits + too_many) // 2
            if self._seconds_of(done, done + steps, config) <= seconds:
                fits = steps
            else:
                too_many = steps
        left = seconds - self._seconds_of(done, done + fits, config)
        return fits + (self._seconds_of(done, done + fits + 1, config) - seconds < left)

    def _seconds_of(self, done: int, total: int, config: TrainingConfig) -> float:
        """From after step `done` to the end after step `total`. An evaluation is followed by a save; whatever falls on
        one step is saved once."""

        def between(interval: int | None) -> int:
            return total // interval - done // interval if interval else 0

        every, saved = config.eval_steps, config.save_steps
        if every == "auto":  # counted beforehand, that of the last step and its save too
            saves = between(saved) - bool(saved and total % saved == 0)
            return (total - done) * self.step + saves * self.save
        evaluations = between(every) + bool(every and total % every)
        saves = between(saved) - (between(math.lcm(every, saved)) if every and saved else 0) + evaluations
        if saved and total % saved == 0:
            saves -= bool(every and total % every)  # the last step is one of both
        elif not every:
            saves += 1
        return (total - done) * self.step + evaluations * self.evaluation + saves * self.save


def steps_left(
    speed: Speed, config: TrainingConfig, state: TrainState, num_samplings: int, num_evaluations: int
) -> int:
    """How many more updates come nearest to the end of `max_train_minutes`; arguments as in `Speed.steps_in`.

    After a bad moment, in which everything took many times as long, evaluations can seem to fill all the time left.
    That is not believed so far as to end the run, for a later look at the clock knows better: while there is time for
    one, steps keep a half of it.
    """
    budget = 60 * (config.max_train_minutes or 0.0)
    left = budget - state.elapsed_seconds
    least = LEAST_SHARE * (left - LAST_PART * budget) / max(speed.step, 1e-9)
    return max(speed.steps_in(left, config, num_samplings, state.step, num_evaluations), int(least))


class Stopwatch:
    """The speed of a run since the last look at it, from the seconds that its state counts.

    What has not happened since then takes as long as it did, times the factor by which steps have become slower; a save
    waits for the disk and stays as it was.

    Args:
        estimate: for whatever this run has not timed yet.
        period: steps after which what they do repeats itself (a round of answers is written for several steps); only
            whole periods are timed, since a part of one says nothing about the next.
    """

    def __init__(self, estimate: Speed, period: int = 1) -> None:
        self._step, self._busy, self._period = -1, 0.0, period
        self._counted: dict[str, tuple[int, float]] = {}
        # How long each took, and a step at that time.
        self._took = {
            "evaluations": (estimate.evaluation, estimate.step),
            "saves": (estimate.save, estimate.step),
            "samples": (estimate.sampling, estimate.step),
        }

    def is_ready(self, state: TrainState) -> bool:
        """Whether there are steps enough to tell. The first one of a start does not count: it is slower."""
        if self._step < 0 and _busy(state) > 0.0:
            self._start(state)
        steps = state.step - self._step
        return self._step >= 0 and steps >= FEWEST_STEPS and steps % self._period == 0

    def read(self, state: TrainState) -> Speed:
        """The speed since the last reading; the next one begins here, for what was before says nothing about it."""
        step = (_busy(state) - self._busy) / (state.step - self._step)
        for kind, (count, seconds) in self._counted.items():
            more = state.counts.get(kind, 0) - count
            if more > 0:
                self._took[kind] = ((state.seconds[kind] - seconds) / more, step)
        self._start(state)
        took = {kind: seconds * step / then if then > 0.0 else seconds for kind, (seconds, then) in self._took.items()}
        return Speed(step, took["evaluations"], self._took["saves"][0], took["samples"])

    def _start(self, state: TrainState) -> None:
        self._step, self._busy = state.step, _busy(state)
        self._counted = {kind: (state.counts.get(kind, 0), state.seconds.get(kind, 0.0)) for kind in self._took}


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


def _busy(state: TrainState) -> float:
    """Seconds that go with every step: the updates themselves, and writing about them."""
    return state.seconds.get("steps", 0.0) + state.seconds.get("logging", 0.0)
