"""A budget of minutes is kept within 3 %: the real loop on a clock of its own, so that every run is the same."""

from __future__ import annotations

import io
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import run_tiny, tiny_request

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.hardware import Hardware
from tiny_transformer.reports.page_findings import time_section
from tiny_transformer.stages.pretrain import Pretraining
from tiny_transformer.stages.run import Run
from tiny_transformer.stages.training_data import fit_vocabulary
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training import loop
from tiny_transformer.training import state as training_state
from tiny_transformer.training.contract import Evaluation
from tiny_transformer.training.loop import Gradient, Job, train
from tiny_transformer.training.plan import Pace, Plan, plan_for_minutes, read_plan
from tiny_transformer.training.speed import Speed
from tiny_transformer.training.state import TrainState

MINUTES = 10
CONFIG = TrainingConfig(
    max_train_minutes=MINUTES, eval_steps=150, save_steps=75, log_steps=5, schedule="linear", final_rate_fraction=0.0
)
ESTIMATE = Speed(step=0.1, evaluation=4.0, save=2.0, sampling=1.0)  # what was measured before the first step


class Machine:
    """Where time passes only when something is done.

    Args:
        step_seconds: of an update, by the second at which it begins.
        save_seconds: of each checkpoint.
        slower: by how much everything takes longer, by the second at which it begins.
        more_seconds: that an update takes besides, by its number: a long batch, a round of answers to write.
    """

    def __init__(
        self,
        step_seconds: Callable[[float], float],
        save_seconds: float,
        slower: Callable[[float], float] = lambda now: 1.0,
        more_seconds: Callable[[int], float] = lambda step: 0.0,
    ) -> None:
        self.now, self.factors, self.plans, self.evaluated_at = 0.0, [], [], []
        self._step_seconds, self._save_seconds, self._slower = step_seconds, save_seconds, slower
        self._more_seconds = more_seconds

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds * self._slower(self.now)

    def update(self, job: Job, state: TrainState, update_stats: Any) -> tuple[Gradient, float]:
        noise = 1 + 0.3 * math.sin(1.7 * state.step) * math.sin(0.13 * state.step)
        self.pass_by(self._step_seconds(self.now) * noise * (20.0 if state.step == 0 else 1.0))
        self.pass_by(self._more_seconds(state.step))
        self.factors.append(job.pace.factor(state.step))
        return Gradient(1.0, 1.0, 64, {}), self.factors[-1]

    def evaluate(self) -> Evaluation:
        self.evaluated_at.append(self.now)
        self.pass_by(5.5)
        return Evaluation(1000.0 - self.now, {})  # each is the best so far, and saved

    def run(
        self,
        monkeypatch: pytest.MonkeyPatch,
        config: TrainingConfig = CONFIG,
        estimate: Speed = ESTIMATE,
        **pace: Any,
    ) -> TrainState:
        """Train to the end."""
        state = TrainState()
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=self.monotonic))
        monkeypatch.setattr(training_state, "time", SimpleNamespace(monotonic=self.monotonic))
        monkeypatch.setattr(loop, "update", self.update)
        monkeypatch.setattr(loop, "_measured", lambda *arguments: {})
        job = Job(
            model=torch.nn.Linear(1, 1),
            optimizers=None,  # ty: ignore[invalid-argument-type]
            pace=Pace(plan_for_minutes(config, 64, state, estimate), config, estimate, self.plans.append, **pace),
            batches=SimpleNamespace(epoch=lambda step: 0.0),  # ty: ignore[invalid-argument-type]
            loss_function=None,  # ty: ignore[invalid-argument-type]
            evaluate=self.evaluate,
            sample=lambda state: self.pass_by(1.6),
            save=lambda state, status, is_best: self.pass_by(self._save_seconds),
            log=lambda record: self.pass_by(0.004),
            config=config,
            hardware=Hardware(torch.device("cpu"), None),
            progress=SimpleNamespace(  # ty: ignore[invalid-argument-type]
                step=lambda state, tokens_per_second: None, length=lambda total_steps: None
            ),
        )
        assert train(job, state, lambda: False) == "finished"
        return state


MACHINES: dict[str, tuple[Callable[[float], float], float]] = {
    "as expected": (lambda now: 0.1, 2.0),
    "slow saves": (lambda now: 0.1, 7.0),
    "half as fast as measured": (lambda now: 0.2, 2.0),
    "twice as fast as measured": (lambda now: 0.05, 2.0),
    "somebody comes in the first minute": (lambda now: 0.1 if now < 40 else 0.23, 5.0),
    "somebody leaves in the first minute": (lambda now: 0.23 if now < 40 else 0.1, 5.0),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_run_ends_within_three_percent_of_its_minutes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of 30 % on each step and a slow first one are always there."""
    machine = Machine(*MACHINES[name])
    state = machine.run(monkeypatch)
    assert machine.now == pytest.approx(60 * MINUTES, rel=0.03)
    assert state.elapsed_seconds == pytest.approx(machine.now)
    assert machine.factors[-1] == pytest.approx(0.0, abs=1e-12)  # the rate is fully decayed
    assert max(machine.factors) == 1.0
    assert machine.plans[-1].is_fixed


@pytest.mark.parametrize("factor", [0.4, 1.5, 3.0])
@pytest.mark.parametrize("share", [0.05, 0.35, 0.5, 0.74, 0.849])
def test_whenever_the_machine_changes_its_speed_the_run_ends_on_time(
    factor: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, evaluations, saves and samples take `factor` times as long from some time before 85 % of them on."""
    change = share * 60 * MINUTES
    machine = Machine(lambda now: 0.1, 2.0, slower=lambda now: 1.0 if now < change else factor)
    state = machine.run(monkeypatch)
    assert machine.now == pytest.approx(60 * MINUTES, rel=0.03)
    assert machine.factors[-1] == pytest.approx(0.0, abs=1e-12)
    assert machine.plans[-1].is_fixed or state.step == machine.plans[-1].total_steps


@pytest.mark.parametrize("factor", [6.0, 10.0])
def test_a_machine_that_nearly_stands_still_is_noticed_by_the_clock(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its steps the run would not look at the clock before its minutes are over."""
    machine = Machine(lambda now: 0.1, 0.2, slower=lambda now: 1.0 if now < 0.42 * 60 * MINUTES else factor)
    machine.run(monkeypatch, CONFIG.model_copy(update={"eval_steps": 5000, "save_steps": None}))
    assert machine.now == pytest.approx(60 * MINUTES, rel=0.03)


@pytest.mark.parametrize("name", ["steady", "half as fast"])
def test_minutes_alone_are_evaluated_eight_times_and_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With saves of their own, and without; the length is planned anew again and again."""
    speeds = {"steady": lambda now: 0.1, "half as fast": lambda now: 0.1 if now < 200 else 0.2}
    for save_steps in (None, 75):
        machine = Machine(speeds[name], 2.0)
        machine.run(monkeypatch, CONFIG.model_copy(update={"eval_steps": "auto", "save_steps": save_steps}))
        assert machine.now == pytest.approx(60 * MINUTES, rel=0.03)
        assert len(machine.evaluated_at) == 8
        gaps = [b - a for a, b in pairwise([0.0, *machine.evaluated_at])]
        assert max(gaps) < 2.5 * min(gaps)


def test_a_machine_that_others_use_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda now: 0.1, 2.0, slower=lambda now: 2.5 if (now // 35) % 3 == 1 and now < 510 else 1.0)
    machine.run(monkeypatch)
    assert machine.now == pytest.approx(60 * MINUTES, rel=0.03)


def trace(seed: int) -> Callable[[float], float]:
    """A machine that changes its speed one to eight times, at any time before 85 % of the run, to anything between 0.4
    and 2.5 times as slow."""
    random = Random(seed)
    times = sorted(random.uniform(0.0, 0.85) * 60 * MINUTES for _ in range(random.randint(1, 8)))
    factors = [1.0] + [2.5 ** random.uniform(-1.0, 1.0) for _ in times]
    return lambda now: factors[bisect_right(times, now)]


# What one update of a stage costs, in seconds: by its number, and how many share a round.
STAGES: dict[str, tuple[Callable[[int], float], int]] = {
    "pretrain": (lambda step: 0.0, 1),
    "texts of all lengths: finetune, classify, pairs": (lambda step: Random(step).lognormvariate(-0.1, 0.5), 1),
    "a round of answers for four updates": (lambda step: 2.0 * (step % 4 == 0), 4),
}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "eval_steps"), [*((stage, "auto") for stage in STAGES), ("pretrain", 200)])
def test_hundreds_of_machines_that_others_use_end_on_time(
    stage: str, eval_steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    more_seconds, period = STAGES[stage]
    config = CONFIG.model_copy(update={"eval_steps": eval_steps})
    estimate = Speed(step=1.0, evaluation=4.0, save=2.0, sampling=1.0)
    ends = {}
    for seed in range(100):
        machine = Machine(lambda now: 0.5, 2.0, slower=trace(seed), more_seconds=more_seconds)
        machine.run(monkeypatch, config, estimate, period=period)
        assert machine.factors[-1] == pytest.approx(0.0, abs=1e-12)
        ends[seed] = machine.now / (60 * MINUTES) - 1
    late = {seed: round(share, 3) for seed, share in ends.items() if abs(share) > 0.03}
    assert not late


def test_a_round_of_answers_is_timed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last look at the clock fell on three updates between two rounds: it gave the run 94 steps too many."""
    machine = Machine(lambda now: 0.1, 2.0, slower=trace(17), more_seconds=lambda step: 2.0 * (step % 4 == 0))
    machine.run(monkeypatch, CONFIG.model_copy(update={"eval_steps": "auto"}), period=4)
    assert machine.now == pytest.approx(60 * MINUTES, rel=0.03)


def test_a_bad_moment_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One evaluation fell on a slow moment among fast steps: four more seemed to take longer than the minutes that were
    left, and the run ended at once, at 64 % of them."""
    more_seconds, _ = STAGES["texts of all lengths: finetune, classify, pairs"]
    machine = Machine(lambda now: 0.5, 2.0, slower=trace(52), more_seconds=more_seconds)
    estimate = Speed(step=1.0, evaluation=4.0, save=2.0, sampling=1.0)
    machine.run(monkeypatch, CONFIG.model_copy(update={"eval_steps": "auto"}), estimate)
    assert machine.now == pytest.approx(60 * MINUTES, rel=0.03)


def test_the_count_that_was_asked_for_is_never_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned to need all its time, a run turns out to be faster: it takes the steps asked for, not more."""
    config = CONFIG.model_copy(update={"steps": 4500})
    machine = Machine(lambda now: 0.05, 2.0)
    state = machine.run(monkeypatch, config, most_steps=4500)
    assert not machine.plans[0].is_fixed and machine.plans[0].total_steps < 4500
    assert state.step == 4500
    assert machine.factors[-1] == pytest.approx(0.0, abs=1e-12)


def test_a_plan_survives_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    machine = Machine(*MACHINES["slow saves"])
    machine.run(monkeypatch)
    last: Plan = machine.plans[-1]
    (tmp_path / "plan.json").write_text(last.to_json())
    again = read_plan(tmp_path)
    assert again == last
    assert [last.factor(step, CONFIG) for step in range(last.total_steps)] == machine.factors


def test_a_save_is_timed_before_the_first_step_and_leaves_nothing(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, run, now = RunDirectory.publish_step, RunDirectory(tmp_path / "r"), [0.0]

    def slow(directory: RunDirectory, step: int) -> Any:
        now[0] += 0.5
        return publish(directory, step)

    def tick() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr("tiny_transformer.training.speed.time", SimpleNamespace(perf_counter=tick))
    monkeypatch.setattr("tiny_transformer.stages.run.time", SimpleNamespace(monotonic=lambda: 0.0))  # of fetching
    monkeypatch.setattr(RunDirectory, "publish_step", slow)
    dataset, console = open_dataset(tiny_data), Console(file=io.StringIO())
    request = tiny_request(tiny_data, run.path, max_train_minutes=0.02)
    opened = Pretraining(fit_vocabulary(request.config, dataset, console), dataset)
    speed = Run(request, opened, run, Hardware(torch.device("cpu"), None), console).measure_speed()
    assert speed.save == pytest.approx(0.501)
    assert speed.step == pytest.approx(0.001) and speed.evaluation > 0
    assert not list(run.path.iterdir())


def test_the_time_of_planning_has_a_name_of_its_own(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Run.measure_speed
    monkeypatch.setattr(Run, "measure_speed", lambda run: time.sleep(0.5) or measure(run))
    state = run_tiny(tiny_data, tmp_path / "r", steps=3, max_train_minutes=0.02).state
    assert 0.5 < state.seconds["planning"] < state.elapsed_seconds
    assert "timing steps to plan the run" in time_section(state.seconds, state.elapsed_seconds)
    assert "planning" not in run_tiny(tiny_data, tmp_path / "counted", steps=3).state.seconds
