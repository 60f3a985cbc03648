"""The marks `last` and `best` of a run: which checkpoint is meant.

A mark is a relative symbolic link. Where the file system has no links, and where a copy of the run was made by a
program that does not keep them, it is a small text file with the name of the checkpoint in it, or a copy of the
checkpoint itself. All readers of runs ask here.
"""

from __future__ import annotations

import errno
import re
import stat
from contextlib import suppress
from pathlib import Path

from tiny_transformer.errors import UserError
from tiny_transformer.storage.commit import write_new
from tiny_transformer.storage.fs import REAL, Fs
from tiny_transformer.storage.manifest import read_manifest
from tiny_transformer.storage.temporary import exists, leftover_path, remove_tree

MARKS = ("last", "best")
STEP_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})")
MAX_MARK_BYTES = 256
# What systems and file systems without symbolic links answer: FAT and exFAT EPERM, many network disks the others.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EACCES}


def read_mark(path: Path, fs: Fs = REAL) -> str | None:
    """The name that a mark holds, most often that of a checkpoint beside it; None when there is no such mark.

    A file that is no mark gives its first characters, which are no checkpoint's name; a directory gives the name of
    the checkpoint that it is a copy of, or its own.

    Raises OSError when the system refuses to read it.
    """
    if not exists(path, fs):
        return None
    mode = fs.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return fs.readlink(path)
    if stat.S_ISDIR(mode):
        with suppress(UserError):
            step = read_manifest(path, fs).info.get("step")
            if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
                return f"step-{step:08d}"
        return path.name
    if not stat.S_ISREG(mode):
        return path.name
    raw = b""
    for chunk in fs.read(path):
        raw += chunk[: MAX_MARK_BYTES + 1]
        if len(raw) > MAX_MARK_BYTES:
            break
    return raw[:MAX_MARK_BYTES].decode("utf-8", "replace").strip()


def write_mark(path: Path, target: str, fs: Fs = REAL) -> None:
    """Makes a mark hold the name `target`, in one rename, brought to the disk and read back.

    Raises OSError; the old mark is then still there.
    """
    temporary, aside = leftover_path(path), leftover_path(path)
    try:
        try:
            fs.symlink(target, temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_new(temporary, target + "\n", fs)
            fs.fsync(temporary)
        if exists(path, fs) and stat.S_ISDIR(fs.lstat(path).st_mode):  # a copy made it a directory
            fs.rename(path, aside)
        fs.rename(temporary, path)
        fs.fsync_dir(path.parent)
        if read_mark(path, fs) != target:
            raise OSError("the mark does not lead where it was moved to")
    except BaseException:
        with suppress(OSError):
            fs.unlink(temporary)
        raise
    with suppress(OSError):
        remove_tree(aside, fs)


def marked_checkpoint(run_dir: Path, name: str) -> Path | None:
    """The step directory that a run's mark `name` stands for, which may not exist; None when there is no such mark or
    it names nothing of this run.

    A path of its own, never through the mark: one that moves meanwhile cannot mix two checkpoints.
    """
    try:
        target = read_mark(run_dir / name)
    except OSError:
        return None
    if target is None:
        return None
    if STEP_NAME.fullmatch(target) and exists(run_dir / target):
        return run_dir / target
    if (run_dir / name).is_dir() and not (run_dir / name).is_symlink():
        return run_dir / name  # only this copy of the checkpoint is left
    return run_dir / target if STEP_NAME.fullmatch(target) else None


def is_mark(path: Path) -> bool:
    """Whether a path is the `last` or `best` of a run in the form of a link or a text file; a directory of that name is
    a checkpoint like any other."""
    return path.name in MARKS and (path.is_symlink() or path.is_file())
