"""Which files a path means, what each holds by its name, and what identifies all of it.

- `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`: one document a row, from one field; see `rows`.
- `.txt`, `.md`, `.html`: running text; see `texts`. A single file of another kind is read as plain text too.

Each but parquet may be packed with gzip, bzip2, xz or Zstandard; see `unpack`.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tiny_transformer.data.prepare import rows, texts
from tiny_transformer.data.prepare.unpack import PACKED_SUFFIXES, bad, is_packed, unreadable
from tiny_transformer.errors import ExitCode, UserError

PLAIN_SUFFIXES = (".txt", ".md")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*PLAIN_SUFFIXES, ".html", *ROW_SUFFIXES)  # as they are named to the user
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
    ".xlsx": "save it as .csv first",
    ".xls": "save it as .csv first",
    ".ods": "save it as .csv first",
}
MOST_HASHED_BYTES = 2**28
_MOST_NAMED = 6  # suffixes in a sentence


class Found(NamedTuple):
    """The files that a path means, in sorted order, and a sentence about what else is there (or "")."""

    paths: list[Path]
    note: str


def looks_like_hub_id(name: str) -> bool:
    """Whether a name that is no path can be `org/name` on the hub."""
    parts = name.split("/")
    is_pair = len(parts) == 2 and all(part.strip(".~") for part in parts)
    is_file = _kind(Path(name)) in READ_SUFFIXES | UNREAD_SUFFIXES.keys()
    return is_pair and not any(sign in name for sign in "*?[\\") and not is_file


def find_files(name: str) -> Found:
    """The files a path, folder (searched through, links followed) or glob pattern means.

    Raises:
        UserError: nothing is there, or nothing that holds text; it names what is there instead.
    """
    path = Path(name).expanduser()
    if path.is_file():
        kind = _kind(path)
        note = f"reading {path.name} as plain text, as it stands"
        return Found([path], "" if kind in READ_SUFFIXES | UNREAD_SUFFIXES.keys() else note)
    if path.is_dir():
        return _search(path, name)
    if re.match(r"[A-Za-z][\w+.-]*://", name):
        raise UserError(f"{name} is an address, and nothing is fetched from there", remedy=_fetch(name))
    found = _unique(sorted(match for match in _matches(path) if match.is_file()))
    if not found:
        problem = f"no file matches {name}" if glob.has_magic(name) else f"no such file, folder or data set: {name}"
        raise UserError(
            f"{name} is neither a file nor a folder" if path.exists() else problem,
            remedy=f"give a file, folder or glob of {_kinds()}, or --source stories",
        )
    return Found(found, f"reading {_counted(found)}")


def name_of(source: str) -> str:
    """A short name for a source, for directories: the file's or folder's name without the suffixes of its kind."""
    path = Path(source).expanduser()
    while glob.has_magic(path.name) and path.parent != path and not path.exists():
        path = path.parent
    path = path if path.name.strip(".") else path.resolve()
    while path.suffix.lower() in (*READ_SUFFIXES, *PACKED_SUFFIXES) and path.stem != path.name:
        path = path.with_suffix("")
    return re.sub(r"[^\w.]+", "-", path.name).strip("-.") or "text"


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
    return not is_packed(path) and _kind(path) not in {*ROW_SUFFIXES, *HTML_SUFFIXES}


def read_documents(path: Path, text_field: str = "text") -> Iterator[str]:
    """The documents of one file; empty ones are left out, line breaks around a document too.

    Raises:
        UserError: invalid UTF-8 (naming the byte), a file that is not text, a row without the field (naming the line),
            a damaged archive, a missing package.
    """
    return _whole(_texts(path, text_field))


def read_split(path: Path, val_fraction: float | None, max_bytes: int | None) -> Iterator[texts.Stretch]:
    """The documents of a file of running text that is the whole source; see `texts.split_of`."""
    _check(path)
    for text, is_validation in texts.split_of(_lines(path), val_fraction, max_bytes):
        for whole in _whole([text]):
            yield texts.Stretch(whole, is_validation)


def is_running_text(path: Path) -> bool:
    """Whether the file has lines of text and no rows."""
    return _kind(path) not in ROW_SUFFIXES


def _texts(path: Path, text_field: str) -> Iterator[str]:
    _check(path)
    kind = _kind(path)
    if kind == ".parquet":
        return rows.parquet_texts(path, text_field)
    if kind == ".json":
        return rows.json_texts(path, text_field)
    if kind in (".jsonl", ".ndjson"):
        return rows.json_lines_texts(path, text_field)
    if kind in (".csv", ".tsv"):
        return rows.csv_texts(path, text_field, kind)
    return texts.documents_of(_lines(path))


def _lines(path: Path) -> Iterator[str]:
    return texts.html_lines(path) if _kind(path) in HTML_SUFFIXES else texts.plain_lines(path)


def _whole(documents: Iterable[str]) -> Iterator[str]:
    for text in documents:
        if text.strip():
            yield text.strip("\r\n")


def _check(path: Path) -> None:
    """Refuse a file by its name or size."""
    kind, suffix = _kind(path), path.suffix.lower()
    wrong = kind if kind in UNREAD_SUFFIXES else suffix if suffix in UNREAD_SUFFIXES else None
    if wrong is None and kind == ".parquet" and is_packed(path):
        wrong, remedy = f".parquet{suffix}", _UNPACK
    else:
        remedy = UNREAD_SUFFIXES[wrong] if wrong else ""
    if wrong is not None:
        remedy = f"{remedy}; read are {_kinds()}"
        raise bad(f"{wrong} files are not read", path, remedy=remedy)
    try:
        is_empty = path.stat().st_size == 0
    except OSError as error:
        raise unreadable(path, error) from None
    if is_empty:
        raise bad("the file is empty", path)


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


class _Walk:
    """All files below a folder, each real folder looked at once, however many links lead to it or back; what is hidden
    is not looked at."""

    def __init__(self, root: Path) -> None:
        self.files: list[Path] = []
        self.num_linked = self.num_again = 0
        self._root, self._seen = root, {_place(root)}
        for directory, folders, names in os.walk(root, followlinks=True, onerror=self._refuse):
            folders[:] = [
                name for name in sorted(folders) if not name.startswith(".") and self._is_new(directory, name)
            ]
            self.files += [Path(directory, name) for name in names if not name.startswith(".")]

    def _is_new(self, directory: str, name: str) -> bool:
        folder = Path(directory, name)
        is_new = (place := _place(folder)) not in self._seen
        self._seen.add(place)
        if folder.is_symlink():
            self.num_linked, self.num_again = self.num_linked + is_new, self.num_again + (not is_new)
        return is_new

    def _refuse(self, error: OSError) -> None:
        raise unreadable(error.filename or self._root, error)


def _search(root: Path, name: str) -> Found:
    """The files of a folder that hold text, and a count of the others."""
    walk = _Walk(root)

    def is_read(path: Path) -> bool:
        return _kind(path) in READ_SUFFIXES and path.is_file() and path.stat().st_size > 0

    found = _unique(sorted(filter(is_read, walk.files)))
    others = [path for path in walk.files if not is_read(path)]
    if not found:
        raise _no_text(name, others)
    sentences = [f"reading {_counted(found)}"]
    if others:
        sentences.append(f"skipped {len(others):,}: {_counted(others)}")
    if walk.num_linked:
        sentences.append(f"{walk.num_linked:,} linked folder{'s' * (walk.num_linked > 1)} followed")
    if walk.num_again:
        sentences.append(f"{walk.num_again:,} link{'s' * (walk.num_again > 1)} to a folder that is read already")
    return Found(found, "; ".join(sentences))


def _matches(pattern: Path) -> Iterator[Path]:
    """What a glob pattern matches. Below a `**` every real folder is looked at once: `glob` itself follows links that
    lead back forty times."""
    parts = pattern.parts
    if "**" not in parts:
        yield from map(Path, glob.glob(str(pattern)))  # noqa: PTH207
        return
    start = parts.index("**")
    roots = glob.glob(str(Path(*parts[:start]))) if start else ["."]  # noqa: PTH207
    for root in filter(Path.is_dir, map(Path, roots)):
        yield from (path for path in _Walk(root).files if _fits(path.relative_to(root).parts, parts[start:]))


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _no_text(name: str, others: list[Path]) -> UserError:
    """What the folder holds instead, and what makes text of the commonest kind."""
    what = f"no text in the folder {name}"
    remedy = f"give a file, folder or glob of {_kinds()}, or --source stories"
    if others:
        kind = Counter(_kind(path) for path in others).most_common(1)[0][0]
        what += f": it holds {_counted(others)}"
        glob_there = f"{name.rstrip('/')}/**/*{kind}"
        as_text = f"if they are text, read them as they stand: --source '{glob_there}'; else give {_kinds()}"
        remedy = f"{UNREAD_SUFFIXES[kind]}; then {remedy}" if kind in UNREAD_SUFFIXES else as_text
    return UserError(what, remedy=remedy, exit_code=ExitCode.BAD_DATA)


def _counted(paths: list[Path]) -> str:
    """`3 .txt, 1 .md`, the commonest first."""
    counts = Counter(_called(path) for path in paths)
    named = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count:,} {kind}" for kind, count in named[:_MOST_NAMED]]
    if rest := sum(count for _, count in named[_MOST_NAMED:]):
        words.append(f"{rest:,} more")
    return ", ".join(words)


def _form(path: Path) -> str:
    """What a name says about how the file is read: `.jsonl.gz`, or "" for plain text of an unknown kind."""
    kind = _kind(path)
    return (kind if kind in READ_SUFFIXES else "") + _packing(path)


def _packing(path: Path) -> str:
    return path.suffix.lower() if is_packed(path) else ""


def _called(path: Path) -> str:
    """The kind of a file as it is counted."""
    if not path.is_file():
        return "broken link" if path.is_symlink() else "special file"
    if path.stat().st_size == 0:
        return "empty file"
    return _kind(path) + _packing(path) or "without a suffix"


def _unique(paths: list[Path]) -> list[Path]:
    """Each file once, however many links lead to it."""
    return list({_place(path): path for path in reversed(paths)}.values())[::-1]


def _place(path: Path) -> tuple[int, int] | str:
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino


def _kinds() -> str:
    return f"{' '.join(SUFFIXES)} (also {' '.join(PACKED_SUFFIXES)})"


def _fetch(name: str) -> str:
    if at_hub := re.match(r"https?://huggingface\.co/datasets/([^/]+/[^/?#]+)/?$", name):
        return f"data sets of the hub are called by their id: --source {at_hub[1]}"
    return f"fetch it first: curl -L -o text.txt {name}; then --source text.txt"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
