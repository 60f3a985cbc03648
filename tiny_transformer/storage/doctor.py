"""The independent check of what the storage room wrote: what is whole, what is damaged, who is writing.

It shares no code with the writer on purpose: it was written from the description of the format, needs only the standard
library and changes nothing. The tests use it as their judge.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError

WHOLE, DAMAGED, INCOMPLETE = "whole", "damaged", "incomplete"


@dataclass
class DirectoryReport:
    """One published directory: `state` is WHOLE, DAMAGED or INCOMPLETE (no manifest: never published)."""

    name: str
    state: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_files: int = 0
    size_bytes: int = 0


@dataclass
class Report:
    """What `examine` found. `links` maps "last" and "best" to their targets."""

    path: Path
    directories: list[DirectoryReport] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    log: str | None = None
    lock: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything published is whole and the links lead to whole checkpoints. Leftovers do no harm."""
        return not self.problems and all(directory.state == WHOLE for directory in self.directories)

    def state(self, name: str) -> str | None:
        """The state of one directory, None when there is none of that name."""
        return next((directory.state for directory in self.directories if directory.name == name), None)

    def lines(self) -> list[str]:
        """A short text, worst news included."""
        out = [f"{self.path}: {'everything is whole' if self.ok else 'there are problems'}"]
        for found in self.directories:
            out.append(f"  {found.name:16} {found.state:10} {found.num_files} files, {found.size_bytes:,} bytes")
            out += [f"      {text}" for text in found.problems + found.notes]
        out += [f"  {name} -> {target}" for name, target in self.links.items()]
        out += [f"  problem: {text}" for text in self.problems]
        if self.leftovers:
            out.append(f"  left by a killed save (the next one removes it): {', '.join(self.leftovers)}")
        out += [f"  {name}: {text}" for name, text in (("log.jsonl", self.log), ("lock", self.lock)) if text]
        return out


def examine(path: Path | str) -> Report:
    """Examines a run directory, or a single published directory (a checkpoint, data), and reads every byte.

    Raises UserError: USAGE when `path` is not a directory or holds nothing to examine, IO when it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError("not a directory", where=str(path), remedy="give a run, checkpoint or data directory")
    try:
        report = Report(path)
        names = sorted(entry.name for entry in path.iterdir())
        if "manifest.json" in names or re.fullmatch(r"step-[0-9]{8,}|\.tmp-.*", path.resolve().name):
            report.directories.append(_examine_directory(path))
            return report
        steps = [name for name in names if re.fullmatch(r"step-[0-9]{8,}", name)]
        if not steps and not {"last", "best", "log.jsonl", ".lock", "config.yaml"} & set(names):
            what = "nothing to examine: neither a run nor a directory with a manifest.json"
            raise UserError(what, where=str(path), remedy="give a run, checkpoint or data directory")
        report.directories = [_examine_directory(path / name) for name in steps]
        report.leftovers = [name for name in names if name.startswith(".tmp-")]
        for link in ("last", "best"):
            if link in names:
                _examine_link(path / link, report)
        if "log.jsonl" in names:
            report.log = _examine_log(path / "log.jsonl", report)
        if ".lock" in names:
            report.lock = _examine_lock(path / ".lock")
    except OSError as error:
        raise UserError(
            f"cannot read: {error.strerror}",
            where=str(error.filename or path),
            remedy="check the directory's permissions and its disk",
            exit_code=ExitCode.IO,
        ) from error
    return report


def _examine_directory(path: Path) -> DirectoryReport:
    report = DirectoryReport(path.name, WHOLE)
    try:
        raw = (path / "manifest.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        report.state = INCOMPLETE
        report.problems.append(
            "no manifest.json: it was never published, and nothing vouches for it; --resume passes it over"
        )
        return report
    try:
        # The last 64 hexadecimal digits are the hash of the file with those digits set to zero.
        match = re.fullmatch(rb'(.*)([0-9a-f]{64})("\n\}\n)', raw, re.DOTALL)
        if not match or hashlib.sha256(match[1] + b"0" * 64 + match[3]).hexdigest().encode() != match[2]:
            raise ValueError
        listed: dict[str, Any] = {name: (e["size_bytes"], e["sha256"]) for name, e in json.loads(raw)["files"].items()}
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError):
        report.state = DAMAGED
        report.problems.append("manifest.json is damaged")
        return report
    for name, (size_bytes, sha256) in listed.items():
        if problem := _file_problem(path, name, size_bytes, sha256):
            report.problems.append(f"{name}: {problem}")
    report.state = DAMAGED if report.problems else WHOLE
    report.num_files, report.size_bytes = len(listed), sum(size for size, _ in listed.values())
    present = {str((Path(folder) / n).relative_to(path)) for folder, _, names in os.walk(path) for n in names}
    if extra := sorted(present - listed.keys() - {"manifest.json"}):
        report.notes.append(f"also here, not part of it: {', '.join(extra)}")
    return report


def _file_problem(directory: Path, name: str, size_bytes: int, sha256: str) -> str | None:
    if name.startswith("/") or ".." in name.split("/"):
        return "its name leads out of the directory"
    try:
        with (directory / name).open("rb") as file:
            found_bytes = os.fstat(file.fileno()).st_size
            if found_bytes != size_bytes:
                return f"{found_bytes:,} bytes instead of {size_bytes:,}"
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return "its bytes are not those that were saved"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _examine_link(link: Path, report: Report) -> None:
    if not link.is_symlink():
        report.problems.append(f"{link.name} is not a link")
        return
    target = str(link.readlink())
    report.links[link.name] = target
    state = report.state(target)
    if state != WHOLE:
        report.problems.append(f"{link.name} leads to {target}, which is {state or 'not a checkpoint of this run'}")


def _examine_log(path: Path, report: Report) -> str:
    text = path.read_bytes()
    complete, _, unfinished = text.rpartition(b"\n")
    steps = []
    for number, line in enumerate(complete.split(b"\n") if complete else [], start=1):
        try:
            step = json.loads(line)["step"]
            if not isinstance(step, int):
                raise TypeError
            steps.append(step)
        except (ValueError, TypeError, KeyError, RecursionError):
            report.problems.append(f"log.jsonl line {number} is not a record with a step")
            return "unreadable"
    if any(later <= earlier for earlier, later in pairwise(steps)):
        report.problems.append("log.jsonl: steps do not increase")
    ends = f", steps {steps[0]} to {steps[-1]}" if steps else ""
    return f"{len(steps)} records{ends}{', and an unfinished last line' if unfinished else ''}"


def _examine_lock(path: Path) -> str | None:
    """Who is writing, if anybody. Asking takes the lock, shared, for an instant; a run that starts then sits it out."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        try:
            owner = json.loads(os.pread(fd, 4096, 0))
            return f"held by process {owner['pid']} on {owner['host']}"
        except (ValueError, KeyError, TypeError):
            return "held by a process that is just starting"
    finally:
        os.close(fd)
