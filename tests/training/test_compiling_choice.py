"""`--minutes` compiles where that pays: measured gain times time left against measured compiling."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.hardware import Hardware
from tiny_transformer.stages.minutes import compiling
from tiny_transformer.stages.minutes.compiling import Trial, decide_compiling

CPU = Hardware(torch.device("cpu"), None)


class Machine:
    """A made-up machine: its clock, how long it compiles (first, and with the cache), a step plain and compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, probe: float, cold: float, warm: float, step: float) -> None:
        self.now, self.asked, self._left = 0.0, 0, [cold, warm]
        self._plain, self._compiled = 0.1, step
        self.lacks: Exception | None = None
        monkeypatch.setattr(compiling.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(compiling, "compile_one_operation", lambda device: self._probe(probe))

    def _probe(self, seconds: float) -> None:
        self.now += seconds
        if self.lacks is not None:
            raise self.lacks

    def step_seconds(self, config: RunConfig) -> float:
        self.asked += 1
        if not config.training.compile:
            self.now += 10.0
            return self._plain
        self.now += self._left.pop(0)
        return self._compiled

    def decide(self, minutes: float, **training: object) -> tuple[bool, str]:
        console = Console(file=io.StringIO(), width=300)
        config = load_run_config({"training": training})
        decided = decide_compiling(config, self.step_seconds, CPU, console, lambda: 60 * minutes - self.now)
        return decided.training.compile, console.file.getvalue()  # ty: ignore[unresolved-attribute]


@pytest.mark.parametrize(
    ("step", "warm", "pays"),
    [(0.08, 20.0, True), (0.08, 200.0, False), (0.099, 20.0, False), (0.12, 0.0, False)],
)
def test_compiling_is_chosen_where_it_saves_more_than_it_takes(step, warm, pays, monkeypatch):
    machine = Machine(monkeypatch, probe=4.0, cold=36.0, warm=warm, step=step)
    compiled, told = machine.decide(minutes=15)
    assert compiled == pays
    left = 900 - 50 - warm
    assert f"The model {'is' if pays else 'is not'} compiled: a step takes {step:.2g} s instead of 0.1" in told
    assert f"of {left:.0f}, and compiling takes {warm:.0f}." in told
    assert told.count("\n") == 1


def test_what_pays_is_a_matter_of_time_left():
    trial = Trial(plain=0.1, compiled=0.08, compiling=20.0)  # saves a fifth: 20 s of the first 100 are compiling
    assert not trial.pays(100.0)
    assert trial.pays(100.1)


def test_nothing_is_tried_in_short_runs_or_where_it_was_said(monkeypatch):
    machine = Machine(monkeypatch, probe=4.0, cold=36.0, warm=20.0, step=0.01)
    assert machine.decide(minutes=9.9) == (False, "")
    assert machine.decide(minutes=60, compile=False) == (False, "")
    assert machine.decide(minutes=60, compile=True) == (True, "")
    assert machine.decide(minutes=60, final_dropout=0.0) == (False, "")
    assert machine.asked == 0 and machine.now == 0.0


def test_a_slow_compiler_or_none_is_told_and_the_run_goes_on(monkeypatch):
    machine = Machine(monkeypatch, probe=60.0, cold=36.0, warm=20.0, step=0.01)
    assert machine.decide(minutes=10) == (
        False,
        "The model is not compiled: one operation alone took 60 s to compile.\n",
    )
    machine.lacks = RuntimeError("No working C++ compiler found [1]\nand a long trace")
    assert machine.decide(minutes=60) == (
        False,
        "The model is not compiled: RuntimeError: No working C++ compiler found [1]\n",
    )
    assert machine.asked == 0
