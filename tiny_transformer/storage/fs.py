"""The few file operations that the storage room is built from.

Every function here takes an `Fs`, so that a test can record the operations, make the k-th one fail, or work out what a
power cut would leave behind, without a mock of the whole operating system.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiny_transformer.errors import ExitCode, UserError

CHUNK_BYTES = 1 << 20
LEFTOVER_PREFIX = ".tmp-"  # what a killed save leaves behind starts like this, and nothing else does
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or what this user may have of it


class NotAFileError(OSError):
    """A pipe, a device or a directory where a file is read."""


class Fs:
    """The real file system. Each method is one step of a protocol; all of them raise OSError."""

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> int:
        """Opens a file that must not exist yet, mode 0666 less the umask, and returns its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Writes some of the data and returns how many bytes."""
        return os.write(fd, data)

    def close(self, fd: int) -> None:
        os.close(fd)

    def chmod(self, path: Path, mode: int) -> None:
        path.chmod(mode)

    def fsync(self, path: Path) -> None:
        """Brings a file's bytes to the disk, then forgets the cached ones: who reads it next asks the disk."""
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            with suppress(OSError, AttributeError):  # only advice; macOS has no such call, some file systems refuse it
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def fsync_dir(self, path: Path) -> None:
        """Brings a directory's entries to the disk; without it a new or renamed entry may vanish in a power cut."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def symlink(self, target: str, path: Path) -> None:
        path.symlink_to(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def readlink(self, path: Path) -> str:
        return str(path.readlink())

    def lstat(self, path: Path) -> os.stat_result:
        return path.lstat()

    def names(self, path: Path) -> list[str]:
        """The sorted names in a directory."""
        return sorted(entry.name for entry in path.iterdir())

    def read(self, path: Path) -> Iterator[bytes]:
        """A file's bytes in pieces; what is no regular file raises NotAFileError and is never waited for."""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotAFileError(errno.EINVAL, "not a regular file", str(path))
            while chunk := os.read(fd, CHUNK_BYTES):
                yield chunk
        finally:
            os.close(fd)


REAL = Fs()


@contextmanager
def refusals(action: str, path: Path) -> Generator[None]:
    """Turns an OSError raised inside into the UserError that names the path and says why the system refused."""
    try:
        yield
    except OSError as error:
        remedy = "check that the directory exists, is writable and its disk is healthy"
        if error.errno in FULL:
            remedy = "free space on this disk or choose a directory on another one"
        elif error.errno == errno.EFBIG:
            remedy = "raise the limit on the size of a file (ulimit -f), or choose a file system that has larger files"
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | Path) else path
        is_ours = named.name.startswith(f"{LEFTOVER_PREFIX}{path.name}-")  # on its way to `path`
        raise UserError(
            f"cannot {action}: {error.strerror or error}",
            where=str(path if is_ours else named),
            remedy=remedy,
            exit_code=ExitCode.IO,
        ) from error


def is_full(error: UserError) -> bool:
    """Whether an error of `refusals` says that there is no room left: it goes away when somebody frees some."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
