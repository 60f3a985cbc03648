"""Hidden names for what is being made, and how those of dead processes are told from those of living ones."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiny_transformer.storage.fs import LEFTOVER_PREFIX, REAL, Fs

_TRIES = 5


def leftover_path(path: Path) -> Path:
    """A hidden, unique name beside `path` that is recognised as a leftover when its maker died."""
    return path.with_name(f"{LEFTOVER_PREFIX}{path.name}-{os.urandom(6).hex()}")


@contextmanager
def in_the_making(path: Path, make: Callable[[Path], None], fs: Fs = REAL) -> Generator[Path]:
    """A new file or directory under a hidden name beside `path`; those of killed processes for the same `path` are
    removed first.

    Its maker holds a lock on it, which the kernel drops when the maker dies, however it dies.

    Args:
        path: what it is to become.
        make: makes it, empty.
        fs: where it is.

    Raises OSError when the system refuses.
    """
    with suppress(OSError):
        _remove_abandoned(path, fs)
    temporary, fd = _make_and_lock(path, make)
    try:
        yield temporary
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(fd)


def _make_and_lock(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """Again under another name when somebody who cleans up was quicker than the lock."""
    for attempt in range(_TRIES):
        temporary = leftover_path(path)
        make(temporary)
        try:
            fd = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            if attempt < _TRIES - 1:
                continue
            raise
        except OSError:
            with suppress(OSError):
                remove_tree(temporary)
            raise
        with suppress(OSError):  # a file system without locks: nothing is cleaned up there
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if exists(temporary):
            return temporary, fd
        with suppress(OSError):
            os.close(fd)
    raise FileNotFoundError(f"{temporary} was removed as soon as it was made")


def _remove_abandoned(path: Path, fs: Fs) -> None:
    pattern = re.compile(re.escape(f"{LEFTOVER_PREFIX}{path.name}-") + "[0-9a-f]{12}")
    for name in [entry.name for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)]:
        with suppress(OSError):
            fd = os.open(path.parent / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Killed between two renames, `path` is gone and the old directory waits under such a name.
                if exists(path) or not exists(path.parent / name / "manifest.json"):
                    remove_tree(path.parent / name, fs)
            finally:
                os.close(fd)


def exists(path: Path, fs: Fs = REAL) -> bool:
    """Whether there is an entry of this name, a dangling link included; an error of the disk is raised, not a "no"."""
    try:
        fs.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove_tree(path: Path, fs: Fs = REAL) -> None:
    """Removes a directory, file or link if it is there."""
    if not exists(path, fs):
        return
    if not stat.S_ISDIR(fs.lstat(path).st_mode):
        fs.unlink(path)
        return
    for name in fs.names(path):
        remove_tree(path / name, fs)
    fs.rmdir(path)
