"""The learning rate: values at the joints, for each shape."""

from __future__ import annotations

import pytest

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.training.plan import make_plan, plan_for_minutes
from tiny_transformer.training.schedules import Schedule
from tiny_transformer.training.state import TrainState


def test_warm_up_rises_to_the_peak_in_equal_steps() -> None:
    schedule = Schedule("cosine", total_steps=100, warmup_steps=4)
    assert [schedule.factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_last_step_uses_the_final_fraction(shape: str) -> None:
    schedule = Schedule(shape, total_steps=100, warmup_steps=10, final_fraction=0.1)
    assert schedule.factor(99) == pytest.approx(0.1)
    assert schedule.factor(54) == pytest.approx(0.55)  # half-way down
    factors = [schedule.factor(step) for step in range(9, 100)]
    assert factors == sorted(factors, reverse=True)


def test_decay_fraction_keeps_the_peak_before_the_decay() -> None:
    schedule = Schedule("linear", total_steps=110, warmup_steps=10, decay_fraction=0.5, final_fraction=0.0)
    assert schedule.factor(59) == 1.0
    assert schedule.factor(60) == pytest.approx(0.98)
    assert schedule.factor(109) == 0.0


def test_constant_stays_at_the_peak() -> None:
    schedule = Schedule("constant", total_steps=10, warmup_steps=0)
    assert {schedule.factor(step) for step in range(10)} == {1.0}


def test_a_plan_for_minutes_fits_steps_evaluations_and_saves() -> None:
    config = TrainingConfig(max_train_minutes=2, eval_steps=10, save_steps=None, warmup_fraction=0.1)
    plan = plan_for_minutes(config, TrainState(), step_seconds=0.5, eval_seconds=3.0)
    # 120 s - a last evaluation of 3 s - a last save of 2 s; each step costs 0.5 s and a tenth of an evaluation and its
    # save
    assert plan.total_steps == 115
    assert plan.warmup_steps == 12  # 11.5, rounded to even
    assert "115 steps of 0.50 s fit 2 minutes" in plan.reason


def test_warm_up_is_never_longer_than_the_run() -> None:
    assert make_plan(TrainingConfig(warmup_steps=50), 10, "").warmup_steps == 10


def test_steps_and_minutes_together_take_the_shorter() -> None:
    config = TrainingConfig(max_train_minutes=2, steps=7)
    assert plan_for_minutes(config, TrainState(), step_seconds=0.5, eval_seconds=0.0).total_steps == 7


def test_a_resumed_run_counts_the_minutes_it_has_used() -> None:
    config = TrainingConfig(max_train_minutes=2, save_steps=None)
    plan = plan_for_minutes(config, TrainState(step=50, elapsed_seconds=60.0), step_seconds=1.0, eval_seconds=0.0)
    assert plan.total_steps == 50 + 58


def test_a_plan_holds_while_the_same_is_asked() -> None:
    plan = make_plan(TrainingConfig(steps=10), 10, "")
    assert plan.answers(TrainingConfig(steps=10, seed=5))
    assert not plan.answers(TrainingConfig(steps=11))
    assert not plan.answers(TrainingConfig(steps=10, max_train_minutes=1))
