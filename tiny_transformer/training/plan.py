"""How many steps a run takes: as asked, or as many as fit a wall-clock budget.

A budget is turned into a number of steps *before* the first update, by timing real steps on a copy of the model. From
then on nothing depends on the clock: warm-up and decay fit the plan, the plan is written into the run directory, and a
resumed run follows it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.training.schedules import Schedule
from tiny_transformer.training.state import TrainState, random_state, set_random_state

FILE = "plan.json"
DEFAULT_STEPS = 1000
SAVE_SECONDS = 2.0  # one checkpoint of a laptop-sized model, hashed, synced and read back


@dataclass(frozen=True)
class Plan:
    """The length of a run.

    Attributes:
        total_steps: updates in the whole run.
        warmup_steps: of these, spent raising the learning rate.
        reason: where the number comes from, in words.
        asked_steps, asked_minutes: what the config asked for; a resumed run that asks for the same keeps its plan.
    """

    total_steps: int
    warmup_steps: int
    reason: str
    asked_steps: int | None
    asked_minutes: float | None

    def answers(self, config: TrainingConfig) -> bool:
        """Whether the config still asks for what this plan was made for."""
        return (self.asked_steps, self.asked_minutes) == (config.steps, config.max_train_minutes)

    def schedule(self, config: TrainingConfig) -> Schedule:
        """The learning rate over this plan."""
        return Schedule(
            config.schedule, self.total_steps, self.warmup_steps, config.decay_fraction, config.final_rate_fraction
        )

    def to_json(self) -> str:
        """For plan.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


def plan_for_steps(config: TrainingConfig) -> Plan:
    """As many steps as the config asks for."""
    steps = config.steps or DEFAULT_STEPS
    return make_plan(config, steps, f"{steps:,} steps" + (" as asked" if config.steps else ""))


def make_plan(config: TrainingConfig, total_steps: int, reason: str) -> Plan:
    """A plan of `total_steps`, with the warm-up the config asks for."""
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_fraction * total_steps)
    return Plan(total_steps, min(warmup, total_steps), reason, config.steps, config.max_train_minutes)


def plan_for_minutes(config: TrainingConfig, state: TrainState, *, step_seconds: float, eval_seconds: float) -> Plan:
    """As many steps as fit `max_train_minutes`, with their evaluations and saves, but no more than `steps`.

    Args:
        config: `max_train_minutes`, `steps`, `eval_steps`, `save_steps`.
        state: where the run stands; the minutes are those of the whole run.
        step_seconds: measured time of one update.
        eval_seconds: measured time of one evaluation; 0 without evaluation.
    """
    budget = 60 * (config.max_train_minutes or 0) - state.elapsed_seconds - eval_seconds - SAVE_SECONDS
    per_step = step_seconds
    per_step += (eval_seconds + SAVE_SECONDS) / config.eval_steps if config.eval_steps else 0.0
    per_step += SAVE_SECONDS / config.save_steps if config.save_steps else 0.0
    steps = max(1, state.step + int(budget / per_step))
    if config.steps is not None and config.steps <= steps:
        return plan_for_steps(config)
    return make_plan(config, steps, f"{steps:,} steps of {step_seconds:.2f} s fit {config.max_train_minutes:g} minutes")


def read_plan(run_dir: Path) -> Plan | None:
    """The plan a run was started with, or None when it has none yet."""
    path = run_dir / FILE
    try:
        return Plan(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"the plan is damaged: {error}", where=str(path), exit_code=ExitCode.BAD_DATA) from None


def measure_seconds(work: Callable[[], Any], *, at_least_seconds: float = 2.0, warm_up: int = 2) -> float:
    """The median time of `work`, repeated three times or more, after a warm-up."""
    for _ in range(warm_up):
        work()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < at_least_seconds and len(times) < 50):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def measure_on_copy(model: Any, work: Callable[[Any], Callable[[], Any]]) -> float:
    """Time training steps without touching the run: on a copy of the model, with the random-number state put back.

    Args:
        model: the model to copy.
        work: given the copy, gives the function to time.
    """
    states = random_state()
    seconds = measure_seconds(work(copy.deepcopy(model)))
    set_random_state(states)
    return seconds
