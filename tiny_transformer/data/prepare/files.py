"""Documents from files on disk: which files a path means, and how each kind of file is cut into documents.

- `.jsonl`, `.parquet`: one document a row, from one field.
- `.txt`, `.md` and others: a line that holds just `<|endoftext|>` ends a document. A file without such a line is one
  document up to 16 KiB; a longer one is cut at blank lines into pieces of about that size, so that memory stays flat
  and a part of a single book can be kept for validation.

Each may be packed with gzip (`.gz`), xz (`.xz`) or Zstandard (`.zst`).
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError

SEPARATOR = "<|endoftext|>"
TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
PACKED_SUFFIXES = (".gz", ".xz", ".zst")
UNREAD_SUFFIXES = (".bz2", ".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".pdf", ".docx", ".epub")
PIECE_CHARS = 16 * 2**10
# How far into a file a separator is looked for, and how long a document between separators may grow before it is cut.
MAX_DOCUMENT_CHARS = 8 * 2**20
MOST_HASHED_BYTES = 2**28
_LINE_CHARS = 2**16  # longer lines come in parts


def looks_like_hub_id(name: str) -> bool:
    """Whether a name that is no path can be `org/name` on the hub."""
    parts = name.split("/")
    is_pair = len(parts) == 2 and all(part.strip(".~") for part in parts)
    return is_pair and not any(sign in name for sign in "*?[\\") and _kind(Path(name)) not in SUFFIXES


def find_files(name: str) -> list[Path]:
    """The files a path, folder (searched through) or glob pattern means, in sorted order.

    Raises:
        UserError: nothing is there, or nothing that holds text.
    """
    path = Path(name).expanduser()
    kinds = " ".join(SUFFIXES)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        found = sorted(p for p in inside if _kind(p) in SUFFIXES and p.is_file())
        problem = f"no text in the folder {name}"
    else:
        found = sorted(p for match in glob.glob(str(path), recursive=True) if (p := Path(match)).is_file())  # noqa: PTH207
        problem = f"no file matches {name}" if glob.has_magic(name) else f"no such file, folder or data set: {name}"
    if not found:
        raise UserError(
            problem,
            remedy=f"give a file, folder or glob of {kinds} (also {' '.join(PACKED_SUFFIXES)}), or --source stories",
            exit_code=ExitCode.BAD_DATA if path.is_dir() else ExitCode.USAGE,
        )
    return found


def name_of(source: str) -> str:
    """A short name for a source, for directories: the file's or folder's name without the suffixes of its kind."""
    path = Path(source).expanduser()
    while glob.has_magic(path.name) and path.parent != path and not path.exists():
        path = path.parent
    path = path if path.name.strip(".") else path.resolve()
    while path.suffix.lower() in (*SUFFIXES, *PACKED_SUFFIXES) and path.stem != path.name:
        path = path.with_suffix("")
    return re.sub(r"[^\w.]+", "-", path.name).strip("-.") or "text"


def identity_of(found: list[Path], root: Path) -> str:
    """A text that changes when what the files hold changes, and not when they are copied or touched.

    Of more than `MOST_HASHED_BYTES` only names, sizes and times are looked at.
    """
    stats = [path.stat() for path in found]
    is_hashed = sum(stat.st_size for stat in stats) <= MOST_HASHED_BYTES
    entries = []
    for path, stat in zip(found, stats, strict=True):
        name = str(path.relative_to(root)) if root.is_dir() else "".join(path.suffixes)
        entries.append([name, stat.st_size, _digest(path) if is_hashed else stat.st_mtime_ns])
    return json.dumps(entries)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def is_plain_text(path: Path) -> bool:
    """Whether the size of the file is the amount of its text."""
    return path.suffix.lower() in TEXT_SUFFIXES


def read_documents(path: Path, text_field: str = "text") -> Iterator[str]:
    """The documents of one file; empty ones are left out, line breaks around a document too.

    Raises:
        UserError: invalid UTF-8 (naming the byte), a file that is not text, a row without the field (naming the line),
            a damaged archive, a missing package.
    """
    kind = _kind(path)
    if path.suffix.lower() in UNREAD_SUFFIXES:
        raise UserError(
            f"{path.suffix} files are not read",
            where=str(path),
            remedy=f"unpack it, or give {' '.join(SUFFIXES)} (also {' '.join(PACKED_SUFFIXES)})",
            exit_code=ExitCode.BAD_DATA,
        )
    if path.stat().st_size == 0:
        raise _bad("the file is empty", path)
    if kind == ".parquet":
        texts = _parquet_texts(path, text_field)
    elif kind == ".jsonl":
        texts = _jsonl_texts(path, text_field)
    else:
        texts = _plain_texts(path)
    for text in texts:
        if text.strip():
            yield text.strip("\r\n")


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _plain_texts(path: Path) -> Iterator[str]:
    with _open_text(path) as lines:
        ahead, num_chars = [], 0
        for line in lines:
            ahead.append(line)
            num_chars += len(line)
            if line.strip() == SEPARATOR or num_chars > MAX_DOCUMENT_CHARS:
                break
        separated = bool(ahead) and ahead[-1].strip() == SEPARATOR
        # `lines` goes on where the look ahead ended.
        yield from _cut(_chain(ahead, lines), MAX_DOCUMENT_CHARS if separated else PIECE_CHARS)


def _chain(ahead: list[str], lines: Iterator[str]) -> Iterator[str]:
    yield from ahead
    yield from lines


def _cut(lines: Iterator[str], max_chars: int) -> Iterator[str]:
    """Documents between separator lines; a longer one ends at the first blank line after `max_chars`, at any line
    after twice that, and anywhere after four times."""
    held: list[str] = []
    num_chars = 0
    for line in lines:
        ends = line.strip() == SEPARATOR
        if not ends:
            held.append(line)
            num_chars += len(line)
            blank, whole_line = not line.strip(), line.endswith("\n")
            ends = num_chars > max_chars and (
                blank or (whole_line and num_chars > 2 * max_chars) or num_chars > 4 * max_chars
            )
        if ends:
            yield "".join(held)
            held, num_chars = [], 0
    yield "".join(held)


def _jsonl_texts(path: Path, text_field: str) -> Iterator[str]:
    with _open_text(path, whole_lines=True) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _bad(f"line {number} is not JSON ({error})", path, line=number) from None
            yield _field_of(row, text_field, path, number)


def _field_of(row: Any, text_field: str, path: Path, line: int) -> str:
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        fields = [name for name, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []
        raise UserError(
            f"no text in the field {text_field!r}",
            where=f"{path}, line {line}",
            remedy=f"choose one with --text_field; fields that hold text here: {', '.join(fields) or 'none'}",
            exit_code=ExitCode.BAD_DATA,
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad("the text has half of a surrogate pair (an escape \\ud800 to \\udfff)", path, line=line) from None
    return text


def _parquet_texts(path: Path, text_field: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            "reading .parquet needs the package pyarrow",
            where=str(path),
            remedy="pip install 'tiny-transformer[parquet]'",
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise UserError(
                    f"no column {text_field!r}",
                    where=str(path),
                    remedy=f"choose one with --text_field; columns here: {', '.join(names)}",
                    exit_code=ExitCode.BAD_DATA,
                )
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is not None:
                        yield _field_of({text_field: text}, text_field, path, row)
    except (pyarrow.ArrowException, OSError) as error:
        raise _bad(f"not a readable parquet file ({str(error).splitlines()[0]})", path) from None


@contextmanager
def _open_text(path: Path, *, whole_lines: bool = False) -> Generator[Iterator[str]]:
    """The lines of a text file, each with its line break; very long ones in parts unless `whole_lines`."""
    limit = -1 if whole_lines else _LINE_CHARS
    try:
        with _open_bytes(path) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="\n") as text:
            yield _checked_lines(text, limit, path)
    except UnicodeDecodeError:
        raise _invalid_utf8(path) from None
    except _archive_errors() as error:
        raise _bad(f"the archive is damaged ({error})", path) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _archive_errors() -> tuple[type[Exception], ...]:
    zstandard = sys.modules.get("zstandard")  # only imported where a .zst is read
    errors = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
    return (*errors, zstandard.ZstdError) if zstandard else errors


def _checked_lines(text: io.TextIOWrapper, limit: int, path: Path) -> Iterator[str]:
    while line := text.readline(limit):
        if "\0" in line:
            raise _bad("not a text file: it has a zero byte", path)
        yield line


def _open_bytes(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".xz":
        return lzma.open(path, "rb")
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise UserError(
                "reading .zst needs the package zstandard",
                where=str(path),
                remedy="pip install 'tiny-transformer[zstd]'",
            ) from None
        return zstandard.open(path, "rb")
    return path.open("rb")


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
    packed = "unpacked " if path.suffix.lower() in PACKED_SUFFIXES else ""
    return UserError(
        "not a text file: invalid UTF-8" + (" (it holds binary data, or UTF-16)" if is_binary else ""),
        where=f"{path}, {packed}byte {offset:,}",
        remedy="leave it out, or save its text as UTF-8"
        + ("" if is_binary else " (for Latin-1: iconv -f latin1 -t utf-8)"),
        exit_code=ExitCode.BAD_DATA,
    )


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot read {path}: {error.strerror or error}", remedy="check the file and its disk", exit_code=ExitCode.IO
    )


def _bad(problem: str, path: Path, *, line: int | None = None) -> UserError:
    return UserError(
        problem,
        where=str(path) if line is None else f"{path}, line {line}",
        remedy="mend or leave out this file",
        exit_code=ExitCode.BAD_DATA,
    )
