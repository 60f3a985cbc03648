"""What the storage tests share: one save, the judge, and file systems that record, refuse, lose or stop.

The save is the whole of what a trainer does at a checkpoint: lock, clean up, publish, move `last`, prune. The judge is
the doctor, which shares no code with the writer, plus the list of what the save acknowledged before it ended.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import Fs, RunDirectory, Staging
from tiny_transformer.storage.doctor import WHOLE, examine

KEEP = 2
SaveStep = Callable[[Path, int, "Acknowledged", Fs], None]
Plant = Callable[[], SaveStep]  # breaks something, once there is a sound run to begin with; returns the save to try
CHANGES = ("mkdir", "write", "chmod", "rename", "symlink", "unlink", "rmdir")


class Killed(BaseException):
    """The process is gone: from here on no operation happens, whoever asks."""


class Quick(Fs):
    """The real file system without the waiting: what fsync does cannot be seen as long as the power stays on."""

    def fsync(self, path: Path) -> None:
        path.lstat()

    def fsync_dir(self, path: Path) -> None:
        path.lstat()


class Watched(Quick):
    """The quick file system, with `before(index, name, args)` asked ahead of every operation.

    `before` may raise (the operation is refused), or return "lost" (it is reported done and not done) or "short" (half
    of a write is done).
    """

    def __init__(self, before: Callable[[int, str, tuple[Any, ...]], str | None] = lambda *_: None) -> None:
        self.before = before
        self.count = 0
        self.names_called: list[str] = []

    def done(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        """Told of every operation that took place."""


def _watched(name: str) -> Callable[..., Any]:
    real = getattr(Quick, name)

    def operation(self: Watched, *args: Any) -> Any:
        self.names_called.append(name)
        self.count += 1
        verdict = self.before(self.count - 1, name, args)
        if verdict == "lost":
            return len(args[1]) if name == "write" else None
        if verdict == "short" and name == "write" and len(args[1]) > 1:
            args = (args[0], args[1][: len(args[1]) // 2])
        result = real(self, *args)
        self.done(name, args, result)
        return result

    return operation


for _name in [name for name in vars(Fs) if not name.startswith("_")]:
    setattr(Watched, _name, _watched(_name))


def refusing(at: int, code: int = errno.EIO, *, persistent: bool = False) -> Watched:
    """Refuses operation `at`, and every later one if persistent."""

    def before(index: int, name: str, args: tuple[Any, ...]) -> None:
        if index == at or (persistent and index > at):
            raise OSError(code, os.strerror(code))

    return Watched(before)


def stopping(at: int) -> Watched:
    """The process dies ahead of operation `at`: neither that one nor any clean-up happens."""

    def before(index: int, name: str, args: tuple[Any, ...]) -> None:
        if index >= at:
            raise Killed

    return Watched(before)


def losing(at: int) -> Watched:
    """Operation `at`, if it changes something that can be seen afterwards, is reported done and not done."""
    return Watched(lambda index, name, _: "lost" if index == at and name in CHANGES else None)


def half_writing() -> Watched:
    """Every write takes only half of what it is given."""
    return Watched(lambda *_: "short")


def files_of(step: int) -> dict[str, bytes]:
    """What a checkpoint of the tests holds: small, different for each step, one file of more than one write."""
    return {
        "config.json": b'{"model_type": "test"}\n',
        "model.safetensors": bytes((step * 7 + i) % 251 for i in range(400)),
        "trainer_state/state.json": b'{"step": %d}\n' % step,
        "trainer_state/optimizer.safetensors": bytes((step * 11 + i) % 251 for i in range(300)),
    }


class Acknowledged:
    """What the saves told their caller, and at which operation: published steps, and the steps links were moved to."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.links: dict[str, int] = {}
        self._events: list[tuple[int, str, int]] = []

    def note(self, fs: Fs, what: str, step: int) -> None:
        """`what` is "saved" or the name of a link."""
        self._events.append((getattr(fs, "count", 0), what, step))
        if what == "saved":
            self.saved.append(step)
        else:
            self.links[what] = step

    def before(self, operation: int) -> Acknowledged:
        """What had been acknowledged when that operation began."""
        earlier = Acknowledged()
        for done, what, step in self._events:
            if done <= operation:
                earlier.note(Fs(), what, step)
        return earlier


def save(path: Path, step: int, acknowledged: Acknowledged, fs: Fs) -> None:
    """One save as a trainer does it, noting each acknowledgement."""
    run = RunDirectory(path, fs)
    with run.lock():
        run.clean_leftovers()
        with run.publish_step(step) as staging:
            fill(staging, step, fs)
        acknowledged.note(fs, "saved", step)
        run.point("last", step)
        acknowledged.note(fs, "last", step)
        run.prune(KEEP)


def fill(staging: Staging, step: int, fs: Fs) -> None:
    for name, data in files_of(step).items():
        staging.write(name, data)
    fd = fs.create(staging / "tokenizer.json")  # as a library would: nobody is told what was meant
    fs.write(fd, b"{}")
    fs.close(fd)


def new_run(path: Path) -> Acknowledged:
    """A run with the steps 1 (best), 2 and 3 (last) saved; the next save prunes step 2."""
    acknowledged = Acknowledged()
    for step in (1, 2, 3):
        save(path, step, acknowledged, Quick())
        if step == 1:
            run = RunDirectory(path, Quick())
            with run.lock():
                run.point("best", 1)
            acknowledged.note(Fs(), "best", 1)
    return acknowledged


def violations(path: Path, acknowledged: Acknowledged) -> list[str]:
    """What the doctor finds wrong, and every acknowledged checkpoint that is not whole or not there."""
    if not acknowledged.saved and not any(path.glob("[!.]*")):
        return []
    try:
        report = examine(path)
    except UserError as error:
        return [str(error)]
    found = [line.strip() for line in report.problems]
    found += [f"{d.name} is {d.state}: {', '.join(d.problems)}" for d in report.directories if d.state != WHOLE]
    must = {*acknowledged.saved[-KEEP:], *acknowledged.links.values()}
    for step in sorted(must):
        if (state := report.state(f"step-{step:08d}")) != WHOLE:
            found.append(f"step {step} was saved and is {state}")
    for name, step in acknowledged.links.items():
        pointed = int(report.links.get(name, "step-0").removeprefix("step-"))
        if pointed < step or (name == "best" and pointed != step):
            found.append(f"{name} was moved to step {step} and leads to {report.links.get(name)}")
    newest, _ = RunDirectory(path).newest_whole()
    if acknowledged.saved and (newest is None or newest.step < max(acknowledged.saved)):
        found.append(f"step {max(acknowledged.saved)} was saved, the newest whole one is {newest}")
    return found


class Outcome:
    """How a save under a fault ended: the UserError it raised, the exception that escaped, if any."""

    def __init__(self, error: UserError | None, escaped: str | None, watched: Watched) -> None:
        self.error, self.escaped, self.watched = error, escaped, watched


def attempt(path: Path, acknowledged: Acknowledged, watched: Watched, save_step: SaveStep = save) -> Outcome:
    """A save of step 4 under a fault; only a UserError with code IO, or death, may come out of it."""
    error = escaped = None
    try:
        save_step(path, 4, acknowledged, watched)
    except Killed:
        pass
    except UserError as refused:
        error = refused
        if refused.exit_code is not ExitCode.IO or len(refused.lines()) > 3:
            escaped = f"exit code {refused.exit_code} and {len(refused.lines())} lines"
    except Exception as exception:
        escaped = repr(exception)
    return Outcome(error, escaped, watched)


def every_operation(
    folder: Path, make_fs: Callable[[int], Watched], plant: Plant
) -> Iterator[tuple[int, Path, Acknowledged, Outcome]]:
    """Runs the save with a fault at operation 0, 1, 2, ... until one ends without reaching its fault."""
    known = new_run(folder / "template")
    save_step = plant()
    for at in count():
        path, acknowledged = folder / f"run-{at}", copy.deepcopy(known)
        shutil.copytree(folder / "template", path, symlinks=True)
        outcome = attempt(path, acknowledged, make_fs(at), save_step)
        if outcome.watched.count <= at:
            return
        yield at, path, acknowledged, outcome


def real_save() -> SaveStep:
    return save


# The checks below yield what is wrong, as they find it: nothing for the real save, something for a broken one.


def check_refusals(
    folder: Path, plant: Plant = real_save, code: int = errno.EIO, persistent: bool = False
) -> Iterator[str]:
    """A fault at every operation: what was acknowledged is whole, a failed fsync is never acknowledged."""

    def make_fs(at: int) -> Watched:
        return refusing(at, code, persistent=persistent)

    for at, path, acknowledged, outcome in every_operation(folder, make_fs, plant):
        what = f"operation {at} ({outcome.watched.names_called[at]}) refused"
        yield from (f"{what}: {text}" for text in violations(path, acknowledged))
        if outcome.escaped:
            yield f"{what}: {outcome.escaped} escaped"
        if "fsync" in what and outcome.error is None:
            yield f"{what} and nobody told"
        if outcome.error is None and 4 not in acknowledged.saved:
            yield f"{what}: no error, no save"


def check_stops(folder: Path, plant: Plant = real_save) -> Iterator[str]:
    """The process ends at every operation; the next save then succeeds and leaves nothing behind."""
    for at, path, acknowledged, _ in every_operation(folder, stopping, plant):
        yield from (f"stopped at operation {at}: {text}" for text in violations(path, acknowledged))
        yield from (f"after a stop at operation {at}: {text}" for text in next_save(path, 5, acknowledged))


def check_lost(folder: Path, plant: Plant = real_save, tally: Counter | None = None) -> Iterator[str]:
    """Every operation in turn is reported done and not done: noticed, or without effect on what was acknowledged."""
    for at, path, acknowledged, outcome in every_operation(folder, losing, plant):
        name = outcome.watched.names_called[at]
        yield from (f"operation {at} ({name}) lost: {text}" for text in violations(path, acknowledged))
        if tally is not None:
            tally[name, "reported" if outcome.error else "passed"] += 1


def next_save(path: Path, step: int, acknowledged: Acknowledged) -> list[str]:
    """What is wrong after another process went on from the newest whole checkpoint and saved once more."""
    newest, _ = RunDirectory(path).newest_whole()
    if newest is not None and newest.step not in acknowledged.saved:
        acknowledged.note(Fs(), "saved", newest.step)
    save(path, step, acknowledged, Quick())
    leftovers = [f"left after the next save: {left.name}" for left in path.glob(".tmp-*")]
    return leftovers + [f"after the next save: {text}" for text in violations(path, acknowledged)]
