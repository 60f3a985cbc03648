"""Reads what a run leaves on disk: settings, log, checkpoints and samples.

A reader of runs meets unfinished, damaged and foreign files, so nothing here raises because of a file's content. What
cannot be read is left out and named in `problems`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import read_manifest
from tiny_transformer.storage.lock import is_this_process, owner_of
from tiny_transformer.storage.marks import STEP_NAME, marked_checkpoint
from tiny_transformer.storage.reading import MAX_LOG_BYTES, open_regular, read_regular
from tiny_transformer.storage.runs import CLASSES_FILE, GROWTH_FILE, NOT_FINITE_FILE, SKILLS_FILE, WRITTEN_FILE
from tiny_transformer.storage.step_log import log_problem


@dataclass(frozen=True)
class StepDirectory:
    """One step directory. `problem` is None when its manifest is whole and every file in it has the listed size."""

    path: Path
    step: int
    problem: str | None
    size_bytes: int
    saved_at: float | None  # seconds since the epoch
    info: dict[str, Any]  # run_info.json; empty when it cannot be read
    is_last: bool
    is_best: bool


@dataclass(frozen=True)
class RunFiles:
    """Everything one run directory says about itself."""

    path: Path
    config: dict[str, Any]
    config_comments: list[str]
    log: list[dict[str, Any]]  # strictly increasing `step`
    checkpoints: list[StepDirectory]  # by step
    samples: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)
    skills: dict[str, Any] = field(default_factory=dict)  # what `evaluate --skills` found
    written: dict[str, Any] = field(default_factory=dict)  # what is right in the stories it wrote
    growth: list[dict[str, Any]] = field(default_factory=list)  # how each skill grew
    classes: dict[str, Any] = field(default_factory=dict)  # which label held-out texts were taken for
    not_finite: dict[str, Any] = field(default_factory=dict)  # where its numbers stopped being numbers

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.path.resolve().name

    @property
    def newest(self) -> StepDirectory | None:
        """The newest whole checkpoint."""
        return newest_whole(self.checkpoints)


def newest_whole(checkpoints: list[StepDirectory]) -> StepDirectory | None:
    """Of checkpoints by step the last that counts."""
    return next((c for c in reversed(checkpoints) if c.problem is None), None)


def state_of(run_dir: Path, checkpoints: list[StepDirectory]) -> str:
    """What became of a run: "running", "finished", "finished early", "stopped", "diverged" or "not whole".

    "diverged": its numbers stopped being numbers. "not whole": there are checkpoints and none of them counts.
    """
    newest = newest_whole(checkpoints)
    status = newest.info.get("status") if newest else None
    owner, is_diverged = owner_of(run_dir), (run_dir / NOT_FINITE_FILE).is_file()
    has_ended = is_diverged or status in ("finished", "stopped", "stopped_early")
    # A training process still owns the run that it has ended while it writes the report.
    if owner is not None and not (has_ended and is_this_process(owner)):
        return "running"
    if is_diverged:
        return "diverged"
    if newest is None:
        return "not whole" if checkpoints else "stopped"
    # A checkpoint saved on the way says "running"; without a living owner the run was interrupted after it.
    return {"finished": "finished", "stopped_early": "finished early"}.get(str(status), "stopped")


def is_run_directory(path: Path) -> bool:
    """Whether a directory holds anything that a run writes."""
    return any((path / name).is_file() for name in ("config.yaml", "log.jsonl")) or bool(_step_directories(path))


def read_run(path: Path) -> RunFiles:
    """Reads one run directory.

    Raises UserError when there is no such directory or nothing in it comes from a run.
    """
    if not path.is_dir() or not is_run_directory(path):
        raise UserError(
            "this is not a run directory" if path.is_dir() else "there is no such directory",
            where=str(path),
            remedy=f"its run is {path.parent}"
            if is_run_directory(path.parent) and path.is_dir()
            else "name the directory that training wrote, the one that holds config.yaml and log.jsonl",
            exit_code=ExitCode.USAGE,
        )
    problems: list[str] = []
    config, comments = _read_config(path / "config.yaml", problems)
    samples = _read_parsed(path / "samples.json", json.loads, problems)
    if samples is not None and not isinstance(samples, list):
        problems.append("samples.json holds no list of samples")
    checkpoints = read_checkpoints(path)
    of_the_log: list[str] = []
    log = _read_log(path / "log.jsonl", of_the_log)
    newest = newest_whole(checkpoints)
    if newest is not None and not of_the_log and (problem := log_problem(path / "log.jsonl", newest.info.get("log"))):
        of_the_log.append(problem)
    problems += of_the_log
    return RunFiles(
        path=path,
        config=config,
        config_comments=comments,
        log=log,
        checkpoints=checkpoints,
        skills=_object(_read_parsed(path / SKILLS_FILE, json.loads, problems)),
        written=_object(_read_parsed(path / WRITTEN_FILE, json.loads, problems)),
        growth=objects(_read_parsed(path / GROWTH_FILE, json.loads, problems)),
        classes=_object(_read_parsed(path / CLASSES_FILE, json.loads, problems)),
        not_finite=_object(_read_parsed(path / NOT_FINITE_FILE, json.loads, problems)),
        samples=objects(samples),
        problems=problems,
    )


def read_checkpoints(run_dir: Path) -> list[StepDirectory]:
    """The step directories of a run, by step, damaged and half-written ones included."""
    marks = {name: _link_target(run_dir / name) for name in ("last", "best")}
    return [
        _read_checkpoint(step, path, is_last=marks["last"] == path.name, is_best=marks["best"] == path.name)
        for step, path in _step_directories(run_dir)
    ]


def number(row: dict[str, Any], key: str) -> float | None:
    """A finite number from a JSON object, or None for anything else."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def target_of(info: dict[str, Any]) -> str:
    """What the loss of a run is a mean over: `token`, unless its checkpoint says `text` or `pair` or the like."""
    word = info.get("target")
    return word if isinstance(word, str) and word.isalpha() and len(word) <= 20 else "token"


def next_token_key(log: list[dict[str, Any]]) -> str:
    """What the training loss of next tokens alone, which a validation loss is to stand beside, is called in a log:
    `loss` is what is minimised, and more for a model with experts or an MTP head."""
    return "next_token_loss" if any(number(row, "next_token_loss") is not None for row in log) else "loss"


def section(row: dict[str, Any], key: str) -> dict[str, Any]:
    """An object inside a JSON object, empty when it is missing or something else."""
    return _object(row.get(key))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a JSON list, none where it is something else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _step_directories(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, directory), by step."""
    try:
        with os.scandir(run_dir) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []
    return sorted((int(match[1]), run_dir / name) for name in names if (match := STEP_NAME.fullmatch(name)))


def _link_target(link: Path) -> str | None:
    found = marked_checkpoint(link.parent, link.name)
    return found.name if found else None


def _read_checkpoint(step: int, path: Path, *, is_last: bool, is_best: bool) -> StepDirectory:
    info = _object(_read_parsed(path / "run_info.json", json.loads, []))
    size_bytes, newest = _size_and_time(path)
    return StepDirectory(
        path=path,
        step=step,
        problem=_problem(path),
        size_bytes=size_bytes,
        saved_at=_timestamp(info.get("saved_at")) or newest,
        info=info,
        is_last=is_last,
        is_best=is_best,
    )


def _problem(path: Path) -> str | None:
    """Why a step directory does not count, as far as can be told without reading the weights: the doctor does that."""
    try:
        manifest = read_manifest(path)
        for name, entry in manifest.files.items():
            found = (path / name).stat().st_size
            if found != entry.size_bytes:
                return f"{name} has {found:,} bytes, not {entry.size_bytes:,}"
    except UserError as error:
        return error.what
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    return None


def _size_and_time(path: Path) -> tuple[int, float | None]:
    """Bytes of all files below a directory and the time of its newest one."""
    size_bytes, newest = 0, None
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                status = (Path(folder) / name).lstat()
            except OSError:
                continue
            size_bytes += status.st_size
            newest = max(newest or status.st_mtime, status.st_mtime)
    return size_bytes, newest


def _timestamp(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _read_parsed(path: Path, parse: Callable[[str], Any], problems: list[str]) -> Any:
    """A small file put through `parse`, or None when there is none; a file that cannot be parsed is a problem."""
    try:
        return parse(read_regular(path).decode("utf-8"))
    except FileNotFoundError:
        return None
    except UserError as error:
        problems.append(error.what)
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return None


def _read_config(path: Path, problems: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings, and the comment lines above them."""
    import yaml

    def parse(text: str) -> tuple[Any, list[str]]:
        comments = []
        for line in text.splitlines():
            if not line.startswith("#"):
                break
            comments.append(line.lstrip("# ").rstrip())
        try:
            return yaml.safe_load(text), comments
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error

    config, comments = _read_parsed(path, parse, problems) or ({}, [])
    return _object(config), comments


def _read_log(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of log.jsonl whose step is above every earlier one. The last line may be torn: the run was killed."""
    rows: list[dict[str, Any]] = []
    num_unreadable, newest, ends_torn = 0, -math.inf, False
    try:
        with open_regular(path, MAX_LOG_BYTES) as file:
            for line in file:
                try:
                    row = json.loads(line)
                    step = number(row, "step") if isinstance(row, dict) else None
                except (ValueError, RecursionError):
                    step = None
                ends_torn = step is None
                if step is None or step <= newest:
                    num_unreadable += 1
                    continue
                newest = step
                rows.append(row)
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
    except UserError as error:
        problems.append(error.what)
    if num_unreadable - ends_torn > 0:
        problems.append(
            f"{path.name}: {num_unreadable - ends_torn:,} lines are damaged or out of order and were left out"
        )
    return rows
