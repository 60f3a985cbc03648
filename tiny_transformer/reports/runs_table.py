"""The table of runs and checkpoints, for `tiny-transformer runs`.

It answers at once: no torch, and no weight is read. Whether a checkpoint counts is decided by its manifest and the
sizes of its files, never by the directory being there; `tiny-transformer doctor` compares every byte.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_transformer.reports.formats import NOTHING, ago, count, loss, plain, size
from tiny_transformer.reports.run_reader import StepDirectory, is_run_directory, number, read_checkpoints, state_of

if TYPE_CHECKING:
    from rich.console import Console

NOT_WHOLE = "not whole"


@dataclass(frozen=True)
class RunSummary:
    """One run: where it is, what became of it, its checkpoints by step."""

    path: Path
    state: str  # see `state_of`
    checkpoints: list[StepDirectory]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def newest(self) -> float:
        """When the newest checkpoint was saved, in seconds since the epoch; 0 without one."""
        return max((c.saved_at or 0.0 for c in self.checkpoints), default=0.0)


def list_runs(*paths: Path) -> list[RunSummary]:
    """The runs in any number of run directories and folders of runs, the newest last.

    A path that does not exist holds no runs.
    """
    directories: dict[Path, Path] = {}  # by resolved path, so that a run named twice is listed once
    for path in paths:
        if is_run_directory(path):
            found = [path]
        elif path.is_dir():
            found = sorted(child for child in path.iterdir() if child.is_dir() and is_run_directory(child))
        else:
            found = []
        directories |= {directory.resolve(): directory for directory in found}
    return sorted((_summary(directory) for directory in directories.values()), key=lambda run: (run.newest, run.name))


def _summary(path: Path) -> RunSummary:
    checkpoints = read_checkpoints(path)
    return RunSummary(path, state_of(path, checkpoints), checkpoints)


def print_runs(console: Console, summaries: list[RunSummary], now: float | None = None) -> None:
    """One row per checkpoint, grouped by run; `now` is in seconds since the epoch.

    Below it stands what to do about checkpoints that do not count, each command unbroken on a line of its own, to be
    copied. Without any run there is one helpful sentence.
    """
    from rich.table import Table
    from rich.text import Text

    if not summaries:
        console.print("No runs here yet: `tiny-transformer train` makes one, and `make demo` a small one in minutes.")
        return

    now = time.time() if now is None else now
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("run", vertical="top", overflow="fold")
    table.add_column("state")
    for heading in ("step", "epoch", "train\nloss", "val\nloss", "bits/\nbyte", "size", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for run in summaries:
        rows = [_row(checkpoint, now) for checkpoint in run.checkpoints] or [["none", *[NOTHING] * 6, ""]]
        for index, row in enumerate(rows):
            head = [plain(run.name), run.state] if index == 0 else ["", ""]
            style = "dim" if row[-1] == NOT_WHOLE else ""
            table.add_row(*(Text(cell) for cell in head), *(Text(cell, style) for cell in row))
    console.print(table)
    hints = [_hint(run) for run in summaries if any(c.problem for c in run.checkpoints)]
    if hints:
        console.print()
        console.print(Text("\n".join(hints), style="yellow"), soft_wrap=True)


def _row(checkpoint: StepDirectory, now: float) -> list[str]:
    info = checkpoint.info
    epoch = number(info, "epoch")
    marks = [name for name, marked in (("last", checkpoint.is_last), ("best", checkpoint.is_best)) if marked]
    return [
        count(checkpoint.step),
        NOTHING if epoch is None else f"{epoch:.2f}",
        loss(number(info, "train_loss")),
        loss(number(info, "val_loss")),
        loss(number(info, "val_bits_per_byte")),
        size(checkpoint.size_bytes),
        NOTHING if checkpoint.saved_at is None else ago(now - checkpoint.saved_at),
        NOT_WHOLE if checkpoint.problem else ", ".join(marks),
    ]


def _hint(run: RunSummary) -> str:
    return plain(f"to see what is not whole: tiny-transformer doctor {shlex.quote(str(run.path))}")
