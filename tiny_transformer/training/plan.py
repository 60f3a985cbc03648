"""How many steps a run takes: as asked, or as many as fit a number of tokens or a wall-clock budget.

A budget of minutes becomes a number of steps by timing real steps on a second model before the first update. It is
corrected from the run's own speed while the first third goes by; from then on nothing depends on the clock. Warm-up and
decay fit the plan. Each revision is written into the run directory before it is used, with the step it begins at, so
that a resumed run follows the same plan from whichever checkpoint it starts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.training.schedules import Schedule, Segment
from tiny_transformer.training.state import TrainState

FILE = "plan.json"
DEFAULT_STEPS = 1000
REVISIONS = (0.03, 0.1, 0.3)  # progress at which a budget's number of steps is fitted anew; fixed after the last
WSD_DECAY_FRACTION = 0.2
# Progress at which the sample prompts are continued (see `samples`): close together at first, where a text changes
# most (noise, then words, then sentences), and at the end.
SAMPLE_POINTS = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0)


@dataclass(frozen=True)
class Asked:
    """What the config says about the length of a run; a resumed run that asks for the same keeps its plan."""

    steps: int | None
    minutes: float | None
    tokens: int | None

    @classmethod
    def by(cls, config: TrainingConfig) -> Asked:
        """What `config` asks for."""
        return cls(config.steps, config.max_train_minutes, config.max_tokens)


@dataclass(frozen=True)
class Plan:
    """The length of a run.

    Attributes:
        segments: the stretches it consists of, see `Schedule`.
        warmup_steps: of these steps, spent raising the learning rate.
        reason: where the number comes from, in words.
        asked: what the config asked for.
        is_fixed: whether the number of steps is final.
    """

    segments: tuple[Segment, ...]
    warmup_steps: int
    reason: str
    asked: Asked
    is_fixed: bool

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.segments[-1].total_steps

    def schedule(self, config: TrainingConfig) -> Schedule:
        """The learning rate over this plan."""
        decay = config.decay_fraction or (WSD_DECAY_FRACTION if config.schedule == "wsd" else 1.0)
        return Schedule(config.schedule, self.segments, self.warmup_steps, decay, config.final_rate_fraction)

    def ending_at(self, total_steps: int, *, seen_from: int, reason: str, is_fixed: bool) -> Plan:
        """The same plan up to step `seen_from`, and from there to another end."""
        done = self.schedule(TrainingConfig()).progress(seen_from)
        return replace(
            self, segments=(*self.segments, Segment(seen_from, done, total_steps)), reason=reason, is_fixed=is_fixed
        )

    def to_json(self) -> str:
        """For plan.json."""
        return json.dumps({"total_steps": self.total_steps, **asdict(self)}, indent=2) + "\n"


def make_plan(config: TrainingConfig, total_steps: int, reason: str, *, is_fixed: bool = True) -> Plan:
    """A plan of `total_steps`, with the warm-up the config asks for, but no longer than half the run."""
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_fraction * total_steps)
    return Plan((Segment(0, 0.0, total_steps),), min(warmup, total_steps // 2), reason, Asked.by(config), is_fixed)


def plan_for_counts(config: TrainingConfig, tokens_per_step: int) -> Plan:
    """As many steps as `steps` and `max_tokens` ask for, whichever ends first."""
    choices = []
    if config.steps is not None:
        choices.append((config.steps, f"{config.steps:,} steps as asked"))
    if config.max_tokens is not None:
        steps = -(-config.max_tokens // tokens_per_step)
        choices.append((steps, f"{steps:,} steps make {config.max_tokens:,} tokens"))
    steps, reason = min(choices, default=(DEFAULT_STEPS, f"{DEFAULT_STEPS:,} steps"))
    return make_plan(config, steps, reason)


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


def plan_for_minutes(config: TrainingConfig, tokens_per_step: int, state: TrainState, speed: Speed) -> Plan:
    """As many steps as fit `max_train_minutes`, but no more than `steps` and `max_tokens` ask for.

    The minutes are those of the whole run: `state` tells how many are used up. How many rounds of samples are left to a
    run that has begun is known with its first correction; until then it counts none.
    """
    counted = plan_for_counts(config, tokens_per_step) if config.steps or config.max_tokens else None
    minutes = config.max_train_minutes or 0.0
    left = len(SAMPLE_POINTS) if state.step == 0 else 0
    steps = state.step + speed.steps_in(60 * minutes - state.elapsed_seconds, config, left)
    if counted is not None and counted.total_steps <= steps:
        return counted
    return make_plan(config, steps, f"{steps:,} steps of {speed.step:.2g} s fit {minutes:g} minutes", is_fixed=False)


class Pace:
    """The plan in force. While it is not fixed, a budget's number of steps is fitted to the run's own speed.

    Args:
        plan: where to start.
        config: the budget, and how often there are evaluations and saves.
        estimate: for whatever this run has not timed yet.
        write: keeps a plan for a resumed run; called before the plan is used.
        agree: of several processes that each looked at a clock, gives all of them the first one's answer.
        most_steps: what `steps` and `max_tokens` allow, however fast it goes.
    """

    def __init__(
        self,
        plan: Plan,
        config: TrainingConfig,
        estimate: Speed | None,
        write: Callable[[Plan], None],
        agree: Callable[[Any], Any] = lambda answer: answer,
        *,
        most_steps: float = math.inf,
    ) -> None:
        self._config, self._estimate, self._write, self._agree = config, estimate, write, agree
        self._most_steps = most_steps
        self._started: tuple[int, float] | None = None  # the step and seconds from which the speed is taken
        self._adopt(plan)

    @property
    def plan(self) -> Plan:
        """As it stands."""
        return self._plan

    @property
    def total_steps(self) -> int:
        """Updates in the whole run, as far as is known."""
        return self._plan.total_steps

    def factor(self, step: int) -> float:
        """The share of the peak learning rate used by the update number `step`."""
        return self._schedule.factor(step)

    def progress(self, step: int) -> float:
        """How much of the run is done after `step` steps: 0 to 1."""
        return self._schedule.progress(step)

    def samples_at(self, step: int) -> bool:
        """Whether the update that made `step` steps passed one of `SAMPLE_POINTS`."""
        before, now = self.progress(step - 1), self.progress(step)
        return any(before < point <= now for point in SAMPLE_POINTS)

    def revise(self, state: TrainState) -> bool:
        """Fit the number of steps to the speed so far, if it is time to; true when the plan changed."""
        if self._plan.is_fixed or self._estimate is None:
            return False
        if self._started is None:
            if state.seconds.get("steps", 0.0) > 0.0:  # the first step is slower than the others
                self._started = (state.step, _busy(state))
            return False
        steps = state.step - self._started[0]
        if steps < 3 or self._schedule.progress(state.step) < self._next_revision:
            return False
        speed = Speed(
            (_busy(state) - self._started[1]) / steps,
            state.mean_seconds("evaluations") or self._estimate.evaluation,
            state.mean_seconds("saves") or self._estimate.save,
            state.mean_seconds("samples") or self._estimate.sampling,
        )
        num_samplings = sum(point > self._schedule.progress(state.step) for point in SAMPLE_POINTS)
        minutes = self._config.max_train_minutes or 0.0
        left = speed.steps_in(60 * minutes - state.elapsed_seconds, self._config, num_samplings)
        total = self._agree(state.step + left)
        reason = f"{total:,} steps of {speed.step:.2g} s fit {minutes:g} minutes"
        if total > self._most_steps:
            total, reason = max(int(self._most_steps), state.step + 1), f"{self._most_steps:,} steps as asked"
        is_fixed = self._next_revision == REVISIONS[-1]
        self._adopt(self._plan.ending_at(total, seen_from=state.step, reason=reason, is_fixed=is_fixed))
        self._started = (state.step, _busy(state))  # what changed before now says nothing about the rest
        return True

    def _adopt(self, plan: Plan) -> None:
        self._write(plan)
        self._plan, self._schedule = plan, plan.schedule(self._config)
        self._next_revision = next((at for at in REVISIONS if at > plan.segments[-1].progress), REVISIONS[-1])


def _busy(state: TrainState) -> float:
    """Seconds that go with every step: the updates themselves, and writing about them."""
    return state.seconds["steps"] + state.seconds.get("logging", 0.0)


def read_plan(run_dir: Path) -> Plan | None:
    """The plan a run was started with, or None when it has none yet."""
    path = run_dir / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        del raw["total_steps"]
        segments = raw.pop("legs" if "legs" in raw else "segments")  # "legs" until November 2026
        return Plan(segments=tuple(Segment(*segment) for segment in segments), asked=Asked(**raw.pop("asked")), **raw)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"the plan is damaged: {error}", where=str(path), exit_code=ExitCode.BAD_DATA) from None


def measure_seconds(
    work: Callable[[], Any],
    agree: Callable[[Any], Any] = lambda answer: answer,
    *,
    at_least_seconds: float = 2.0,
    warm_up: int = 2,
    least: int = 3,
) -> float:
    """The median time of `work`, repeated `least` times or more, after a warm-up; `agree` as in `Pace`."""
    for _ in range(warm_up):
        work()
    times: list[float] = []
    while agree(len(times) < least or (sum(times) < at_least_seconds and len(times) < 50)):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return agree(sorted(times)[len(times) // 2])
