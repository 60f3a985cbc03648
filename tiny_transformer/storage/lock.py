"""One writer per run directory.

The lock is `flock` on `.lock`: the kernel drops it when its owner dies, however it dies, so a dead owner never keeps a
run from being resumed. What stands in the file (pid, host, boot id, start time of the process) only names the owner;
the start time tells a living owner from another process that was given the same pid later.

A copy made of hard links (`cp -al`) shares the file, and so the lock, with the directory it was made from. The record
also names the directory that is owned, so the copy can tell, and gets a file of its own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.commit import make_directories
from tiny_transformer.storage.fs import REAL, Fs, NotAFileError, refusals

LOCK_NAME = ".lock"
_PATIENCE_SECONDS = 1.0  # how long an owner may take to write its name, and the doctor to look at the lock
_held_here: set[int] = set()


@cache
def _keep_locks_from_forked_children() -> None:
    """A data worker would otherwise hold the lock of a trainer that was killed."""

    def close_inherited() -> None:
        for fd in _held_here:
            os.close(fd)
        _held_here.clear()

    os.register_at_fork(after_in_child=close_inherited)


class RunLock:
    """`with RunLock(run_dir):` owns a run directory, which is made if missing.

    Raises UserError: LOCKED, naming pid and host, while another process owns it; IO when the directory cannot be
    written. Where the file system does not share `flock` between machines, it only guards against the same machine.
    """

    def __init__(self, run_dir: Path | str, fs: Fs = REAL) -> None:
        self.path = Path(run_dir) / LOCK_NAME
        self._fs = fs
        self._fd: int | None = None
        self._pid = 0

    @property
    def held(self) -> bool:
        """Whether this process owns the directory through this object; a forked child does not."""
        return self._fd is not None and self._pid == os.getpid()

    def __enter__(self) -> RunLock:
        with refusals("lock", self.path):
            make_directories(self.path.parent, self._fs)
            while (fd := self._try()) is None:
                pass
        _keep_locks_from_forked_children()
        self._fd, self._pid = fd, os.getpid()
        _held_here.add(fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None and self.held:
            _held_here.discard(self._fd)
            with suppress(OSError):  # a name left behind is a dead owner's
                os.ftruncate(self._fd, 0)
            with suppress(OSError):
                os.close(self._fd)
        self._fd = None

    def check_place(self) -> None:
        """Refuse to go on when this directory, or its lock, is not the one that was locked.

        Somebody removed, renamed or replaced it while this process was writing: what is there now belongs to nobody or
        to somebody else. The lock file stays open, so nothing else can be given its inode.

        Raises UserError (IO).
        """
        if self._fd is None or not is_same_file(self._fd, self.path):
            raise UserError(
                "the run directory was removed, renamed or replaced, or its .lock was, while the run was in progress",
                where=str(self.path.parent),
                remedy="put the directory back as it was and use --resume; nothing is written into what is there now",
                exit_code=ExitCode.IO,
            )

    def _try(self) -> int | None:
        """The lock file, open and locked, with this process's name in it; None where another file stands there now."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotAFileError(errno.EINVAL, "not a regular file", str(self.path))
            with _turn(self.path.parent, os.fstat(fd).st_nlink > 1) as may_part:
                if self._acquire(fd, may_part) and is_same_file(fd, self.path):
                    record = {**owner_record(os.getpid()), "directory": self.path.parent.stat().st_ino}
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, json.dumps(record).encode(), 0)
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def _acquire(self, fd: int, may_part: bool) -> bool:
        """Lock the file. False: it is in use in another directory, and no longer stands in this one (`may_part`)."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                owner = _read_record(fd)
                if may_part and is_alive(owner) and _is_of_another(owner, self.path.parent):
                    if is_same_file(fd, self.path):
                        self.path.unlink()
                    return False
                # A record of a dead process means that its successor has not written its own yet.
                if is_alive(owner) or time.monotonic() > deadline:
                    raise self._locked(owner) from None
                time.sleep(0.01)

    def _locked(self, owner: dict[str, Any]) -> UserError:
        who = f"process {owner.get('pid')} on {owner.get('host')}" if is_alive(owner) else "a process that left no name"
        return UserError(
            f"this run is in use by {who}",
            where=str(self.path.parent),
            remedy="wait until it ends, stop it, or choose another output directory",
            exit_code=ExitCode.LOCKED,
        )


@contextmanager
def _turn(directory: Path, is_shared: bool) -> Generator[bool]:
    """Among those that want one directory whose lock file is shared with another, let one at a time decide what becomes
    of the file; whether this process may. Without it the second would take out the file that the first has put there.
    """
    if not is_shared:
        yield False
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        has_turn = False
        with suppress(OSError):  # it is somebody else's turn, or the file system locks no directories
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            has_turn = True
        yield has_turn
    finally:
        os.close(fd)


def is_same_file(fd: int, path: Path) -> bool:
    """Whether an open file is still the one that a path leads to."""
    try:
        there, ours = path.stat(), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def owner_of(run_dir: Path) -> dict[str, Any] | None:
    """The record of the process that is writing a run; None when nobody is.

    The kernel is asked, by taking the lock, shared, for an instant; a run that starts then sits it out. So a name that
    a dead owner left, on whatever host, says nothing. Only where the file system has no locks is the record believed.
    """
    try:
        fd = os.open(run_dir / LOCK_NAME, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        record = _read_record(fd)
        return None if _is_of_another(record, run_dir) else record
    except OSError:
        record = _read_record(fd)
        return record if is_alive(record) else None
    finally:
        os.close(fd)


def owner_record(pid: int) -> dict[str, Any]:
    """What tells one process from every other: pid, host, boot id and, in clock ticks after boot, its start time."""
    return {
        "pid": pid,
        "host": os.uname().nodename,
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
        "started_ticks": _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()[19:20],
    }


def is_alive(record: dict[str, Any]) -> bool:
    """Whether the process of an owner record still runs; one on another host is taken to.

    A machine is told by its boot id, where the system has one: its name may change while it runs.
    """
    if not isinstance(record.get("pid"), int):
        return False
    now = owner_record(os.getpid())
    is_here = now["boot_id"] and record.get("boot_id") == now["boot_id"]
    if not is_here and record.get("host") != now["host"]:
        return True
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return _process_of(record, now["host"]) == owner_record(record["pid"])


def is_this_process(record: dict[str, Any]) -> bool:
    """Whether an owner record is of the process that asks; the pid alone may be that of a process elsewhere."""
    now = owner_record(os.getpid())
    return _process_of(record, now["host"]) == now


def _process_of(record: dict[str, Any], host: str) -> dict[str, Any]:
    """What a record says about the process alone, on a machine that may have another name now."""
    return {key: value for key, value in {**record, "host": host}.items() if key != "directory"}


def _is_of_another(record: dict[str, Any], run_dir: Path) -> bool:
    """Whether the owner of a lock file owns it in another directory, which hard links share with this one. They do not
    leave the file system, so the inode alone tells the directories apart."""
    return isinstance(record.get("directory"), int) and record["directory"] != run_dir.stat().st_ino


def _read_record(fd: int) -> dict[str, Any]:
    try:
        record = json.loads(os.pread(fd, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _first_line(path: str) -> str:
    """The first line of a /proc file, or "" on systems without it."""
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return ""
