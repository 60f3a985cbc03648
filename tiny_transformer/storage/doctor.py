"""The independent check of what the storage room wrote: what is whole, what is damaged, who is writing.

It shares no code with the writer on purpose: it was written from the description of the format, needs only the
standard library and changes nothing. The tests use it as their judge, so it is the strictest of all readers. It may be
pointed at anything: it opens regular files only, reads no more than a bound, and shows no byte that a terminal obeys.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tiny_transformer.errors import ExitCode, UserError

WHOLE, DAMAGED, INCOMPLETE = "whole", "damaged", "incomplete"
MAX_MANIFEST_BYTES = 16 << 20
MAX_LOG_BYTES = 1 << 30
MAX_NAMED = 20  # of a list of names that is shown
RUN_FILES = {"config.yaml", "plan.json", "samples.json", "skills.json", "not_finite.json"}  # beside the checkpoints
STEP = r"step-([0-9]{8}|[1-9][0-9]{8,17})"
# Control characters, halves of surrogate pairs, marks that turn the direction of text.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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
    """What `examine` found. `links` maps the marks "last" and "best" to the checkpoints they stand for."""

    path: Path
    directories: list[DirectoryReport] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    replaced: str | None = None
    log: str | None = None
    lock: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything published is whole and the marks lead to whole checkpoints. Leftovers do no harm."""
        return not self.problems and all(directory.state == WHOLE for directory in self.directories)

    def state(self, name: str) -> str | None:
        """The state of one directory, None when there is none of that name."""
        return next((directory.state for directory in self.directories if directory.name == name), None)

    def lines(self) -> list[str]:
        """A short text, worst news included; each line without anything that a terminal obeys."""
        out = [f"{self.path}: {'everything is whole' if self.ok else 'there are problems'}"]
        for found in self.directories:
            out.append(f"  {found.name:16} {found.state:10} {found.num_files} files, {found.size_bytes:,} bytes")
            out += [f"      {text}" for text in [*found.problems[:MAX_NAMED], *found.notes]]
        out += [] if self.directories else ["  no checkpoint has been saved"]
        out += [f"  {name} -> {target}" for name, target in self.links.items()]
        out += [f"  problem: {text}" for text in self.problems]
        if self.leftovers:
            out.append(f"  left by a killed save (the next one removes it): {_some(self.leftovers)}")
        if self.replaced:
            out.append(f"  {self.replaced}: the run that --overwrite replaced; it goes when the new one has saved")
        out += [f"  {name}: {text}" for name, text in (("log.jsonl", self.log), ("lock", self.lock)) if text]
        return [_UNSHOWABLE.sub("\ufffd", line) for line in out]


def examine(path: Path | str) -> Report:
    """Examines a run directory, or a single published directory (a checkpoint, data), and reads every byte.

    Raises UserError: USAGE when `path` is not a directory or holds nothing to examine, IO when it cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            raise UserError("not a directory", where=str(path), remedy="give a run, checkpoint or data directory")
        report = Report(path)
        names = sorted(entry.name for entry in path.iterdir())
        if "manifest.json" in names or re.fullmatch(rf"{STEP}|\.tmp-.*", path.resolve().name):
            report.directories.append(_examine_directory(path))
            return report
        steps = [name for name in names if re.fullmatch(STEP, name)]
        if not steps and not {"last", "best", "log.jsonl", ".lock", "config.yaml"} & set(names):
            what = "nothing to examine: neither a run nor a directory with a manifest.json"
            runs = [name for name in names if (path / name / "log.jsonl").exists()]
            inside = f"it holds runs; give one of them, such as {path / runs[0]}" if runs else None
            raise UserError(what, where=str(path), remedy=inside or "give a run, checkpoint or data directory")
        report.directories = [_examine_directory(path / name) for name in steps]
        for name in sorted(RUN_FILES & set(names)):
            if problem := _text_problem(path / name):
                report.problems.append(f"{name} {problem}")
        report.leftovers = [name for name in names if name.startswith(".tmp-")]
        report.replaced = next((name for name in (".replaced", ".replacing") if name in names), None)
        for mark in ("last", "best"):
            if mark in names:
                _examine_mark(path / mark, report)
        if "log.jsonl" in names:
            report.log = _examine_log(path / "log.jsonl", report)
        _compare_log(path, report)
        if ".lock" in names:
            report.lock = _examine_lock(path / ".lock")
    except OSError as error:
        raise UserError(
            f"cannot read: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="check the directory's permissions and its disk",
            exit_code=ExitCode.IO,
        ) from error
    except ValueError as error:  # a path that the system cannot even be asked about
        raise UserError(f"no such path: {error}", where=repr(str(path)), remedy="give another one") from None
    return report


def _open(path: Path) -> BinaryIO | None:
    """A regular file; None for a pipe, a device or a directory, which is not waited for.

    Raises OSError.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return os.fdopen(fd, "rb")


def _examine_directory(path: Path) -> DirectoryReport:
    report = DirectoryReport(path.name, WHOLE)
    try:
        file = _open(path / "manifest.json")
    except (FileNotFoundError, NotADirectoryError):
        report.state = INCOMPLETE
        report.problems.append(
            "no manifest.json: it was never published, and nothing vouches for it; --resume passes it over"
        )
        return report
    listed, problem = _manifest(file, path.resolve().name)
    if problem is not None:
        report.state = DAMAGED
        report.problems.append(problem)
        return report
    for name, (size_bytes, sha256) in listed.items():
        if problem := _file_problem(path, name, size_bytes, sha256):
            report.problems.append(f"{name}: {problem}")
    report.state = DAMAGED if report.problems else WHOLE
    report.num_files, report.size_bytes = len(listed), sum(size for size, _ in listed.values())
    present = {str((Path(folder) / n).relative_to(path)) for folder, _, names in os.walk(path) for n in names}
    if extra := sorted(present - listed.keys() - {"manifest.json"}):
        report.notes.append(f"also here, not part of it: {_some(extra)}")
    return report


def _manifest(file: BinaryIO | None, directory: str) -> tuple[dict[str, tuple[int, str]], str | None]:
    """Size and hash by name, and what is wrong with the manifest, if anything is."""
    if file is None:
        return {}, "manifest.json is not a regular file"
    with file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        return {}, "manifest.json is too large"
    # The last 64 hexadecimal digits are the hash of the file with those digits set to zero.
    match = re.fullmatch(rb'(.*)([0-9a-f]{64})("\n\}\n)', raw, re.DOTALL)
    if not match or hashlib.sha256(match[1] + b"0" * 64 + match[3]).hexdigest().encode() != match[2]:
        return {}, "manifest.json is damaged"
    try:
        body = json.loads(raw, object_pairs_hook=_without_repeats)
        if type(body["format"]) is not int or body["format"] != 1:
            return {}, f"manifest.json has format {str(body['format'])[:20]}, which this version does not know"
        listed = {name: (entry["size_bytes"], entry["sha256"]) for name, entry in body["files"].items()}
        step = body["info"].get("step")
        if any(
            type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}", sha) for size, sha in listed.values()
        ):
            raise ValueError
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError):
        return {}, "manifest.json is damaged"
    if not listed:
        return {}, "manifest.json lists no files"
    if re.fullmatch(STEP, directory) and (type(step) is not int or directory != f"step-{step:08d}"):
        return {}, f"manifest.json is that of step {str(step)[:20]}"
    return listed, None


def _text_problem(path: Path) -> str | None:
    """What is wrong with a file beside the checkpoints, for which nothing vouches: whether it can be read at all."""
    try:
        file = _open(path)
        if file is None:
            return "is not a regular file"
        with file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
        if not raw.strip():
            return "is empty"
        if len(raw) > MAX_MANIFEST_BYTES:
            return "is too large"
        text = raw.decode("utf-8")
        if path.suffix == ".json":
            json.loads(text)
    except FileNotFoundError:
        return "is a link that leads nowhere"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    except (ValueError, RecursionError):
        return "is not JSON"
    return None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return found


def _file_problem(directory: Path, name: str, size_bytes: int, sha256: str) -> str | None:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or _is_broken(name):
        return "its name leads out of the directory"
    try:
        file = _open(directory / name)
        if file is None:
            return "not a regular file"
        with file:
            found_bytes = os.fstat(file.fileno()).st_size
            if found_bytes != size_bytes:
                return f"{found_bytes:,} bytes instead of {size_bytes:,}"
            hasher = hashlib.sha256()
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
            if hasher.hexdigest() != sha256:
                return "its bytes are not those that were saved"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _is_broken(name: str) -> bool:
    """Whether a name has half of a surrogate pair in it: no file has such a name."""
    return any("\ud800" <= character <= "\udfff" for character in name)


def _examine_mark(mark: Path, report: Report) -> None:
    """A link; on a disk without links, or in a copy, a text file with the name or a copy of the checkpoint."""
    mode = mark.lstat().st_mode
    if stat.S_ISLNK(mode):
        target = str(mark.readlink())
    elif stat.S_ISDIR(mode):
        copy = _examine_directory(mark)
        report.links[mark.name] = "a copy of a checkpoint"
        if copy.state != WHOLE:
            report.problems.append(f"{mark.name}, a copy of a checkpoint, is {copy.state}: {_some(copy.problems)}")
        return
    else:
        file = _open(mark)
        if file is None:
            report.problems.append(f"{mark.name} is neither a link nor a file with the name of a checkpoint")
            return
        with file:
            target = file.read(256).decode("utf-8", "replace").strip()
    report.links[mark.name] = target
    state = report.state(target)
    if state != WHOLE:
        report.problems.append(f"{mark.name} leads to {target}, which is {state or 'not a checkpoint of this run'}")


def _examine_log(path: Path, report: Report) -> str:
    """Line by line: a log may be long, and its last line unfinished."""
    file = _open(path)
    if file is None or os.fstat(file.fileno()).st_size > MAX_LOG_BYTES:
        report.problems.append(
            "log.jsonl is not a regular file" if file is None else "log.jsonl is too large for a log"
        )
        return "unreadable"
    first, last, number, line = None, -1, 0, b""
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                number -= 1
                break
            try:
                step = json.loads(line)["step"]
            except (ValueError, TypeError, KeyError, RecursionError):
                step = None
            if type(step) is not int:
                report.problems.append(f"log.jsonl line {number} is not a record with a step")
                return "unreadable"
            if step <= last:
                report.problems.append("log.jsonl: steps do not increase")
                return "unreadable"
            first, last = step if first is None else first, step
    ends = "" if first is None else f", step {first}" if first == last else f", steps {first} to {last}"
    unfinished = line and not line.endswith(b"\n")
    return f"{number} record{'' if number == 1 else 's'}{ends}{', and an unfinished last line' if unfinished else ''}"


def _compare_log(run: Path, report: Report) -> None:
    """With what the newest whole checkpoint noted of the log: its length then, and the hash of so much of it."""
    newest = next((found.name for found in reversed(report.directories) if found.state == WHOLE), None)
    if newest is None:
        return
    try:
        info = _open(run / newest / "run_info.json")
        if info is None:
            return
        with info:
            noted = json.loads(info.read(MAX_MANIFEST_BYTES))["log"]
        size, sha256 = int(noted["size_bytes"]), noted["sha256"]
        log = _open(run / "log.jsonl")
    except FileNotFoundError as error:
        if str(error.filename).endswith("log.jsonl"):
            report.problems.append(f"log.jsonl is missing; {newest} was saved with one")
        return
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    if log is None or not 0 <= size <= MAX_LOG_BYTES:
        return
    with log:
        told = log.read(size)
    if len(told) < size:
        report.problems.append(f"log.jsonl is {size - len(told):,} bytes shorter than it was when {newest} was saved")
    elif hashlib.sha256(told).hexdigest() != sha256:
        report.problems.append(f"log.jsonl was changed after {newest} was saved")


def _examine_lock(path: Path) -> str | None:
    """Who is writing, if anybody. Asking takes the lock, shared, for an instant; a run that starts then sits it out."""
    file = _open(path)
    if file is None:
        return "not a regular file"
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            try:
                owner = json.loads(file.read(4096))
                return f"held by process {str(owner['pid'])[:20]} on {str(owner['host'])[:80]}"
            except (ValueError, KeyError, TypeError, RecursionError):
                return "held by a process that is just starting"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
