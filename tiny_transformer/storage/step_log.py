"""log.jsonl: one JSON object per logged step, steps strictly increasing, each step once.

A line that was not finished (the process was killed, the power went) is at the end of the file, and is ignored by
readers and dropped by the next writer.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.commit import make_directories
from tiny_transformer.storage.fs import refusals


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The records of a log, oldest first; a missing log is an empty one, an unfinished last line is ignored.

    Raises UserError: BAD_DATA naming the line that is not a record or repeats a step.
    """
    return [record for record, _ in _records(Path(path))]


class StepLog:
    """Appends records to a log. A number that is not finite is written as null, since JSON has no word for it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        kept = _records(self.path)
        with refusals("write", self.path):
            make_directories(self.path.parent)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._cut(kept)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line; `record["step"]` must be larger than the last one's."""
        step = record["step"]
        if not isinstance(step, int) or step <= self._last_step:
            raise ValueError(f"step {step!r} cannot follow step {self._last_step} in {self.path}")
        line = json.dumps(_finite(record), allow_nan=False).encode() + b"\n"
        with refusals("write", self.path):
            done = 0
            while done < len(line):  # at a fixed place: what a refused write left is overwritten by the next one
                done += os.pwrite(self._fd, line[done:], self._end + done)
        self._last_step, self._end = step, self._end + len(line)

    def truncate_after(self, step: int) -> None:
        """Drops the records of all later steps: what a resumed run is about to do again."""
        self._cut([(record, end) for record, end in _records(self.path) if record["step"] <= step])
        self.sync()

    def sync(self) -> None:
        """Brings the log to the disk; called before a checkpoint, so that no checkpoint outlives its own log."""
        with refusals("write", self.path):
            os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _cut(self, kept: list[tuple[dict[str, Any], int]]) -> None:
        self._end = kept[-1][1] if kept else 0
        self._last_step = kept[-1][0]["step"] if kept else -1
        with refusals("write", self.path):
            os.ftruncate(self._fd, self._end)


def _records(path: Path) -> list[tuple[dict[str, Any], int]]:
    """Each record with the offset of its end."""
    with refusals("read", path):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return []
    found: list[tuple[dict[str, Any], int]] = []
    offset, last_step = 0, -1
    *lines, _unfinished = raw.split(b"\n")
    for number, line in enumerate(lines, start=1):
        offset += len(line) + 1
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _bad_line(path, number, "is not a record with a step") from None
        if not isinstance(step, int):
            raise _bad_line(path, number, f"has {step!r} for a step")
        if step <= last_step:
            raise _bad_line(path, number, f"has step {step} after step {last_step}")
        found.append((record, offset))
        last_step = step
    return found


def _bad_line(path: Path, number: int, what: str) -> UserError:
    remedy = "move the log aside to go on without its history"
    return UserError(f"line {number} {what}", where=f"{path}:{number}", remedy=remedy, exit_code=ExitCode.BAD_DATA)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
