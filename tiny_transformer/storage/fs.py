"""The few file operations that the storage room is built from.

Every function here takes an `Fs`, so that a test can record the operations, make the k-th one fail, or work out what a
power cut would leave behind, without a mock of the whole operating system.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiny_transformer.errors import ExitCode, UserError

CHUNK_BYTES = 1 << 20


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
        """A file's bytes in pieces."""
        fd = os.open(path, os.O_RDONLY)
        try:
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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise UserError(
            f"cannot {action}: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="free space on this disk or choose a directory on another one"
            if full
            else "check that the directory exists, is writable and its disk is healthy",
            exit_code=ExitCode.IO,
        ) from error
