"""Directories and files that appear whole or not at all.

`publish` is the only way this package makes a directory that someone will read later: checkpoints, data, exports.
Its order is the promise. Everything is written under a hidden name; every file, then every directory, is brought to the
disk; the directory gets its name in one rename, which is itself brought to the disk; then every byte is read back and
compared. Only a `with` block that ends without an exception has saved anything.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.fs import REAL, Fs, refusals
from tiny_transformer.storage.manifest import MANIFEST, FileEntry, Manifest, digest, is_safe_name, verify
from tiny_transformer.storage.temporary import exists, in_the_making, leftover_path, remove_tree

Data = bytes | memoryview | str | Iterable[bytes | memoryview]


class Staging:
    """The hidden directory being filled: a path (`staging / "x"`, `os.fspath`) that also writes files itself.

    Files written with `write` are hashed from memory, so a write that the system lost is found when the directory is
    read back: everything of a checkpoint is written so. Files that a library writes to `staging / name` are hashed as
    they stand when the block ends.
    """

    def __init__(self, path: Path, fs: Fs) -> None:
        self.path = path
        self._fs = fs
        self.written: dict[str, FileEntry] = {}

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __fspath__(self) -> str:
        return str(self.path)

    def write(self, name: str, data: Data) -> None:
        """Writes a new file; `name` may have folders (`trainer_state/state.json`), which are made."""
        if not is_safe_name(name):
            raise ValueError(f"not a name inside the directory: {name!r}")
        with refusals("save", self.path):
            for folder in reversed(PurePosixPath(name).parents[:-1]):
                if not exists(self.path / folder, self._fs):
                    self._fs.mkdir(self.path / folder)
            self.written[name] = write_new(self.path / name, data, self._fs)

    def seal(self, info: dict[str, Any]) -> Manifest:
        """Brings every file and folder to the disk, the manifest last, and returns the manifest."""
        fs = self._fs
        folders, names = _tree(self.path, fs)
        mode = stat.S_IMODE(fs.lstat(self.path).st_mode) & 0o666  # a new folder's mode tells the umask
        entries = {}
        for name in names:
            entries[name] = self.written.get(name) or digest(self.path / name, fs)
            if stat.S_IMODE(fs.lstat(self.path / name).st_mode) != mode:
                fs.chmod(self.path / name, mode)
            fs.fsync(self.path / name)
        if missing := self.written.keys() - entries.keys():
            raise OSError(f"written files are not there: {sorted(missing)}")
        manifest = Manifest(entries, info)
        write_new(self.path / MANIFEST, manifest.encode(), fs)
        fs.fsync(self.path / MANIFEST)
        for folder in [*reversed(folders), self.path]:
            fs.fsync_dir(folder)
        return manifest


def write_into(directory: Staging | Path | str, name: str, data: Data) -> None:
    """Writes a file into a directory that is being published, or into an ordinary one, where it replaces another.

    Raises UserError (IO) when the system refuses.
    """
    if isinstance(directory, Staging):
        directory.write(name, data)
        return
    path = Path(directory) / name
    with refusals("write", path):
        path.unlink(missing_ok=True)
        write_new(path, data, REAL)


@contextmanager
def publish(
    path: Path | str, *, info: dict[str, Any] | None = None, replace: bool = False, fs: Fs = REAL
) -> Generator[Staging]:
    """Makes the directory `path` out of what the block puts into the `Staging` it is given, wholly or not at all.

    Args:
        path: the directory to appear. Missing parents are made; a symbolic link is followed.
        info: the publisher's facts for the manifest, plain JSON.
        replace: whether a directory of that name may be there; it is removed once the new one is verified. Readers
            that hold its files open keep them. (Between two renames neither has the name.)

    Raises UserError: USAGE when `path` is in the way, IO when the system refuses an operation or what is read back is
    not what was written. Whatever is raised, nothing new is left under `path`, and a replaced directory is back.
    """
    with refusals("save", Path(path)):
        path = Path(os.path.realpath(path))
        if not replace and _is_taken(path, fs):
            raise UserError("already there, and not to be overwritten", where=str(path), remedy="choose another name")
        make_directories(path.parent, fs)
        aside = leftover_path(path)
    with ExitStack() as stack:
        with refusals("save", path):
            temporary = stack.enter_context(in_the_making(path, fs.mkdir, fs))
        named = False
        try:
            with refusals("save", path):
                staging = Staging(temporary, fs)
                yield staging
                manifest = staging.seal(info or {})
                if replace and exists(path, fs):
                    fs.rename(path, aside)
                fs.rename(temporary, path)
                named = True
                fs.fsync_dir(path.parent)
                read_back(path, manifest, fs)
        except BaseException:
            if named:
                with suppress(OSError):
                    fs.rename(path, temporary)  # hidden first, so that nobody ever sees half of it
            with suppress(OSError):
                if exists(aside, fs):
                    fs.rename(aside, path)
            with suppress(OSError):
                remove_tree(temporary, fs)
            raise
    with suppress(OSError):  # the new directory is safe; what cannot be removed now is a leftover
        remove_tree(aside, fs)


def _is_taken(path: Path, fs: Fs) -> bool:
    """Whether something would be overwritten; an empty directory is not in the way."""
    if not exists(path, fs):
        return False
    return not stat.S_ISDIR(fs.lstat(path).st_mode) or bool(fs.names(path))


def read_back(path: Path, manifest: Manifest, fs: Fs) -> None:
    """Reads a published directory from the disk and compares it with what was meant to be written."""
    try:
        found = verify(path, fs)
    except UserError as error:
        problem = error.what
    else:
        problem = "" if found.encode() == manifest.encode() else "manifest.json is not the one that was written"
    if problem:
        raise UserError(
            f"not saved: what was read back is not what was written ({problem})",
            where=str(path),
            remedy="check the disk; nothing saved before was touched",
            exit_code=ExitCode.IO,
        )


def atomic_write(path: Path | str, data: bytes | str, fs: Fs = REAL, *, makes_parents: bool = True) -> None:
    """Writes one file so that readers see the old bytes or the new ones, and after a return, the new ones for good.

    Args:
        path: the file.
        data: what it is to hold; text as in `write_new`.
        fs: where it is.
        makes_parents: whether missing directories are made. A run that is going on does not: its directory was there,
            and one that somebody removed must not come back with one file in it.

    Raises UserError (IO) when the system refuses; the old file is then still there.
    """
    path = Path(path)
    with refusals("write", path):
        temporary = leftover_path(path)
    try:
        with refusals("write", path):
            if makes_parents:
                make_directories(path.parent, fs)
            expected = write_new(temporary, data, fs)
            fs.fsync(temporary)
            if digest(temporary, fs) != expected:
                raise OSError("what was read back is not what was written")
            fs.rename(temporary, path)
            fs.fsync_dir(path.parent)
    except BaseException:
        with suppress(OSError):
            fs.unlink(temporary)
        raise


def make_directories(path: Path, fs: Fs = REAL) -> None:
    """Makes a directory and its missing parents, each brought to the disk."""
    if not exists(path, fs):
        make_directories(path.parent, fs)
        with suppress(FileExistsError):
            fs.mkdir(path)
        fs.fsync_dir(path.parent)


def _tree(root: Path, fs: Fs) -> tuple[list[Path], list[str]]:
    """The folders below `root`, outer ones first, and the names of all files; anything else is refused."""
    folders, names = [], []
    todo = [root]
    while todo:
        folder = todo.pop()
        for name in fs.names(folder):
            entry = folder / name
            mode = fs.lstat(entry).st_mode
            if stat.S_ISDIR(mode):
                folders.append(entry)
                todo.append(entry)
            elif stat.S_ISREG(mode):
                names.append(entry.relative_to(root).as_posix())
            else:
                raise ValueError(f"only files and folders can be published, not {entry}")
    return folders, names


def write_new(path: Path, data: Data, fs: Fs) -> FileEntry:
    """Writes a new file and returns the size and hash of the bytes that were meant.

    Text is UTF-8; half of a surrogate pair, for which UTF-8 has no bytes, becomes `\\udXXX`, which JSON reads back.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "backslashreplace")
    hasher, size_bytes = hashlib.sha256(), 0
    fd = fs.create(path)
    try:
        for chunk in [data] if isinstance(data, bytes | bytearray | memoryview) else data:
            hasher.update(chunk)
            size_bytes += len(chunk)
            rest = memoryview(chunk)
            try:
                while rest:
                    rest = rest[fs.write(fd, rest) :]
            except OSError as error:
                wanted = f"{error.strerror} (writing {len(chunk):,} bytes)"
                raise OSError(error.errno, wanted, str(path)) from error
    finally:
        fs.close(fd)
    return FileEntry(size_bytes, hasher.hexdigest())
