"""log.jsonl: one JSON object per logged step, steps strictly increasing, each step once.

A line that was not finished (the process was killed, the power went) is at the end of the file, and is ignored by
readers and dropped by the next writer.

Lines carry no checksum of their own, so that any program can read and write them. Instead each checkpoint notes how
long the log was and what its SHA-256 was (`LogMark`); everything up to there is vouched for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.commit import atomic_write, make_directories
from tiny_transformer.storage.fs import CHUNK_BYTES, refusals
from tiny_transformer.storage.lock import is_same_file
from tiny_transformer.storage.reading import MAX_LOG_BYTES, open_regular, read_regular


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The records of a log, oldest first; a missing log is an empty one, an unfinished last line is ignored.

    Raises UserError: BAD_DATA naming the line that is not a record or repeats a step.
    """
    return [record for record, _ in _records(Path(path))]


@dataclass(frozen=True)
class LogMark:
    """How long a log was at a checkpoint, in bytes, and the SHA-256 of these bytes."""

    size_bytes: int
    sha256: str


class StepLog:
    """Appends records to a log. A number that is not finite is written as null, since JSON has no word for it.

    Args:
        path: the file, which is made if missing.
        after: the step of a run that is resumed: the records of all later ones, which it is about to do again, are
            dropped for good.
    """

    def __init__(self, path: Path | str, after: int | None = None) -> None:
        self.path = Path(path)
        kept = [(record, end) for record, end in _records(self.path) if after is None or record["step"] <= after]
        with refusals("write", self.path):
            make_directories(self.path.parent)
            if self.path.is_file() and self.path.lstat().st_nlink > 1:
                # A copy made of hard links shares this file with the run it was made of, which stays as it is.
                atomic_write(self.path, read_regular(self.path, MAX_LOG_BYTES))
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            self._cut(kept)
            if after is not None:
                self.sync()
        except BaseException:
            os.close(self._fd)
            raise

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
        self._hash.update(line)

    def sync(self) -> LogMark:
        """Brings the log to the disk, and reads back what was added since the last time.

        Called before a checkpoint, so that no checkpoint outlives its own log.

        Returns:
            What the checkpoint is to note.

        Raises:
            UserError: IO, the system refuses, a line was lost, or the file is not the one that was opened: somebody
                removed or replaced it, and every further line would go nowhere.
        """
        with refusals("write", self.path):
            os.fsync(self._fd)
            with suppress(OSError, AttributeError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for piece in _pieces(self._fd, self._checked, self._end):
                self._found.update(piece)
            if self._found.digest() != self._hash.digest():
                raise OSError("what was read back is not what was written")
            if not is_same_file(self._fd, self.path):
                raise OSError("it was removed or replaced while the run went on")
        self._checked = self._end
        return LogMark(self._end, self._hash.hexdigest())

    def close(self) -> None:
        """Let go of the file; every line is on the disk already."""
        os.close(self._fd)

    def _cut(self, kept: list[tuple[dict[str, Any], int]]) -> None:
        self._end = kept[-1][1] if kept else 0
        self._last_step = kept[-1][0]["step"] if kept else -1
        self._hash = hashlib.sha256()
        with refusals("write", self.path):
            os.ftruncate(self._fd, self._end)
            for piece in _pieces(self._fd, 0, self._end):
                self._hash.update(piece)
        self._found, self._checked = self._hash.copy(), self._end


def log_problem(path: Path, mark: Any) -> str | None:
    """What is wrong with a log that a checkpoint vouches for, in words; None when it is as it was then.

    Args:
        path: log.jsonl.
        mark: what the checkpoint's run_info.json says under `log`; a checkpoint of an older version has none.
    """
    size = mark.get("size_bytes") if isinstance(mark, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_LOG_BYTES:
        return None
    hasher, left = hashlib.sha256(), size
    try:
        with open_regular(path, MAX_LOG_BYTES) as file:
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                hasher.update(chunk)
                left -= len(chunk)
    except FileNotFoundError:
        return f"{path.name} is missing" if size else None
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except UserError as error:
        return error.what
    if left:
        return f"{path.name} is {left:,} bytes shorter than it was at the checkpoint"
    return None if hasher.hexdigest() == mark.get("sha256") else f"{path.name} was changed after the checkpoint"


def _pieces(fd: int, begin: int, end: int) -> Iterator[bytes]:
    """The bytes of an open file from one place to another, as far as there are any."""
    while begin < end and (chunk := os.pread(fd, min(end - begin, CHUNK_BYTES), begin)):
        yield chunk
        begin += len(chunk)


def _records(path: Path) -> list[tuple[dict[str, Any], int]]:
    """Each record with the offset of its end."""
    with refusals("read", path):
        try:
            raw = read_regular(path, MAX_LOG_BYTES)
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
    remedy = "move the log aside to continue without its history"
    return UserError(f"line {number} {what}", where=f"{path}:{number}", remedy=remedy, exit_code=ExitCode.BAD_DATA)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
