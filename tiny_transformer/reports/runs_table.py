"""The table of runs and checkpoints, for `tiny-transformer runs`.

It answers at once: no torch, and no weight is read. Whether a checkpoint counts is decided by its manifest and the
sizes of its files, never by the directory being there; `tiny-transformer doctor` compares every byte.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_transformer.data.prepare.files import title_of
from tiny_transformer.errors import command_line, plain
from tiny_transformer.reports.formats import NOTHING, ago, count, loss, size
from tiny_transformer.reports.outcome import outcome_of
from tiny_transformer.reports.run_reader import (
    RunFiles,
    StepDirectory,
    is_run_directory,
    newest_whole,
    number,
    read_checkpoints,
    read_run,
    section,
    state_of,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOT_WHOLE = "not whole"


@dataclass(frozen=True)
class RunSummary:
    """One run: where it is, what became of it, its checkpoints by step.

    `is_named`: the run itself was asked about, not a folder it lies in.
    """

    path: Path
    state: str  # see `state_of`
    checkpoints: list[StepDirectory]
    is_named: bool = False

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.path.resolve().name

    @property
    def newest(self) -> float:
        """When the newest checkpoint was saved, in seconds since the epoch; 0 without one."""
        return max((c.saved_at or 0.0 for c in self.checkpoints), default=0.0)

    @cached_property
    def info(self) -> dict[str, Any]:
        """run_info.json of the newest whole checkpoint; what its log tells of a run that has none, or that diverged
        after it."""
        newest = newest_whole(self.checkpoints)
        saved = newest.info if newest else {}
        if saved and self.state != "diverged":
            return saved
        outcome = outcome_of(self._files)
        told = {
            "step": outcome.step,
            "elapsed_seconds": outcome.elapsed_seconds,
            "train_loss": outcome.train_loss,
            "val_loss": outcome.val_loss,
            "val_bits_per_byte": outcome.val_bits_per_byte,
        }
        return saved | {key: value for key, value in told.items() if value is not None}

    @cached_property
    def _files(self) -> RunFiles:
        return read_run(self.path)

    @property
    def is_unevaluated(self) -> bool:
        """Whether only the training loss is known."""
        return number(self.info, "val_loss") is None and number(self.info, "train_loss") is not None

    @property
    def source(self) -> str:
        """What the text is called, without folder and suffix: in the newest checkpoint, else in the settings."""
        told = section(self.info, "data").get("source")
        if told is None:
            told = section(self._files.config, "data").get("source")
        return NOTHING if told is None else title_of(str(told)) or str(told)


def list_runs(*paths: Path) -> list[RunSummary]:
    """The runs in any number of run directories and folders of runs, the newest last.

    A path that does not exist holds no runs.
    """
    directories: dict[Path, Path] = {}  # by resolved path, so that a run named twice is listed once
    named = {path.resolve() for path in paths if is_run_directory(path)}
    for path in paths:
        if is_run_directory(path):
            found = [path]
        elif path.is_dir():
            found = sorted(child for child in path.iterdir() if child.is_dir() and is_run_directory(child))
        else:
            found = []
        directories |= {directory.resolve(): directory for directory in found}
    found = [
        RunSummary(path, state_of(path, checkpoints), checkpoints, is_named=resolved in named)
        for resolved, path in directories.items()
        for checkpoints in [read_checkpoints(path)]
    ]
    return sorted(found, key=lambda run: (run.newest or _last_logged(run.path), run.name))


def _last_logged(run_dir: Path) -> float:
    """When a run that has saved nothing wrote its log, in seconds since the epoch; 0 without one."""
    with suppress(OSError):
        return (run_dir / "log.jsonl").lstat().st_mtime
    return 0.0


def print_runs(console: Console, summaries: list[RunSummary], now: float | None = None) -> None:
    """A row a run, or, where a run itself was named, a row for each of its checkpoints; `now` is in seconds since the
    epoch.

    Below it stands what to do about checkpoints that do not count, each command unbroken on a line of its own, to be
    copied. Without any run there is one helpful sentence.
    """
    from rich.text import Text

    if not summaries:
        console.print("No runs here yet: `tiny-transformer train` makes one, and `make demo` a small one in minutes.")
        return
    now = time.time() if now is None else now
    console.print(_table_of_runs(summaries, now))
    if any(run.is_unevaluated for run in summaries):
        console.print(Text("(in brackets: loss of training, never evaluated on held-out text)", style="dim"))
    for run in summaries:
        if run.is_named and run.checkpoints:
            console.print()
            console.print(_table_of_checkpoints(run, now))
    hints = [_hint(run) for run in summaries if any(c.problem for c in run.checkpoints)]
    if hints:
        console.print()
        console.print(Text("\n".join(hints), style="yellow"), soft_wrap=True)


def _table_of_runs(summaries: list[RunSummary], now: float) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("run", "text"):
        table.add_column(heading, overflow="fold")
    for heading in ("model", "min", "steps", "loss", "bits/\nbyte"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("saved", justify="right", no_wrap=True)
    for run in summaries:
        style = "dim" if run.state == NOT_WHOLE else ""
        table.add_row(*(Text(plain(cell), style) for cell in _run_row(run, now)))
    return table


def _run_row(run: RunSummary, now: float) -> list[str]:
    info, state = run.info, run.state
    seconds, parameters = number(info, "elapsed_seconds"), number(info, "num_parameters")
    step, total = number(info, "step"), number(info, "total_steps")
    best = next((c.info for c in run.checkpoints if c.is_best and c.problem is None), info)
    if state in ("stopped", "running", "diverged") and step is not None and total and step < total:
        state = f"{state}, {step / total:.0%}"
    return [
        run.name,
        run.source,
        NOTHING if parameters is None else f"{parameters / 1e6:.2f}M",
        NOTHING if seconds is None else f"{seconds / 60:.1f}",
        count(step),
        f"({loss(number(info, 'train_loss'))})" if run.is_unevaluated else loss(number(best, "val_loss")),
        loss(number(best, "val_bits_per_byte")),
        state,
        ago(now - run.newest) if run.newest else NOTHING,
    ]


def _table_of_checkpoints(run: RunSummary, now: float) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(Text(f"in {plain(run.name)}"), justify="right", overflow="fold")
    for heading in ("epoch", "train\nloss", "val\nloss", "bits/\nbyte", "size", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for checkpoint in run.checkpoints:
        row = _row(checkpoint, now)
        style = "dim" if row[-1] == NOT_WHOLE else ""
        table.add_row(*(Text(cell, style) for cell in row))
    return table


def _row(checkpoint: StepDirectory, now: float) -> list[str]:
    info = checkpoint.info
    epoch = number(info, "epoch")
    marks = [name for name, marked in (("last", checkpoint.is_last), ("best", checkpoint.is_best)) if marked]
    return [
        f"step {count(checkpoint.step)}",
        NOTHING if epoch is None else f"{epoch:.2f}",
        loss(number(info, "train_loss")),
        loss(number(info, "val_loss")),
        loss(number(info, "val_bits_per_byte")),
        size(checkpoint.size_bytes),
        NOTHING if checkpoint.saved_at is None else ago(now - checkpoint.saved_at),
        NOT_WHOLE if checkpoint.problem else ", ".join(marks),
    ]


def _hint(run: RunSummary) -> str:
    return plain(f"to see what is not whole: {command_line('tiny-transformer', 'doctor', run.path)}")
