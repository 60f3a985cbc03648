"""A run directory: its checkpoints, the marks `last` and `best`, and what a killed run left behind.

Nothing is remembered between calls: what stands on the disk is asked each time. Everything that writes needs the lock.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.commit import Staging, publish
from tiny_transformer.storage.fs import REAL, Fs, refusals
from tiny_transformer.storage.lock import RunLock
from tiny_transformer.storage.manifest import Manifest, read_manifest, verify
from tiny_transformer.storage.marks import MARKS, STEP_NAME, read_mark, write_mark
from tiny_transformer.storage.reading import read_regular
from tiny_transformer.storage.temporary import LEFTOVER_PREFIX, exists, leftover_path, remove_tree

CONFIG_FILE, LOG_FILE = "config.yaml", "log.jsonl"
NOT_FINITE_FILE = "not_finite.json"  # where a run ended whose numbers stopped being numbers; gone once it is resumed
SKILLS_FILE = "skills.json"  # what `evaluate --skills` found, for the report
BAD = ".bad"  # suffix of a checkpoint that is whole and could not be loaded
GROWTH_FILE = "growth.json"  # how each skill grew through the run
CLASSES_FILE = "classification.json"  # which label held-out texts were taken for
ROLLOUTS = "rollouts"  # a folder: answers that a model in training wrote, with their rewards
REFERENCE_FILE = "reference.safetensors"  # what the model of an alignment said before its first step
WRITTEN_FILE = "written.json"  # what was right in the stories that the model wrote
STATE_DIRECTORY, STATE_FILE = "trainer_state", "state.json"  # in a checkpoint, beside the weights
STATE_FORMAT = 1
_STARTED_IN = re.compile(r"# started in (.+); relative paths are meant from there")  # see `write_config`


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: the step (number of updates done), where it is, and what it holds."""

    step: int
    path: Path
    manifest: Manifest


class RunDirectory:
    """The checkpoints of one run.

    A training run: `with run.lock(): ... with run.publish_step(2000) as staging: ...; run.point("last", 2000);
    run.prune(keep=3)`. Reading needs no lock.
    """

    def __init__(self, path: Path | str, fs: Fs = REAL) -> None:
        self.path = Path(path)
        self._fs = fs
        self._lock = RunLock(self.path, fs)

    def lock(self) -> RunLock:
        """The lock that all writing needs; see `RunLock`."""
        return self._lock

    def step_path(self, step: int) -> Path:
        """Where the checkpoint of a step stands, or would."""
        return self.path / f"step-{step:08d}"

    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints by step: those with a sound manifest, the other files unread."""
        found = []
        for step in self._steps():
            try:
                found.append(Checkpoint(step, self.step_path(step), read_manifest(self.step_path(step), self._fs)))
            except UserError as error:
                if error.exit_code is not ExitCode.BAD_DATA:
                    raise
        return found

    def newest_whole(self, before: int | None = None) -> tuple[Checkpoint | None, list[UserError]]:
        """The newest checkpoint (of a step below `before`) of which every byte is as saved, and what is wrong with each
        newer one; where there is none, also which were rejected earlier.

        Raises UserError: IO, one cannot be read: whether it is whole is not known, and an older one is no answer.
        """
        damaged = []
        for step in reversed([step for step in self._steps() if before is None or step < before]):
            try:
                return Checkpoint(step, self.step_path(step), verify(self.step_path(step), self._fs)), damaged
            except UserError as error:
                if error.exit_code is not ExitCode.BAD_DATA:
                    raise
                damaged.append(error)
        rejected = [step for step in self._steps(BAD) if before is None or step < before]
        return None, damaged + [self._was_rejected(step) for step in reversed(rejected)]

    @contextmanager
    def publish_step(self, step: int) -> Generator[Staging]:
        """`publish` for the checkpoint of a step; a damaged checkpoint of that step is replaced, a whole one never."""
        self.check_ours()
        path = self.step_path(step)
        damaged = False
        if step in self._steps():
            try:
                verify(path, self._fs)
            except UserError as error:
                damaged = error.exit_code is ExitCode.BAD_DATA
        with publish(path, info={"step": step}, replace=damaged, fs=self._fs) as staging:
            yield staging

    def point(self, name: str, step: int) -> None:
        """Makes the mark `name` ("last", "best") lead to a committed checkpoint, in one rename and for good."""
        self.check_ours()
        target = self.step_path(step).name
        read_manifest(self.path / target, self._fs)
        with refusals("move the mark", self.path / name):
            write_mark(self.path / name, target, self._fs)

    def resolve(self, name: str) -> Checkpoint | None:
        """The checkpoint that `last` or `best` leads to; None when there is no such mark.

        Raises UserError (BAD_DATA) when it leads to something that is not a committed checkpoint of this run.
        """
        target = self._target(name)
        if target is None:
            return None
        if not (match := STEP_NAME.fullmatch(target)):
            where, remedy = str(self.path / name), "remove it; --resume creates it again"
            what = f"{name} leads to {target!r}, which is not a checkpoint of this run"
            raise UserError(what, where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA)
        return Checkpoint(int(match[1]), self.path / target, read_manifest(self.path / target, self._fs))

    def reject(self, step: int) -> None:
        """Takes a checkpoint out of the run that is whole and still cannot be loaded; it stays, as `NAME.bad`."""
        self.check_ours()
        path = self.step_path(step)
        with refusals("set aside", path):
            remove_tree(path.with_name(path.name + BAD), self._fs)
            self._fs.rename(path, path.with_name(path.name + BAD))
            self._fs.fsync_dir(self.path)

    def prune(self, keep: int) -> list[int]:
        """Removes all checkpoints but the newest `keep`, those that marks lead to, and the newest whole one.

        Returns the removed steps. Where no checkpoint is whole, nothing is removed.
        """
        self.check_ours()
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        steps = [checkpoint.step for checkpoint in self.checkpoints()]
        if len(steps) <= keep or (whole := self.newest_whole()[0]) is None:
            return []
        linked = {self._target(name) for name in MARKS}
        removed = [s for s in steps[:-keep] if s != whole.step and self.step_path(s).name not in linked]
        for step in removed:
            path = self.step_path(step)
            with refusals("remove", path):
                hidden = leftover_path(path)
                self._fs.rename(path, hidden)  # so that nobody takes what is left of it for a damaged checkpoint
                self._fs.fsync_dir(self.path)
                remove_tree(hidden, self._fs)
        return removed

    def clean_leftovers(self) -> list[str]:
        """Removes what killed saves left, and returns the names. Nobody else is saving: this process has the lock."""
        self.check_ours()
        with refusals("clean up", self.path):
            leftovers = [name for name in self._fs.names(self.path) if name.startswith(LEFTOVER_PREFIX)]
            for name in leftovers:
                remove_tree(self.path / name, self._fs)
        return leftovers

    def check_ours(self) -> None:
        """Every writing begins here: this process has the lock, and the directory is still the one it locked.

        Raises UserError (IO) when it is not.
        """
        if not self._lock.held:
            raise RuntimeError(f"writing to {self.path} without its lock: use `with run.lock():`")
        self._lock.check_place()

    def _steps(self, suffix: str = "") -> list[int]:
        with refusals("read", self.path):
            if not exists(self.path, self._fs):
                return []
            names = [name.removesuffix(suffix) for name in self._fs.names(self.path) if name.endswith(suffix)]
            return sorted(int(match[1]) for name in names if (match := STEP_NAME.fullmatch(name)))

    def _was_rejected(self, step: int) -> UserError:
        path = self.step_path(step)
        return UserError(
            f"the checkpoint of step {step:,} could not be loaded earlier, and was set aside as {path.name}{BAD}",
            where=str(self.path),
            remedy=f"rename it to {path.name} and see the error again, or start afresh with --overwrite",
            exit_code=ExitCode.BAD_DATA,
        )

    def _target(self, name: str) -> str | None:
        with refusals("read", self.path / name):
            return read_mark(self.path / name, self._fs)


def holds_a_run(run_dir: Path) -> bool:
    """Whether a training run has used a directory before."""
    return exists(run_dir / CONFIG_FILE) or any(run_dir.glob("step-*"))


def runs_named(base: Path) -> list[Path]:
    """The runs that go by the name of `base`: itself and those that were put beside it, `NAME-2`, `NAME-3`, ..."""
    number = re.compile(re.escape(base.name) + r"-([2-9]|[1-9][0-9]{1,8})")
    beside = [path for path in base.parent.glob(f"{glob.escape(base.name)}-*") if number.fullmatch(path.name)]
    return [path for path in (base, *sorted(beside)) if holds_a_run(path)]


def newest_run(base: Path) -> Path | None:
    """Of the runs that go by a name the one that was last begun or taken up; None when there is none."""
    return max(runs_named(base), key=_begun, default=None)


def _begun(run_dir: Path) -> float:
    """When a run was last begun or taken up, in seconds since the epoch."""
    try:
        return (run_dir / CONFIG_FILE).stat().st_mtime
    except OSError:
        return 0.0


def already_a_run(path: Path) -> UserError:
    """A new run is to go where one is."""
    return UserError(
        f"{path} already holds a run",
        remedy="--resume continues it, --overwrite replaces it, another --out_dir leaves it alone",
    )


def nothing_to_resume(path: Path) -> UserError:
    """A run is to be resumed where none is."""
    return UserError(
        f"there is nothing to resume in {path}",
        remedy="start it without --resume, or name the run with --out_dir (tiny-transformer runs lists them)",
    )


def started_in(run_dir: Path) -> list[Path]:
    """The directory that a run was last started in, where its relative paths begin, as its config.yaml says; nothing
    where it does not."""
    with suppress(OSError, UserError):
        for line in read_regular(run_dir / CONFIG_FILE).decode("utf-8", "replace").splitlines()[:5]:
            if match := _STARTED_IN.fullmatch(line):
                return [run_dir.resolve() / match[1]]
    return []


def load_identity(checkpoint: Path) -> dict[str, Any]:
    """What the run that wrote this checkpoint was: its settings, data and tokenizer, see `resume_check`.

    Raises UserError: BAD_DATA, there is none.
    """
    return read_state(checkpoint)["identity"]


def readable_states(run_dir: Path) -> Iterator[dict[str, Any]]:
    """What `read_state` gives for each committed checkpoint, newest first; those that it refuses are left out."""
    for checkpoint in reversed(RunDirectory(run_dir).checkpoints()):
        with suppress(UserError):
            yield read_state(checkpoint.path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's state.json, of a version that is known and with the identity in it.

    Raises UserError: BAD_DATA.
    """
    path = checkpoint / STATE_DIRECTORY / STATE_FILE
    try:
        raw = json.loads(read_regular(path))
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
        if raw.get("format_version") != STATE_FORMAT:
            version = str(raw.get("format_version"))[:20]
            raise ValueError(f"it has format_version {version}; this version reads {STATE_FORMAT}")
        if not isinstance(raw.get("identity"), dict):
            raise ValueError("it does not say what the run was (identity)")
    except FileNotFoundError:
        raise UserError(
            f"this checkpoint cannot be resumed: it has no {STATE_DIRECTORY}/{STATE_FILE}",
            where=str(checkpoint),
            remedy="resume from a checkpoint written by train; a plain model directory has weights only",
            exit_code=ExitCode.BAD_DATA,
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read the trainer state: {error}",
            where=str(path),
            remedy="resume from an older checkpoint (the doctor command lists them)",
            exit_code=ExitCode.BAD_DATA,
        ) from None
    return raw
