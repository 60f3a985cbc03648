"""The learning rate: values at the joints, for each shape."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.stages.summary import announce, rate_in_words
from tiny_transformer.training.plan import (
    REVISIONS,
    Pace,
    Plan,
    make_plan,
    plan_for_counts,
    plan_for_minutes,
    read_plan,
)
from tiny_transformer.training.speed import Speed
from tiny_transformer.training.state import TrainState


def rates(**config: Any) -> Callable[[int], float]:
    """The share of the peak rate by update, as the plan of such a config has it."""
    training = TrainingConfig(**config)
    plan = plan_for_counts(training, 64)
    return lambda step: plan.factor(step, training)


def test_warm_up_rises_to_the_peak_in_equal_steps() -> None:
    factor = rates(steps=100, warmup_steps=4)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_last_step_uses_the_final_fraction(shape: str) -> None:
    factor = rates(steps=100, warmup_steps=10, schedule=shape, final_rate_fraction=0.1)
    assert factor(99) == pytest.approx(0.1)
    assert factor(54) == pytest.approx(0.55)  # half-way down
    factors = [factor(step) for step in range(9, 100)]
    assert factors == sorted(factors, reverse=True)


def test_decay_fraction_keeps_the_peak_before_the_decay() -> None:
    factor = rates(steps=110, warmup_steps=10, schedule="linear", decay_fraction=0.5, final_rate_fraction=0.0)
    assert factor(59) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.98)
    assert factor(109) == pytest.approx(0.0)


def test_constant_stays_at_the_peak() -> None:
    factor = rates(steps=10, warmup_steps=0, schedule="constant")
    assert {factor(step) for step in range(10)} == {1.0}


def test_wsd_stays_at_the_peak_and_decays_at_the_end() -> None:
    factor = rates(steps=100, warmup_steps=0, schedule="wsd")
    assert [factor(step) for step in (0, 50, 79)] == [1.0, 1.0, pytest.approx(1.0)]
    assert factor(89) == pytest.approx(0.55)
    assert factor(99) == pytest.approx(0.1)


def test_a_revised_schedule_goes_on_from_where_it_was_and_ends_decayed() -> None:
    plan = make_plan(TrainingConfig(warmup_steps=10), 100, "")
    longer = plan.ending_at(300, seen_from=30, reason="", is_fixed=True)
    config = TrainingConfig(final_rate_fraction=0.0)
    assert [plan.factor(step, config) for step in range(30)] == [longer.factor(step, config) for step in range(30)]
    factors = [longer.factor(step, config) for step in range(10, 300)]
    assert all(0 <= one - two < 0.03 for one, two in pairwise(factors))  # no jump where the plan changed
    assert factors[-1] == pytest.approx(0.0)


def test_a_plan_for_minutes_fits_steps_evaluations_and_saves() -> None:
    config = TrainingConfig(max_train_minutes=2, eval_steps=10, save_steps=None, warmup_fraction=0.1)
    plan = plan_for_minutes(config, 64, TrainState(), Speed(0.5, 3.0, 2.0))
    # 60 s of steps, and twelve evaluations of 3 s with saves of 2 s, the last at the end; another step takes both
    assert plan.total_steps == 120
    assert plan.warmup_steps == 12
    assert "120 steps of 0.5 s fit 2 minutes" in plan.reason


@pytest.mark.parametrize("done", [0, 7, 12, 30])
@pytest.mark.parametrize(("eval_steps", "save_steps"), [(None, None), (10, None), (None, 4), (10, 4), (5, 5), (3, 7)])
def test_the_steps_come_nearest_to_the_time(done: int, eval_steps: int | None, save_steps: int | None) -> None:
    """A step more or less would be further from the time that is asked for, with what the loop does at each."""
    config, speed = TrainingConfig(eval_steps=eval_steps, save_steps=save_steps), Speed(0.5, 3.0, 2.0, 0.7)

    def seconds(total: int) -> float:
        spent = 2 * 0.7
        for step in range(done + 1, total + 1):
            evaluated = eval_steps is not None and (step % eval_steps == 0 or step == total)
            saved = evaluated or step == total or (save_steps is not None and step % save_steps == 0)
            spent += 0.5 + 3.0 * evaluated + 2.0 * saved
        return spent

    for minutes in (0.05, 0.5, 1.0, 1.37):
        steps, asked = speed.steps_in(60 * minutes, config, 2, done), 60 * minutes
        before, here, after = (seconds(done + n) for n in (steps - 1, steps, steps + 1))
        assert abs(here - asked) <= abs(after - asked)
        assert steps == 1 or abs(here - asked) < abs(before - asked) + 1e-9


def test_warm_up_is_never_longer_than_half_the_run() -> None:
    assert make_plan(TrainingConfig(warmup_steps=50), 10, "").warmup_steps == 5


def test_of_steps_tokens_and_minutes_the_shortest_counts() -> None:
    def length(**asked: float) -> int:
        config = TrainingConfig(**asked, save_steps=None)  # ty: ignore[invalid-argument-type]
        return plan_for_minutes(config, 64, TrainState(), Speed(0.5, 0.0, 0.0)).total_steps

    assert length(max_train_minutes=2) == 240
    assert length(max_train_minutes=2, steps=7) == 7
    assert length(max_train_minutes=2, steps=70, max_tokens=65) == 2  # rounded up to a whole step
    assert length(max_train_minutes=2, steps=999, max_tokens=10**9) == 240


def test_a_resumed_run_counts_the_minutes_it_has_used() -> None:
    config = TrainingConfig(max_train_minutes=2, save_steps=None, eval_steps=None)
    plan = plan_for_minutes(config, 64, TrainState(step=50, elapsed_seconds=60.0), Speed(1.0, 0.0, 2.0))
    assert plan.total_steps == 50 + 58
    config = config.model_copy(update={"eval_steps": "auto"})  # half of eight evaluations are left, each with its save
    plan = plan_for_minutes(config, 64, TrainState(step=50, elapsed_seconds=60.0), Speed(1.0, 0.0, 2.0))
    assert plan.total_steps == 50 + 60 - 4 * 2


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = make_plan(TrainingConfig(max_train_minutes=2), 100, "because", is_fixed=False)
    plan = plan.ending_at(90, seen_from=33, reason="slower", is_fixed=True)
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert read_plan(tmp_path) == plan


class Run:
    """A run on a made-up clock: each step takes `seconds[i]`."""

    def __init__(self, pace: Pace, step_seconds: Callable[[int], float]) -> None:
        self.pace, self.step_seconds, self.state, self.factors = pace, step_seconds, TrainState(), []

    def go(self, until: int | None = None) -> None:
        while self.state.step < (until or self.pace.total_steps):
            self.pace.revise(self.state)
            self.factors.append(self.pace.factor(self.state.step))
            seconds = self.step_seconds(self.state.step)
            self.state.step += 1
            self.state.spend("steps", seconds)
            self.state.elapsed_seconds += seconds


def made_pace(config: TrainingConfig, estimate: Speed, written: list[Plan]) -> Pace:
    return Pace(plan_for_minutes(config, 64, TrainState(), estimate), config, estimate, written.append)


@pytest.mark.parametrize("real", [0.05, 0.1, 0.2])
def test_a_wrong_first_guess_of_the_speed_is_corrected(real: float) -> None:
    config, written = TrainingConfig(max_train_minutes=2, save_steps=None), []
    run = Run(made_pace(config, Speed(0.1, 0.0, 0.0), written), lambda step: real if step else 5.0)
    run.go()
    assert run.state.elapsed_seconds == pytest.approx(120, rel=0.03)
    assert run.factors[-1] == pytest.approx(0.1)  # fully decayed
    assert [plan.is_fixed for plan in written] == [False] * len(REVISIONS) + [True]
    totals = [plan.total_steps for plan in written[2:]]  # soon it is right, and stays so
    assert max(totals) < 1.01 * min(totals)


def test_a_resumed_run_follows_the_plan_of_the_first_one() -> None:
    config, written = TrainingConfig(max_train_minutes=2, save_steps=None), []
    first = Run(made_pace(config, Speed(0.1, 0.0, 0.0), written), lambda step: 0.15)
    first.go()
    for checkpoint in (0, 20, 100, 300, 700):  # before, between and after the revisions
        again = Run(Pace(written[-1], config, None, lambda plan: None), lambda step: 0.01)
        again.state.step = checkpoint
        again.go()
        assert again.factors == first.factors[checkpoint:]


def test_one_step_is_called_one_step() -> None:
    config = TrainingConfig(steps=1, warmup_steps=0)
    assert plan_for_counts(config, 64).reason == "1 step as asked"
    config = TrainingConfig(steps=2, warmup_steps=1)
    assert rate_in_words(plan_for_counts(config, 64), config) == "adamw, 1 step warm-up, cosine decay"
    config = TrainingConfig(max_train_minutes=1, eval_steps=None, save_steps=None)
    assert plan_for_minutes(config, 64, TrainState(), Speed(60.0, 0.0, 0.0)).reason == "1 step of 60 s fits 1 minute"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "llama", "sliding_window": 64}, "a token sees the last 64"),
        ({"swa_window": 64}, "a token sees the last 64"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4}, "last 8 in 2 of the layers"),
    ],
)
def test_a_window_of_attention_is_announced(model: dict[str, object], words: str | None) -> None:
    config, console = load_run_config({"model": model}), Console(file=io.StringIO(), width=200)
    plan = make_plan(config.training, 100, "measured")
    announce(Path("runs/x"), plan, config, "some text", 1_000_000, "cpu", console)
    told = console.file.getvalue()  # ty: ignore[unresolved-attribute]
    assert words in told if words else "sees" not in told


def test_what_of_the_rates_a_run_does_not_follow_is_said() -> None:
    short = TrainingConfig(steps=5, warmup_steps=10, muon_learning_rate=0.1)
    said = rate_in_words(plan_for_counts(short, 64), short)
    assert "2 steps warm-up (half the run, instead of the 10 asked for)" in said
    assert "muon_learning_rate has no effect without optimizer=muon" in said
    overruled = {"schedule": "constant", "decay_fraction": 0.5, "final_rate_fraction": 0.3, "warmup_fraction": 0.2}
    flat = TrainingConfig(steps=100, warmup_steps=10, eval_steps=None, eval_tokens=99, **overruled)
    assert rate_in_words(plan_for_counts(flat, 64), flat) == (
        "adamw, 10 steps warm-up, no decay; warmup_fraction has no effect beside warmup_steps; decay_fraction has no "
        "effect with schedule=constant; final_rate_fraction has no effect with schedule=constant; eval_tokens has no "
        "effect without evaluation"
    )
    usual = TrainingConfig(steps=100, warmup_steps=10, optimizer="muon", muon_learning_rate=0.1)
    assert rate_in_words(plan_for_counts(usual, 64), usual) == "muon, 10 steps warm-up, cosine decay"
