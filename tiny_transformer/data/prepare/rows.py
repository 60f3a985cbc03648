"""Texts from files of rows: JSON Lines, JSON, CSV, TSV and parquet, one document a row, from one field.

`.json` is read as what it holds: an array, or values one after another (JSON Lines among them). A CSV or TSV file
begins with a line that names its columns.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tiny_transformer.data.prepare.unpack import bad, open_text
from tiny_transformer.errors import ExitCode, UserError

_MAX_VALUE_CHARS = 2**28  # of one row of a .json; a longer one is no row
_READ_CHARS = 2**20
TEXT_FIELD = "text"
MOST_NAMED = 12  # fields in a message
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}


class _RepeatedError(Exception):
    """An object has two values of one name, of which Python's reader would keep the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise _RepeatedError(f"the key {name[:80]!r} stands twice in one object")
    return found


def json_lines_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """One JSON value a line, with the line's number."""
    with open_text(path, whole_lines=True) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except _RepeatedError as error:
                raise bad(str(error), path, line=number) from None
            except (ValueError, RecursionError) as error:
                raise bad(f"line {number} is not JSON ({error})", path, line=number) from None
            yield number, row


def json_lines_texts(path: Path, text_field: str) -> Iterator[str]:
    """One JSON value a line."""
    for number, row in json_lines_rows(path):
        yield _text_of(row, text_field, path, number)


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of one array, or values one after another, with the line on which each begins."""
    with open_text(path) as lines:
        yield from _Values(lines, path)


def json_texts(path: Path, text_field: str) -> Iterator[str]:
    """The elements of one array, or values one after another."""
    for line, row in json_rows(path):
        yield _text_of(row, text_field, path, line)


class _Values:
    """The values of a JSON text with the line on which each begins; only a part of the text is in memory."""

    def __init__(self, lines: Iterator[str], path: Path) -> None:
        self._lines, self._path = lines, path
        self._text, self._place, self._line = "", 0, 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        in_array = self._next_sign() == "["
        self._place += in_array
        is_first = True
        while sign := self._next_sign():
            if in_array and sign == "]":
                self._place += 1
                if self._next_sign():
                    raise self._bad("something follows the end of the array")
                return
            if in_array and not is_first:
                if sign != ",":
                    raise self._bad("a comma is missing between two rows")
                self._place += 1
                self._next_sign()
            is_first = False
            line = self._line
            yield line, self._value()
        if in_array:
            raise self._bad("the file ends inside its array")

    def _next_sign(self) -> str:
        """The next character that is not blank, not yet taken; "" at the end."""
        while True:
            sign = _NOT_BLANK.search(self._text, self._place)
            self._take(sign.start() if sign else len(self._text))
            if sign:
                return sign[0]
            if not self._read_more():
                return ""

    def _value(self) -> Any:
        decoder = json.JSONDecoder(object_pairs_hook=_object)
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._place)
            except _RepeatedError as error:
                raise self._bad(str(error)) from None
            except RecursionError:
                raise self._bad("nested too deeply") from None
            except ValueError as error:
                if self._read_more():
                    continue
                raise self._bad(str(error).split(":")[0]) from None
            if end < len(self._text) or not self._read_more():  # at the very end a number may go on
                self._take(end)
                return value

    def _take(self, end: int) -> None:
        self._line += self._text.count("\n", self._place, end)
        self._place = end

    def _read_more(self) -> bool:
        """Read about as much again as is held, so that a long row is not looked at too often."""
        held = len(self._text) - self._place
        if held > _MAX_VALUE_CHARS:
            raise self._bad(f"a row has more than {_MAX_VALUE_CHARS:,} characters")
        parts, num_chars = [self._text[self._place :]], 0
        for line in self._lines:
            parts.append(line)
            num_chars += len(line)
            if num_chars >= max(held, _READ_CHARS):
                break
        self._text, self._place = "".join(parts), 0
        return num_chars > 0

    def _bad(self, problem: str) -> UserError:
        return bad(f"not JSON ({problem})", self._path, line=self._line)


def csv_texts(path: Path, text_field: str, kind: str) -> Iterator[str]:
    """One column of a table with a header; a .csv may have its columns apart by commas, semicolons, tabs or bars."""
    csv.field_size_limit(_MAX_VALUE_CHARS)
    with open_text(path, whole_lines=True, newline="") as lines:
        names, delimiter, held = _header(lines, text_field, path, kind)
        reader = csv.reader(chain(held, lines), delimiter=delimiter, strict=True)
        _first_row(reader)
        column = _column(text_field, names, path)
        while (row := _next_row(reader, path)) is not None:
            if row and len(row) != len(names):
                raise _uneven(row, names, path, reader.line_num)
            if row:
                yield row[column]


def csv_rows(path: Path, kind: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with a header, each with the line on which it ends; its columns are apart by the delimiter
    that stands most often in the header."""
    csv.field_size_limit(2**31 - 1)
    with open_text(path, whole_lines=True, newline="") as lines:
        number, header = next(((i, line) for i, line in enumerate(lines) if line.strip()), (0, ""))
        reader = csv.reader(chain([header], lines), delimiter=max(_DELIMITERS[kind], key=header.count), strict=True)
        names = [name.strip() for name in _next_row(reader, path) or []]
        for name in filter(None, names):
            _column(name, names, path)
        while (row := _next_row(reader, path)) is not None:
            if row and len(row) != len(names):
                raise _uneven(row, names, path, number + reader.line_num)
            if row:
                yield number + reader.line_num, dict(zip(names, row, strict=True))


def _uneven(row: list[str], names: list[str], path: Path, line: int) -> UserError:
    columns = f"{len(names)} column{'s' * (len(names) != 1)}"
    what = f"a row has {len(row)} field{'s' * (len(row) != 1)}, and the first line names {columns}"
    return bad(what, path, line=line)


def _header(lines: Iterator[str], text_field: str, path: Path, kind: str) -> tuple[list[str], str, list[str]]:
    """The names of the columns, the delimiter that makes the field one of them, and the lines read to find it."""
    held: list[str] = []
    tried: list[tuple[list[str], int]] = []
    problem = csv.Error()
    for delimiter in _DELIMITERS[kind]:
        reader = csv.reader(chain(list(held), _noted(lines, held)), delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in _first_row(reader)]
        except csv.Error as error:  # quotation marks that are none with this delimiter
            problem = error if not str(problem) else problem
            continue
        if text_field in names:
            return names, delimiter, held
        tried.append((names, reader.line_num))
    if not tried:
        raise _no_table(problem, path, len(held))
    names, line = max(tried, key=lambda found: len(found[0]))
    raise _no_field(text_field, f"{path}, line {line}", "columns named in the first line", names)


def _first_row(reader: Any) -> list[str]:
    """The first line that is not blank; [] where there is none."""
    return next(filter(None, reader), [])


def _noted(lines: Iterator[str], held: list[str]) -> Iterator[str]:
    for line in lines:
        held.append(line)
        yield line


def _column(text_field: str, names: list[str], path: Path) -> int:
    if (count := names.count(text_field)) > 1:
        raise bad(f"{count} columns are called {text_field!r}", path, line=1, remedy="give each column its own name")
    return names.index(text_field)


def _next_row(reader: Any, path: Path) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise _no_table(error, path, reader.line_num) from None


def _no_table(error: csv.Error, path: Path, line: int) -> UserError:
    remedy = "a field that begins with a quotation mark ends with one, and inside it they are doubled"
    return bad(f"not {path.suffix} ({error})", path, line=line, remedy=remedy)


def parquet_texts(path: Path, text_field: str) -> Iterator[str]:
    """One column of a parquet file; rows without a value are left out."""
    for number, row in parquet_rows(path, text_field):
        if row[text_field] is not None:
            yield _text_of(row, text_field, path, number)


def parquet_rows(path: Path, column: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a parquet file with their numbers, of one column or of all."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            "reading .parquet needs the package pyarrow",
            where=str(path),
            remedy="pip install pyarrow",
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column is not None and column not in names:
                raise _no_field(column, str(path), "columns here", names)
            if column is not None:
                _column(column, names, path)
            batches = file.iter_batches(batch_size=1024, columns=None if column is None else [column])
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise bad(f"not a readable parquet file ({str(error).splitlines()[0]})", path) from None


def _text_of(row: Any, text_field: str, path: Path, line: int) -> str:
    """The text of a row: its field, or the row itself where it is a text and no object."""
    if not isinstance(row, dict):
        if isinstance(row, str) and text_field == TEXT_FIELD:
            return _encodable(row, path, line)
        kind = "a text" if isinstance(row, str) else "a list" if isinstance(row, list) else "a value"
        is_array = isinstance(row, list) and ".json" not in map(str.lower, path.suffixes)
        remedy = "of one array let the name end in .json" if is_array else f"write {{{json.dumps(text_field)}: ...}}"
        what = f"a row is {kind} and no object, so it has no field {text_field!r}"
        raise bad(what, path, line=line, remedy=remedy)
    text = row.get(text_field)
    if text is None and text_field in row:
        return ""  # null: a row without a text, left out like an empty one
    if not isinstance(text, str):
        inner = [name for name, value in row.items() if isinstance(value, list) and value and value != [None]]
        is_whole = ".json" in map(str.lower, path.suffixes)  # one object may be all of such a file, and no row
        if is_whole and inner and not any(isinstance(value, str) for value in row.values()):
            raise bad(
                f"no text in the field {text_field!r}: one object, whose rows may be the list in {inner[0]!r}",
                path,
                line=line,
                remedy="save that list as a file of its own",
            )
        names = [name for name, value in row.items() if isinstance(value, str)]
        raise _no_field(text_field, f"{path}, line {line}", "fields that hold text here", names)
    return _encodable(text, path, line)


def _encodable(text: str, path: Path, line: int) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise bad("the text has half of a surrogate pair (an escape \\ud800 to \\udfff)", path, line=line) from None
    return text


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - MOST_NAMED:,} more"] if len(names) > MOST_NAMED else []
    return ", ".join([*(name[:40] for name in names[:MOST_NAMED]), *more])


def _no_field(text_field: str, where: str, kind: str, names: list[str]) -> UserError:
    return UserError(
        f"no text in the field {text_field!r}",
        where=where,
        remedy=f"choose one with --text_field; {kind}: {_listed(names) or 'none'}",
        exit_code=ExitCode.BAD_DATA,
    )
