"""What a file holds by its name, how it is read, and what identifies the text of several.

- `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`: one document a row, from one field; see `rows`.
- `.txt`, `.md`, `.html`: running text; see `texts`. A single file of another kind is read as plain text too.

Each but parquet may be packed with gzip, bzip2, xz or Zstandard; see `unpack`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tiny_transformer.data.prepare import rows, texts
from tiny_transformer.data.prepare.unpack import PACKED_SUFFIXES, bad, is_packed, unreadable
from tiny_transformer.storage.reading import at_home

PLAIN_SUFFIXES = (".txt", ".md")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*PLAIN_SUFFIXES, ".html", *ROW_SUFFIXES)  # as they are named to the user
# Other names of the same -> as it is called here.
OTHER_SUFFIXES = {".jl": ".jsonl", ".jsonlines": ".jsonl", ".ldjson": ".jsonl", ".tab": ".tsv"}
READ_SUFFIXES = {*SUFFIXES, *HTML_SUFFIXES}
# What is known not to be text -> what makes text of it.
_UNPACK = "unpack it first"
_CONVERT = "save it as plain text first"
UNREAD_SUFFIXES = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".tbz", ".txz", ".7z", ".rar", ".lz4", ".br", ".z", ".lzma"), _UNPACK),
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".epub", ".mobi", ".ps", ".pages"), _CONVERT),
    ".pdf": "make text of it first: pdftotext FILE.pdf FILE.txt",
    ".arrow": "save it as .parquet or .jsonl first",
    ".feather": "save it as .parquet or .jsonl first",
    **dict.fromkeys((".json5", ".jsonc", ".hjson"), "save it as .json first: without comments, names in double quotes"),
    ".xlsx": "save it as .csv first",
    ".xls": "save it as .csv first",
    ".ods": "save it as .csv first",
}
MOST_HASHED_BYTES = 2**28


def name_of(source: str) -> str:
    """A short name for a source, for directories: its title, without what a shell would not take."""
    return re.sub(r"[^\w.]+", "-", title_of(str(at_home(source)))).strip("-.") or "text"


def title_of(source: str) -> str:
    """What a source is called: the file's or folder's name, that above a pattern, without the suffixes of its kind."""
    path = Path(source)
    while glob.has_magic(path.name) and path.parent != path and not os.path.exists(path):  # noqa: PTH110 - any text
        path = path.parent
    path = path if path.name.strip(".") else path.resolve()
    while path.suffix.lower() in (*READ_SUFFIXES, *OTHER_SUFFIXES, *PACKED_SUFFIXES) and path.stem != path.name:
        path = path.with_suffix("")
    return path.name


def identity_of(found: list[Path], root: Path) -> str:
    """A text that changes when what the files hold changes, and not when they are copied or touched, nor when a single
    file is called otherwise and read in the same way.

    Of more than `MOST_HASHED_BYTES` only names, sizes and times are looked at.
    """
    stats = [path.stat() for path in found]
    is_hashed = sum(stat.st_size for stat in stats) <= MOST_HASHED_BYTES
    entries = []
    for path, stat in zip(found, stats, strict=True):
        name = str(path.relative_to(root)) if root.is_dir() else _form(path)
        entries.append([name, stat.st_size, _digest(path) if is_hashed else stat.st_mtime_ns])
    return json.dumps(entries)


def is_plain_text(path: Path) -> bool:
    """Whether the size of the file is the amount of its text."""
    return not is_packed(path) and kind_of(path) not in {*ROW_SUFFIXES, *HTML_SUFFIXES}


def read_documents(path: Path, text_field: str = "text") -> Iterator[str]:
    """The documents of one file; empty ones are left out, line breaks around a document too.

    Raises:
        UserError: invalid UTF-8 (naming the byte), a file that is not text, a row without the field (naming the line),
            a damaged archive, a missing package.
    """
    return _whole(_texts(path, text_field))


def read_split(path: Path, val_fraction: float | None, max_bytes: int | None) -> Iterator[texts.Stretch]:
    """The documents of a file of running text that is the whole source; see `texts.split_of`."""
    check_readable(path)
    for text, is_validation in texts.split_of(_lines(path), val_fraction, max_bytes):
        for whole in _whole([text]):
            yield texts.Stretch(whole, is_validation)


def is_running_text(path: Path) -> bool:
    """Whether the file has lines of text and no rows."""
    return kind_of(path) not in ROW_SUFFIXES


def _texts(path: Path, text_field: str) -> Iterator[str]:
    check_readable(path)
    kind = kind_of(path)
    if kind == ".parquet":
        return rows.parquet_texts(path, text_field)
    if kind == ".json":
        return rows.json_texts(path, text_field)
    if kind in (".jsonl", ".ndjson"):
        return rows.json_lines_texts(path, text_field)
    if kind in (".csv", ".tsv"):
        return rows.csv_texts(path, text_field, kind)
    return texts.documents_of(_lines(path))


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of one file with their lines (of a parquet file: their numbers), as they stand.

    Raises:
        UserError: a file that holds no rows, or is not what its name says (naming the line), or a missing package.
    """
    check_readable(path, ROW_SUFFIXES)
    kind = kind_of(path)
    if kind == ".parquet":
        return rows.parquet_rows(path)
    if kind == ".json":
        return rows.json_rows(path)
    if kind in (".jsonl", ".ndjson"):
        return rows.json_lines_rows(path)
    if kind in (".csv", ".tsv"):
        return rows.csv_rows(path, kind)
    raise bad(f"{path.name} holds running text and no rows", path, remedy=f"a file of {kinds_in_words(ROW_SUFFIXES)}")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of one file of running text, as they stand. Errors as in `read_documents`."""
    check_readable(path)
    return _lines(path)


def _lines(path: Path) -> Iterator[str]:
    return texts.html_lines(path) if kind_of(path) in HTML_SUFFIXES else texts.plain_lines(path)


def _whole(documents: Iterable[str]) -> Iterator[str]:
    for text in documents:
        if text.strip():
            yield text.strip("\r\n")


def check_readable(path: Path, kinds: Sequence[str] = SUFFIXES) -> None:
    """Refuse a file by its name or size; `kinds` are read."""
    kind, suffix = kind_of(path), path.suffix.lower()
    wrong = kind if kind in UNREAD_SUFFIXES else suffix if suffix in UNREAD_SUFFIXES else None
    if wrong is None and kind == ".parquet" and is_packed(path):
        wrong, remedy = f".parquet{suffix}", _UNPACK
    else:
        remedy = UNREAD_SUFFIXES[wrong] if wrong else ""
    if wrong is not None:
        remedy = f"{remedy}; read are {kinds_in_words(kinds)}"
        raise bad(f"{wrong} files are not read", path, remedy=remedy)
    try:
        is_empty = path.stat().st_size == 0
    except OSError as error:
        raise unreadable(path, error) from None
    if is_empty:
        raise bad("the file is empty", path)


def kind_of(path: Path) -> str:
    """The suffix that tells what a file holds, in small letters: `.jsonl` of `A.jsonl.gz`; "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return OTHER_SUFFIXES.get(suffixes[-1], suffixes[-1]) if suffixes else ""


def _form(path: Path) -> str:
    """What a name says about how the file is read: `.jsonl.gz`, or "" for plain text of an unknown kind."""
    kind = kind_of(path)
    return (kind if kind in READ_SUFFIXES else "") + packing_of(path)


def packing_of(path: Path) -> str:
    """The suffix that tells how a file is packed, or ""."""
    return path.suffix.lower() if is_packed(path) else ""


def kinds_in_words(kinds: Sequence[str] = SUFFIXES) -> str:
    """The suffixes that are read, for a message."""
    return f"{' '.join(kinds)} (also {' '.join(PACKED_SUFFIXES)})"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
