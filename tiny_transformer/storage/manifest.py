"""The manifest: the one proof that a directory is what was published.

`manifest.json` lists every file with size and SHA-256. It ends with a hash of itself: of its own bytes with the 64
digits of that hash set to "0". So a flipped bit anywhere in the directory, the manifest included, is noticed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.fs import REAL, Fs, NotAFileError, refusals

MANIFEST = "manifest.json"
FORMAT = 1
MAX_BYTES = 16 << 20  # far above any real manifest; a larger one is refused before it is parsed
_DIGITS = 64
_END = b'"\n}\n'


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 (64 hexadecimal digits) of one published file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a published directory holds: files by relative POSIX name, and the publisher's own facts in `info`."""

    files: dict[str, FileEntry]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(entry.size_bytes for entry in self.files.values())

    def encode(self) -> bytes:
        """The bytes of manifest.json; `info` must be plain JSON."""
        files = {name: {"size_bytes": e.size_bytes, "sha256": e.sha256} for name, e in sorted(self.files.items())}
        body = {"format": FORMAT, "files": files, "info": self.info, "manifest_sha256": "0" * _DIGITS}
        raw = json.dumps(body, indent=1, allow_nan=False).encode() + b"\n"
        return raw[: -_DIGITS - len(_END)] + _self_hash(raw) + _END


def _self_hash(raw: bytes) -> bytes:
    zeroed = raw[: -_DIGITS - len(_END)] + b"0" * _DIGITS + raw[-len(_END) :]
    return hashlib.sha256(zeroed).hexdigest().encode()


def _damaged(directory: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{name} {what}",
        where=str(directory),
        remedy="use another checkpoint (the doctor command lists which are whole) or make this directory again",
        exit_code=ExitCode.BAD_DATA,
    )


def is_safe_name(name: str) -> bool:
    """Whether a relative name stays inside its directory whatever it is joined to."""
    path = PurePosixPath(name)
    return name == str(path) and not path.is_absolute() and ".." not in path.parts and "\0" not in name and name != "."


def read_manifest(directory: Path, fs: Fs = REAL) -> Manifest:
    """The manifest of a published directory, checked against its own hash; the files themselves are not read.

    Raises UserError: BAD_DATA when there is none or it is damaged, IO when it cannot be read.
    """
    path = directory / MANIFEST
    raw = b""
    with refusals("read", path):
        try:
            for chunk in fs.read(path):
                raw += chunk
                if len(raw) > MAX_BYTES:
                    raise _damaged(directory, MANIFEST, f"is larger than {MAX_BYTES:,} bytes")
        except (FileNotFoundError, NotADirectoryError):
            raise _damaged(directory, MANIFEST, "is missing: nothing was published here") from None
        except NotAFileError:
            raise _damaged(directory, MANIFEST, "is not a regular file") from None
    if not raw.endswith(_END) or raw[-_DIGITS - len(_END) : -len(_END)] != _self_hash(raw):
        raise _damaged(directory, MANIFEST, "does not match its own hash")
    try:
        body = json.loads(raw)
        if body["format"] != FORMAT:
            raise _damaged(directory, MANIFEST, f"has format {body['format']!r}; this version reads format {FORMAT}")
        files = {name: FileEntry(int(e["size_bytes"]), str(e["sha256"])) for name, e in body["files"].items()}
        info = dict(body["info"])
        "".join(files).encode()  # half of a surrogate pair is no name
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(directory, MANIFEST, "is not a manifest") from None
    if bad := [name for name in files if not is_safe_name(name)]:
        raise _damaged(directory, MANIFEST, f"lists a name that leaves the directory: {bad[0]!r}")
    return Manifest(files, info)


def digest(path: Path, fs: Fs = REAL, at_most: int | None = None) -> FileEntry:
    """Size and SHA-256 of a file's bytes; reading ends where the file turns out to be longer than `at_most`."""
    hasher, size_bytes = hashlib.sha256(), 0
    for chunk in fs.read(path):
        hasher.update(chunk)
        size_bytes += len(chunk)
        if at_most is not None and size_bytes > at_most:
            break
    return FileEntry(size_bytes, hasher.hexdigest())


def verify(directory: Path | str, fs: Fs = REAL, *, without: str | None = None) -> Manifest:
    """Reads every byte of a published directory and returns its manifest if all of it is as published.

    Args:
        directory: a checkpoint, or any other directory that was published.
        fs: where it is.
        without: a folder in it that the caller is not going to use; its files are not read.

    Raises UserError: BAD_DATA naming the first file that differs and how, IO when a file cannot be read.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, fs)
    for name, expected in manifest.files.items():
        if without is not None and name.startswith(without + "/"):
            continue
        with refusals("read", directory / name):
            try:
                found = digest(directory / name, fs, at_most=expected.size_bytes)
            except (FileNotFoundError, NotADirectoryError):
                raise _damaged(directory, name, "is missing") from None
            except NotAFileError:
                raise _damaged(directory, name, "is not a regular file") from None
        if found.size_bytes > expected.size_bytes:
            raise _damaged(directory, name, f"is longer than the {expected.size_bytes:,} bytes the manifest says")
        if found.size_bytes != expected.size_bytes:
            size = f"is {found.size_bytes:,} bytes long, the manifest says {expected.size_bytes:,}"
            raise _damaged(directory, name, size)
        if found != expected:
            raise _damaged(directory, name, "differs from what was saved (SHA-256)")
    return manifest
