"""The plain lines of a run that is not watched on a terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from tiny_transformer.training import progress as progress_module
from tiny_transformer.training.progress import TrainingProgress
from tiny_transformer.training.state import TrainState


@pytest.mark.parametrize(
    ("is_asked", "first", "seconds"), [(False, 0, 0.6), (True, 0, 0.6), (False, 3, 0.6), (False, 0, 0.1)]
)
def test_a_long_run_whose_length_nobody_asked_for_says_how_long_it_will_take(
    is_asked: bool, first: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now))
    console = Console(file=io.StringIO(), width=1000)
    with TrainingProgress(console, 1_000, first, is_asked=is_asked) as progress:
        for step in range(first + 1, 12):
            now += 30.0 if step == 1 else seconds  # the first is slow, and says nothing
            progress.step(TrainState(step=step, metrics={"loss": 1.0}), 1.0)
    told = console.file.getvalue()  # ty: ignore[unresolved-attribute]
    expected = "1,000 steps: about 10 minutes at this speed. --minutes 4"
    assert (expected in told and "--steps 400 " in told) == (not is_asked and first == 0 and seconds == 0.6)
    assert told.count("no length was asked for") <= 1 and (expected in told or "no length" not in told)


def test_the_lines_stand_under_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "PLAIN_LINE_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=200)
    with TrainingProgress(console, 1_200) as progress:
        for step, loss, speed in ((1, 12.345, 1_234.5), (57, 6.9, 98_765.4), (1_200, 0.5, 1_234_567.0)):
            state = TrainState(step=step, metrics={"loss": loss, **({"val_loss": 0.61} if step == 1_200 else {})})
            progress.step(state, speed)
    lines = console.file.getvalue().splitlines()  # ty: ignore[unresolved-attribute]
    assert [line.partition("  ETA")[0] for line in lines] == [
        "step     1/1,200  loss 12.345      1,234 tokens/s",
        "step    57/1,200  loss  6.900     98,765 tokens/s",
        "step 1,200/1,200  loss  0.500  1,234,567 tokens/s",
    ]
    assert lines[-1].endswith("  ETA 0:00:00  val 0.610")
