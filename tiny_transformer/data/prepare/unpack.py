"""Opening a file of text, however it is packed: gzip, bzip2, xz or Zstandard, all of it or an error.

Python's own readers of xz and bzip2 pass over what stands behind the end without a word, and that of Zstandard over a
file that was cut and over every frame but the first. So all four go through one reader, which knows two ways to end:
after a whole stream (or several, one after another), or with an error.
"""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tiny_transformer.errors import ExitCode, UserError

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
PADDED = (".gz", ".xz")  # zeros may follow their end: some tape and disk writers fill the last block
_CHUNK_BYTES = 2**13  # small: a hostile file may grow a hundred-thousandfold when it is unpacked
_LINE_CHARS = 2**16  # longer lines come in parts


class DamagedArchiveError(Exception):
    """A packed file that is cut, damaged or followed by something else."""


class Unpacked(io.RawIOBase):
    """The bytes inside a packed file; all streams in it, one after another."""

    def __init__(self, path: Path) -> None:
        self._suffix = path.suffix.lower()
        self._new, self._errors = _unpacker(path)
        self._file = path.open("rb")
        self._stream: Any = None  # the unpacker of a stream that has begun and not ended
        self._num_streams = 0
        self._packed = self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what comes next; 0 bytes at the end of the last whole stream."""
        while not self._held:
            if not self._unpack_more():
                return 0
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

    def _unpack_more(self) -> bool:
        self._packed = self._packed or self._file.read(_CHUNK_BYTES)
        if self._stream is None and self._num_streams and self._suffix in PADDED:
            while self._packed and not self._packed.strip(b"\0"):
                self._packed = self._file.read(_CHUNK_BYTES)
            self._packed = self._packed.lstrip(b"\0")
        if not self._packed:
            if self._stream is not None:
                raise DamagedArchiveError("it was cut short: its end is missing")
            return False
        self._stream = self._stream or self._new()
        try:
            self._held = self._stream.decompress(self._packed)
        except self._errors as error:
            where = "what follows its end is something else" if self._num_streams else str(error)
            raise DamagedArchiveError(where) from None
        self._packed = b""
        if self._stream.eof:
            self._packed, self._stream = self._stream.unused_data, None
            self._num_streams += 1
        return True


def _unpacker(path: Path) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """What makes an unpacker for one stream of such a file, and the errors it raises."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    if suffix == ".bz2":
        return bz2.BZ2Decompressor, (OSError, ValueError)
    if suffix == ".xz":
        return lzma.LZMADecompressor, (lzma.LZMAError,)
    try:
        import zstandard
    except ImportError:
        raise UserError(
            "reading .zst needs the package zstandard",
            where=str(path),
            remedy="pip install zstandard",
        ) from None
    return lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(), (zstandard.ZstdError,)


def is_packed(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix.lower() in PACKED_SUFFIXES


@contextmanager
def open_text(path: Path, *, whole_lines: bool = False, newline: str = "\n") -> Generator[Iterator[str]]:
    """The lines of a text file, each with its line break; very long ones in parts unless `whole_lines`.

    With `newline` empty a line may end with a carriage return too, alone or before a line feed.

    Raises:
        UserError: the file cannot be read, is damaged, or is not UTF-8 (naming the byte).
    """
    limit = -1 if whole_lines else _LINE_CHARS
    try:
        with _open_bytes(path) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline=newline) as text:
            yield _checked_lines(text, limit, path)
    except UnicodeDecodeError:
        raise _invalid_utf8(path) from None
    except DamagedArchiveError as error:
        raise _not_as_named(path) or bad(
            f"the archive is damaged ({error})", path, remedy="fetch or pack it again"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


def bad(problem: str, path: Path, *, line: int | None = None, remedy: str = "mend or leave out this file") -> UserError:
    """The error for a file that is not what its name says."""
    where = str(path) if line is None else f"{path}, line {line}"
    return UserError(problem, where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA)


def unreadable(path: Path | str, error: OSError) -> UserError:
    """The error for a file or folder that the system does not let us read."""
    return UserError(
        f"cannot read {path}: {error.strerror or error}", remedy="check the file and its disk", exit_code=ExitCode.IO
    )


def _open_bytes(path: Path) -> BinaryIO:
    return io.BufferedReader(Unpacked(path)) if is_packed(path) else path.open("rb")


def _checked_lines(text: io.TextIOWrapper, limit: int, path: Path) -> Iterator[str]:
    while line := text.readline(limit):
        if "\0" in line:
            raise bad("not a text file: it has a zero byte", path, remedy=_remedy(path, is_binary=True))
        yield line


# How other kinds of files begin -> what makes text of them.
_PACKED_BEGINNINGS = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_OTHER_BEGINNINGS = {
    b"PK\x03\x04": "by its first bytes it is a zip archive, as .docx and .xlsx are: unpack it, or save its text",
    b"%PDF": "by its first bytes it is a PDF; make text of it first: pdftotext FILE FILE.txt",
    b"\xff\xfe\0\0": "make UTF-8 of it: iconv -f utf-32 -t utf-8",
    b"\0\0\xfe\xff": "make UTF-8 of it: iconv -f utf-32 -t utf-8",
    b"\xff\xfe": "make UTF-8 of it: iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "make UTF-8 of it: iconv -f utf-16 -t utf-8",
}


def _not_as_named(path: Path) -> UserError | None:
    """The error for a file whose first bytes say that it is packed in another way than its name says, or not at all;
    None where they do not."""
    with path.open("rb") as file:
        head = file.read(2**12)
    suffix = path.suffix.lower()
    for beginning, packing in _PACKED_BEGINNINGS.items():
        if head.startswith(beginning):
            what, remedy = (
                f"no {suffix} archive: by its first bytes it is a {packing}",
                f"let its name end in {packing}",
            )
            return bad(what, path, remedy=remedy) if packing != suffix else None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    what = f"no {suffix} archive: by its first bytes it is text, and not packed"
    return bad(what, path, remedy=f"take {suffix} off its name") if b"\0" not in head else None


def _remedy(path: Path, *, is_binary: bool) -> str:
    """What to do with a file that is no text, by its first bytes."""
    with _open_bytes(path) as data:
        head = data.read(8)
    for beginning, suffix in _PACKED_BEGINNINGS.items():
        if head.startswith(beginning):
            again = f"by its first bytes it is packed again ({suffix}): unpack it first"
            return again if is_packed(path) else f"by its first bytes it is packed: give its name the end {suffix}"
    for beginning, remedy in _OTHER_BEGINNINGS.items():
        if head.startswith(beginning):
            return remedy
    return "leave it out, or save its text as UTF-8" + ("" if is_binary else " (for Latin-1: iconv -f latin1 -t utf-8)")


def _invalid_utf8(path: Path) -> UserError:
    """Read again to find the first byte that is not UTF-8; the decoder's own count begins anew with each chunk."""
    decoder, offset, is_binary = codecs.getincrementaldecoder("utf-8")(), 0, False
    with _open_bytes(path) as data:
        while chunk := data.read(2**20):
            is_binary = is_binary or b"\0" in chunk
            held = len(decoder.getstate()[0])  # bytes of an unfinished character, decoded again with this chunk
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                offset += error.start - held
                break
            offset += len(chunk)
        else:
            offset -= len(decoder.getstate()[0])
    packed = "unpacked " if is_packed(path) else ""
    return UserError(
        "not a text file: invalid UTF-8" + (" (it holds binary data, or UTF-16)" if is_binary else ""),
        where=f"{path}, {packed}byte {offset:,}",
        remedy=_remedy(path, is_binary=is_binary),
        exit_code=ExitCode.BAD_DATA,
    )
