"""What a person sees while a model trains: a bar with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tiny_transformer.training.state import TrainState

PLAIN_LINE_SECONDS = 10.0
TOLD_AFTER, LONG_SECONDS, SHORT_MINUTES = 6, 180, 4  # steps; a run of more is told to who has not asked for a length


class TrainingProgress:
    """Shows each step of a run; the training loop's progress.

    Args:
        console: where to write.
        total_steps: the length of the run.
        first_step: where a resumed run stands.
        is_asked: whether anybody has said how long the run is to be.
        target: what is counted, in one word.
    """

    def __init__(
        self,
        console: Console,
        total_steps: int,
        first_step: int = 0,
        *,
        is_asked: bool = True,
        target: str = "token",
    ) -> None:
        self._target = target
        self._console, self._total, self._first, self._is_asked = console, total_steps, first_step, is_asked
        self._second_step = 0.0  # when it began: the first is slower
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=first_step, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, state: TrainState, tokens_per_second: float) -> None:
        """One more update has been made."""
        figures = f"loss {state.metrics['loss']:6.3f}  {tokens_per_second:9,.0f} {self._target}s/s"
        validation = f"  val {state.metrics['val_loss']:.3f}" if "val_loss" in state.metrics else ""
        self._bar.update(self._task, completed=state.step, figures=figures + validation)
        now = time.monotonic()
        if state.step == 1:
            self._second_step = now
        if state.step == TOLD_AFTER and not self._is_asked and self._first == 0:
            self._tell_length((now - self._second_step) / (TOLD_AFTER - 1))
        due = now - self._last_line >= PLAIN_LINE_SECONDS or state.step in (self._first + 1, self._total)
        if not self._console.is_terminal and due:
            self._last_line = now
            left = (now - self._started) / (state.step - self._first) * (self._total - state.step)
            done = f"step {state.step:{len(f'{self._total:,}')},}/{self._total:,}"
            eta = str(timedelta(seconds=round(left)))
            with suppress(OSError):  # whoever read the lines has left; the run goes on
                self._console.print(f"{done}  {figures}  ETA {eta}{validation}", highlight=False)

    def _tell_length(self, step_seconds: float) -> None:
        """How long a run will take whose length is the default, and what to say instead."""
        seconds = step_seconds * self._total
        if seconds < LONG_SECONDS:
            return
        steps = max(10, int(float(f"{60 * SHORT_MINUTES / step_seconds:.1g}")))
        with suppress(OSError):
            self._console.print(
                f"no length was asked for, so the run has {self._total:,} steps: about {seconds / 60:,.0f} minutes at "
                f"this speed. --minutes {SHORT_MINUTES} chooses a model and makes the most of that time; "
                f"--steps {steps} keeps this model and makes the run shorter. Ctrl+C ends it here, saved",
                highlight=False,
                markup=False,
            )

    def length(self, total_steps: int) -> None:
        """The run will have this many steps."""
        self._total = total_steps
        self._bar.update(self._task, total=total_steps)
