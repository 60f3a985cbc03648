"""Which files a path means: one, those of a folder, or those that a glob pattern matches; and what is said of the rest.

A folder is searched through, its linked folders too; what is hidden is not looked at. A pattern may have `*`, `?`,
`[...]`, `**` for any number of folders, and `{py,js}` for one of several.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tiny_transformer.data.prepare.files import (
    HTML_SUFFIXES,
    READ_SUFFIXES,
    ROW_SUFFIXES,
    UNREAD_SUFFIXES,
    kind_of,
    kinds_in_words,
    packing_of,
)
from tiny_transformer.data.prepare.unpack import is_packed, open_text
from tiny_transformer.data.prepare.walk import Walk, place_of
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.reading import at_home

_MOST_NAMED = 6  # suffixes in a sentence
_COUNTED_BY_NAME = ("folder", "broken link", "special file", "empty file")
_PLAIN_SUFFIX = re.compile(r"(\.[\w+-]+){1,2}")
_ONE_OF = re.compile(r"(?<!\[)\{([^{}]*,[^{}]*)\}")


class Found(NamedTuple):
    """The files that a path means, in sorted order, and a sentence about what else is there (or "")."""

    paths: list[Path]
    note: str


def find_files(name: str, *, only_rows: bool = False) -> Found:
    """The files a path, folder (searched through, links followed) or glob pattern means.

    Args:
        name: the path or pattern.
        only_rows: whether running text is of no use; messages ask for rows then.

    Raises:
        UserError: nothing is there, or nothing that holds text; it names what is there instead.
    """
    path = at_home(name)
    if path.is_file():
        kind, sentences = kind_of(path), []
        if kind not in READ_SUFFIXES | UNREAD_SUFFIXES.keys():
            sentences.append(f"reading {path.name} as plain text, as it stands")
        if kind not in {*ROW_SUFFIXES, *HTML_SUFFIXES, *UNREAD_SUFFIXES} and _has_rows_of_json(path):
            sentences.append("its lines are rows of JSON: called .jsonl, one field of each would be read")
        return Found([path], "; ".join(sentences))
    if path.is_dir():
        return _search(path, name, only_rows=only_rows)
    if re.match(r"[A-Za-z][\w+.-]*://", name):
        raise UserError(f"{name} is an address, and nothing is fetched from there", remedy=_fetch(name))
    matches, walks = _matches(path)
    found = _unique(sorted(match for match in matches if _holds_something(match)))
    if not found:
        raise _nothing_there(name, path, matches, _wanted(only_rows=only_rows))
    return Found(found, _sentences(found, [match for match in matches if not _holds_something(match)], walks))


def looks_like_hub_id(name: str) -> bool:
    """Whether a name that is no path can be `org/name` on the hub, and is not a path with a slip in it."""
    parts = name.split("/")
    is_pair = len(parts) == 2 and all(part.strip(".~") for part in parts) and not Path(parts[0]).is_file()
    path = Path(name)
    is_file = kind_of(path) in READ_SUFFIXES | UNREAD_SUFFIXES.keys() or is_packed(path)
    return is_pair and not any(sign in name for sign in "*?[{\\") and not is_file and _nearest(path) is None


def _wanted(*, only_rows: bool) -> str:
    """What a message asks for."""
    if only_rows:
        return f"give a file, folder or glob of {kinds_in_words(ROW_SUFFIXES)}"
    return f"give a file, folder or glob of {kinds_in_words()}, or --source stories"


def _search(root: Path, name: str, *, only_rows: bool) -> Found:
    """The files of a folder that hold text, and a count of the others."""
    walk, kinds = Walk(root), set(ROW_SUFFIXES) if only_rows else READ_SUFFIXES

    def is_read(path: Path) -> bool:
        return kind_of(path) in kinds and _holds_something(path)

    found = _unique(sorted(filter(is_read, walk.files)))
    others = [path for path in walk.files if not is_read(path)]
    if not found:
        raise _no_text(name, others, only_rows=only_rows)
    return Found(found, _sentences(found, others, [walk]))


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _sentences(found: list[Path], others: list[Path], walks: Sequence[Walk]) -> str:
    """What is read, what is passed over, and which links were followed."""
    sentences = [f"reading {_counted(found)}"]
    num_ours = sum(walk.num_ours for walk in walks)
    ours = [f"{num_ours:,} file{'s' * (num_ours > 1)} of this program"] if num_ours else []
    if others or ours:
        kinds = ", ".join([*ours, *([_counted(others)] if others else [])])
        sentences.append(f"skipped {len(others) + num_ours:,}: {kinds}")
    if num_linked := sum(walk.num_linked for walk in walks):
        sentences.append(f"{num_linked:,} linked folder{'s' * (num_linked > 1)} followed")
    if num_again := sum(walk.num_again for walk in walks):
        sentences.append(f"{num_again:,} link{'s' * (num_again > 1)} to a folder that is read already")
    return "; ".join(sentences)


def _matches(pattern: Path) -> tuple[list[Path], list[Walk]]:
    """What a glob pattern matches, and the walks that were made for it. Below a `**` every real folder is looked at
    once: `glob` itself follows links that lead back forty times."""
    found: dict[Path, None] = {}
    walks = []
    for one in map(Path, _each(str(pattern))):
        parts = one.parts
        if "**" not in parts:
            found |= dict.fromkeys(map(Path, glob.glob(str(one))))  # noqa: PTH207
            continue
        start = parts.index("**")
        roots = glob.glob(str(Path(*parts[:start]))) if start else ["."]  # noqa: PTH207
        for root in filter(Path.is_dir, map(Path, roots)):
            walks.append(walk := Walk(root))
            found |= {path: None for path in walk.files if _fits(path.relative_to(root).parts, parts[start:])}
    return list(found), walks


def _each(pattern: str) -> Iterator[str]:
    """The patterns that one with `{a,b}` stands for."""
    if not (group := _ONE_OF.search(pattern)):
        yield pattern
        return
    for choice in group[1].split(","):
        yield from _each(pattern[: group.start()] + choice + pattern[group.end() :])


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _nothing_there(name: str, path: Path, matches: list[Path], remedy: str) -> UserError:
    """The error for a path or pattern that gives no file with something in it."""
    is_pattern = glob.has_magic(name) or _ONE_OF.search(name)
    if path.exists():
        return UserError(f"{name} is neither a file nor a folder", remedy=remedy)
    if path.is_symlink():
        return UserError(f"{name} is a link that leads nowhere", remedy=remedy)
    if name == "-":
        return UserError("standard input is not read: it cannot be read twice", remedy="write it to a file first")
    if matches:
        folder = next((match for match in matches if match.is_dir()), None)
        search = f"a folder is searched through: --source {shlex.quote(str(folder))}; or " if folder else ""
        return UserError(f"{name} matches no file with something in it: {_counted(matches)}", remedy=search + remedy)
    if near := _nearest(path):
        remedy = f"did you mean {near}? Else {remedy}"
    return UserError(
        f"no file matches {name}" if is_pattern else f"no such file, folder or data set: {name}", remedy=remedy
    )


def _nearest(path: Path) -> Path | None:
    """What a name with a slip in it may have meant: the nearest one in its folder."""
    with suppress(OSError):
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
        for near in difflib.get_close_matches(path.name, names, n=1, cutoff=0.75):
            return path.parent / near
    return None


def _no_text(name: str, others: list[Path], *, only_rows: bool) -> UserError:
    """What the folder holds instead, and what makes text of the commonest kind."""
    holds = f"it holds {_counted(others)}" if others else "it holds no files, or hidden ones, which are not looked at"
    what, remedy = f"no text in the folder {name}: {holds}", _wanted(only_rows=only_rows)
    full = [path for path in others if _holds_something(path)]
    if not only_rows and (pattern := _pattern_of_texts(full)):
        remedy = f"read them as they stand: {_source(name, f'/**/{pattern}')}; else {remedy}"
    elif full:
        (kind, _), *_ = Counter(map(kind_of, full)).most_common(1)
        remedy = f"{UNREAD_SUFFIXES[kind]}; then {remedy}" if kind in UNREAD_SUFFIXES else remedy
    return UserError(what, remedy=remedy, exit_code=ExitCode.BAD_DATA)


def _pattern_of_texts(paths: list[Path]) -> str | None:
    """A pattern for the files that are text by their content and of no kind that is known; None where there are none,
    or fewer than of a kind that has to be converted first.

    The first of each suffix, as it is written, stands for all of them.
    """
    unknown = [path for path in paths if kind_of(path) not in UNREAD_SUFFIXES]
    by_suffix: dict[str, list[Path]] = {}
    for path in unknown:
        by_suffix.setdefault("".join(path.suffixes[-1 - is_packed(path) :]), []).append(path)
    texts = {suffix: files for suffix, files in by_suffix.items() if _is_text(files[0])}
    if not texts or sum(map(len, texts.values())) < len(paths) - len(unknown):
        return None
    named = [suffix for suffix in texts if _PLAIN_SUFFIX.fullmatch(suffix)]
    if len(named) < len(texts) or len(named) > _MOST_NAMED:
        if len(unknown) == len(paths) and len(texts) == len(by_suffix):
            return "*"  # all there is
        named = sorted(named, key=lambda suffix: -len(texts[suffix]))[:_MOST_NAMED]
    if len(named) < 2:
        return f"*{named[0]}" if named else None
    return f"*.{{{','.join(suffix[1:] for suffix in sorted(named))}}}"


def _is_text(path: Path) -> bool:
    """Whether a file begins like a text."""
    try:
        with open_text(path) as lines:
            next(lines, "")
    except UserError:
        return False
    return True


def _has_rows_of_json(path: Path) -> bool:
    """Whether the first two lines of a text are objects of JSON."""
    try:
        with open_text(path) as lines:
            return all(isinstance(json.loads(line), dict) for line in (next(lines), next(lines)))
    except (UserError, ValueError, RecursionError, StopIteration):
        return False


def _source(folder: str, rest: str) -> str:
    """The words for a pattern below a folder, for a shell and for `glob`, whatever the folder is called."""
    escaped = glob.escape(folder.rstrip("/")).replace("{", "[{]")
    return f"--source {shlex.quote(escaped + rest)}"


def _counted(paths: list[Path]) -> str:
    """`3 .txt, 1 .md`, the commonest first."""
    counts = Counter(_called(path) for path in paths)
    named = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [
        f"{count:,} {kind}" + "s" * (count > 1 and kind in _COUNTED_BY_NAME) for kind, count in named[:_MOST_NAMED]
    ]
    if rest := sum(count for _, count in named[_MOST_NAMED:]):
        words.append(f"{rest:,} more")
    return ", ".join(words)


def _called(path: Path) -> str:
    """The kind of a file as it is counted."""
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "broken link" if path.is_symlink() else "special file"
    if path.stat().st_size == 0:
        return "empty file"
    return kind_of(path) + packing_of(path) or "without a suffix"


def _unique(paths: list[Path]) -> list[Path]:
    """Each file once, however many links lead to it."""
    return list({place_of(path): path for path in reversed(paths)}.values())[::-1]


def _fetch(name: str) -> str:
    """What to do with an address."""
    if at_hub := re.match(
        r"(?:https?://(?:www\.)?huggingface\.co|hf:/)/datasets/([\w.-]+/[\w.-]+)(?:/(?:tree|viewer)\b.*)?/?(?:[?#].*)?$",
        name,
    ):
        return f"data sets of the hub are called by their id: --source {at_hub[1]}"
    address = urlsplit(name)
    if address.scheme == "file":
        return f"leave out file:// : --source {shlex.quote(unquote(address.path))}"
    here = Path(unquote(address.path)).name
    here = here if kind_of(Path(here)) in READ_SUFFIXES else "text.txt"
    if address.scheme in ("http", "https", "ftp"):
        page = name.replace("/blob/", "/resolve/") if "huggingface.co" in address.netloc else name
        how = f"curl -L -o {shlex.quote(here)} {shlex.quote(page)}"
    else:
        how = f"with the program for {address.scheme}:// addresses, {name} to {here}"
    return f"fetch it first: {how}; then --source {shlex.quote(here)}"
