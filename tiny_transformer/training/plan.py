"""How many steps a run takes: as asked, or as many as fit a number of tokens or a wall-clock budget.

A budget of minutes becomes a number of steps by timing real steps on a second model before the first update. It is
corrected from the run's own speed again and again, more often towards the end; after the last correction nothing
depends on the clock. Warm-up and decay fit the plan. Each revision is written into the run directory before it is used,
with the step it begins at, so that a resumed run follows the same plan from whichever checkpoint it starts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.reading import read_regular
from tiny_transformer.storage.runs import readable_states
from tiny_transformer.training.schedules import Schedule
from tiny_transformer.training.speed import NUM_EVALUATIONS, Speed, Stopwatch, steps_left
from tiny_transformer.training.state import MAX_COUNT, TrainState

FILE = "plan.json"
HASH = "sha256"  # the key of the plan's hash over itself
DEFAULT_STEPS = 1000
# Progress, or share of the minutes gone, at which a budget's number of steps is fitted anew; fixed after the last. They
# come closer together, so that what changes after one of them can move the end by little: what is left by then.
REVISIONS = (0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.75, 0.8, 0.84, 0.87, 0.9, 0.92, 0.94, 0.96, 0.98)
WSD_DECAY_FRACTION = 0.2
# Progress at which the sample prompts are continued (see `samples`): close together at first, where a text changes
# most (noise, then words, then sentences), and at the end.
SAMPLE_POINTS = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
# Progress at which a run with `eval_steps: auto` is evaluated.
EVALUATION_POINTS = tuple(n / NUM_EVALUATIONS for n in range(1, NUM_EVALUATIONS + 1))


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
class Plan:
    """The length of a run.

    Attributes:
        segments: the stretches it consists of: one, and one more for each revision of its length.
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

    def progress(self, step: int) -> float:
        """How much of the run is done after `step` steps: 0 to 1."""
        segment = next(segment for segment in reversed(self.segments) if segment.step <= step)
        return min(1.0, segment.at(step))

    def factor(self, step: int, config: TrainingConfig) -> float:
        """The share of the peak learning rate used by the update number `step` (the first is 0): a linear warm-up, then
        the config's schedule."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        decay = config.decay_fraction or (WSD_DECAY_FRACTION if config.schedule == "wsd" else 1.0)
        schedule = Schedule(config.schedule, decay, config.final_rate_fraction)
        return schedule.factor(self.progress(step + 1), warm=self.progress(self.warmup_steps))

    def ending_at(self, total_steps: int, *, seen_from: int, reason: str, is_fixed: bool) -> Plan:
        """The same plan up to step `seen_from`, and from there to another end."""
        done = self.progress(seen_from)
        return replace(
            self, segments=(*self.segments, Segment(seen_from, done, total_steps)), reason=reason, is_fixed=is_fixed
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in plan.json and in each checkpoint, with a hash over itself: it decides the weights."""
        body = json.loads(json.dumps({"total_steps": self.total_steps, **asdict(self)}))
        return {**body, HASH: _hash(body)}

    def to_json(self) -> str:
        """For plan.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def make_plan(config: TrainingConfig, total_steps: int, reason: str, *, is_fixed: bool = True) -> Plan:
    """A plan of `total_steps`, with the warm-up the config asks for, but no longer than half the run."""
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_fraction * total_steps)
    return Plan((Segment(0, 0.0, total_steps),), min(warmup, total_steps // 2), reason, Asked.by(config), is_fixed)


def plan_for_counts(config: TrainingConfig, tokens_per_step: int) -> Plan:
    """As many steps as `steps` and `max_tokens` ask for, whichever ends first."""
    choices = []
    if config.steps is not None:
        choices.append((config.steps, f"{in_steps(config.steps)} as asked"))
    if config.max_tokens is not None:
        steps = -(-config.max_tokens // tokens_per_step)
        choices.append((steps, f"{in_steps(steps)} for {config.max_tokens:,} tokens"))
    steps, reason = min(choices, default=(DEFAULT_STEPS, f"{DEFAULT_STEPS:,} steps"))
    return make_plan(config, steps, reason)


def counted_plan(config: TrainingConfig, tokens_per_step: int) -> Plan | None:
    """The plan of a run of which `steps` or `max_tokens` are asked for; None when neither is."""
    is_counted = config.steps is not None or config.max_tokens is not None
    return plan_for_counts(config, tokens_per_step) if is_counted else None


def in_steps(number: int) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{number:,} {'step' if number == 1 else 'steps'}"


def _what_fits(steps: int, speed: Speed, minutes: float) -> str:
    return f"{in_steps(steps)} of {speed.step:.2g} s {'fits' if steps == 1 else 'fit'} {in_minutes(minutes)}"


def in_minutes(minutes: float) -> str:
    """`1 minute`, `2.5 minutes`."""
    return f"{minutes:g} {'minute' if minutes == 1 else 'minutes'}"


def plan_for_minutes(config: TrainingConfig, tokens_per_step: int, state: TrainState, speed: Speed) -> Plan:
    """As many steps as fit `max_train_minutes`, but no more than `steps` and `max_tokens` ask for.

    The minutes are those of the whole run: `state` tells how many are used up. How many rounds of samples are left to a
    run that has begun is known with its first correction; until then it counts none.
    """
    counted = counted_plan(config, tokens_per_step)
    minutes = config.max_train_minutes or 0.0
    left, seconds = len(SAMPLE_POINTS) if state.step == 0 else 0, 60 * minutes - state.elapsed_seconds
    num_evaluations = math.ceil(NUM_EVALUATIONS * min(1.0, max(0.0, seconds / (60 * minutes))))
    steps = state.step + steps_left(speed, config, state, left, num_evaluations)
    if counted is not None and counted.total_steps <= steps:
        return counted
    return make_plan(config, steps, _what_fits(steps, speed, minutes), is_fixed=False)


class Pace:
    """The plan in force. While it is not fixed, a budget's number of steps is fitted to the run's own speed.

    Args:
        plan: where to start.
        config: the budget, and how often there are evaluations and saves.
        estimate: for whatever this run has not timed yet.
        write: keeps a plan for a resumed run; called before the plan is used.
        agree: of several processes that each looked at a clock, gives all of them the first one's answer.
        most_steps: what `steps` and `max_tokens` allow, however fast it goes.
        period: of the steps, see `Stopwatch`.
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
        period: int = 1,
    ) -> None:
        self._config, self._write, self._agree, self._most_steps = config, write, agree, most_steps
        self._stopwatch = None if estimate is None else Stopwatch(estimate, period)
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
        return self._plan.factor(step, self._config)

    def progress(self, step: int) -> float:
        """How much of the run is done after `step` steps: 0 to 1."""
        return self._plan.progress(step)

    def samples_at(self, step: int) -> bool:
        """Whether the update that made `step` steps passed one of `SAMPLE_POINTS`."""
        return self._passes(step, SAMPLE_POINTS)

    def evaluates_at(self, step: int) -> bool:
        """Whether the config asks for an evaluation after `step` steps; that of the last step nobody needs to ask for.

        With `auto` it is due where the run has passed one more of `EVALUATION_POINTS`, so that a run whose length
        changes on the way, or with a resumption, is still evaluated as often.
        """
        every = self._config.eval_steps
        if every == "auto":
            return self._passes(step, EVALUATION_POINTS)
        return every is not None and step % every == 0

    def _passes(self, step: int, points: Iterable[float]) -> bool:
        before, now = self.progress(step - 1), self.progress(step)
        return any(before < point <= now for point in points)

    def revise(self, state: TrainState) -> bool:
        """Fit the number of steps to the speed so far, if it is time to; true when the plan changed."""
        if self._plan.is_fixed or self._stopwatch is None:
            return False
        minutes = self._config.max_train_minutes or 0.0
        done = max(self._plan.progress(state.step), state.elapsed_seconds / (60 * minutes))
        if not self._stopwatch.is_ready(state) or not self._agree(done >= self._next_revision):
            return False
        speed = self._stopwatch.read(state)
        samplings, evaluations = (
            sum(point > self._plan.progress(state.step) for point in points)
            for points in (SAMPLE_POINTS, EVALUATION_POINTS)
        )
        total = self._agree(state.step + steps_left(speed, self._config, state, samplings, evaluations))
        reason = _what_fits(total, speed, minutes)
        if total > self._most_steps:
            total, reason = max(int(self._most_steps), state.step + 1), f"{in_steps(int(self._most_steps))} as asked"
        is_fixed = self._next_revision == REVISIONS[-1]
        self._adopt(self._plan.ending_at(total, seen_from=state.step, reason=reason, is_fixed=is_fixed), done)
        return True

    def _adopt(self, plan: Plan, done: float = 0.0) -> None:
        self._write(plan)
        self._plan = plan
        done = max(done, plan.segments[-1].progress)
        self._next_revision = next((at for at in REVISIONS if at > done), REVISIONS[-1])


def read_plan(run_dir: Path) -> Plan | None:
    """The plan a run was started with: plan.json, else what the newest checkpoint says that can; None when it has none
    yet.

    Raises:
        UserError: BAD_DATA, it is not what was written.
    """
    path = run_dir / FILE
    try:
        return parse_plan(json.loads(read_regular(path)))
    except FileNotFoundError:
        for state in readable_states(run_dir):
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                return parse_plan(state["plan"])
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, UserError) as error:
        raise UserError(
            f"the plan is damaged: {error.what if isinstance(error, UserError) else error}",
            where=str(path),
            remedy=f"remove {FILE}: the newest checkpoint holds the plan as well",
            exit_code=ExitCode.BAD_DATA,
        ) from None


def parse_plan(raw: Any) -> Plan:
    """The plan in a JSON object that `Plan.to_dict` made.

    Raises:
        ValueError: what is wrong, in words.
    """
    if not isinstance(raw, dict):
        raise ValueError("it is not a JSON object")
    raw = dict(raw)
    told = raw.pop(HASH, None)  # none until November 2026
    if told is not None and told != _hash(raw):
        raise ValueError("it does not match its own hash")
    if "legs" in raw:  # their name until November 2026
        raw["segments"] = raw.pop("legs")
    if raw.keys() != {"total_steps", *Plan.__dataclass_fields__}:
        raise ValueError(f"its keys are {', '.join(sorted(raw))[:200]}")
    asked, segments = raw["asked"], raw["segments"]
    if not isinstance(asked, dict) or asked.keys() != set(Asked.__dataclass_fields__):
        raise ValueError("asked does not say steps, minutes and tokens")
    for name, kinds in (("steps", int), ("tokens", int), ("minutes", (int, float))):
        value = asked[name]
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < math.inf):
            raise ValueError(f"asked.{name} is {repr(value)[:40]}")
    if not isinstance(segments, list) or not segments or not all(map(_is_segment, segments)):
        raise ValueError("its segments are not [step, progress, total_steps]")
    if segments[0][:2] != [0, 0.0] or any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(segments)):
        raise ValueError("its segments do not follow each other")
    if raw["total_steps"] != segments[-1][2] or not _is_in(raw["warmup_steps"], 0, raw["total_steps"]):
        raise ValueError("total_steps and warmup_steps do not fit the segments")
    if not isinstance(raw["reason"], str) or not isinstance(raw["is_fixed"], bool):
        raise ValueError("reason is no text, or is_fixed neither true nor false")
    made = tuple(Segment(*segment) for segment in segments)
    return Plan(made, raw["warmup_steps"], raw["reason"], Asked(**asked), raw["is_fixed"])


def _is_segment(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and _is_in(value[0], 0, MAX_COUNT)
        and isinstance(value[1], int | float)
        and 0.0 <= value[1] < 1.0
        and _is_in(value[2], value[0] + 1, MAX_COUNT)
    )


def _is_in(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
