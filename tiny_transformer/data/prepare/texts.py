"""How a running text becomes documents, and which parts of it are kept for validation.

A line that holds just `<|endoftext|>` ends a document. Where there is none, the text is one document; it is cut at
blank lines into pieces of about 16 KiB, so that memory stays flat. Of a single such text several pieces, spread evenly
over it, are for validation: 2 % of a large one, up to 10 % of a small one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tiny_transformer.data.prepare.unpack import bad, open_text

SEPARATOR = "<|endoftext|>"
PIECE_CHARS = 16 * 2**10
# How far into a file a separator is looked for, and how long a document between separators may grow before it is cut.
MAX_DOCUMENT_CHARS = 8 * 2**20

DEFAULT_VAL_FRACTION = 0.02
LEAST_SPLIT_BYTES = 2048  # a shorter text is one document
LEAST_VAL_BYTES = 2**16  # what validation gets of a text, as long as that is not more than a tenth of it
MOST_VAL_FRACTION = 0.1
LEAST_PIECE_BYTES, MOST_PIECE_BYTES = 256, 2**14


class Stretch(NamedTuple):
    """A document, and for which split it is; None leaves that to the hash of the document."""

    text: str
    is_validation: bool | None


class Pieces(NamedTuple):
    """Where validation pieces stand in a text: one in the middle of each `period`, in bytes."""

    size: float
    period: float

    @classmethod
    def of(cls, num_bytes: int, val_fraction: float | None) -> Pieces:
        """For a text of so many bytes (or more, from `MAX_DOCUMENT_CHARS` on)."""
        fraction = val_fraction or max(DEFAULT_VAL_FRACTION, min(MOST_VAL_FRACTION, LEAST_VAL_BYTES / num_bytes))
        wanted = fraction * num_bytes
        size = wanted / max(3, round(wanted / min(max(wanted / 8, LEAST_PIECE_BYTES), MOST_PIECE_BYTES)))
        return cls(size, size / fraction)

    def start(self, index: int) -> float:
        """Where a piece begins."""
        return (index + 0.5) * self.period - self.size / 2


def documents_of(lines: Iterator[str]) -> Iterator[str]:
    """The documents of a text, or its pieces when it has no separators."""
    ahead, separated, _ = _look_ahead(lines)
    yield from _cut(chain(ahead, lines), MAX_DOCUMENT_CHARS if separated else PIECE_CHARS)


def split_of(lines: Iterator[str], val_fraction: float | None, max_bytes: int | None) -> Iterator[Stretch]:
    """The documents of a text that is the whole source.

    Args:
        lines: of the text.
        val_fraction: share of it for validation, in bytes; by default from its size.
        max_bytes: how much of it will be read.
    """
    ahead, separated, num_bytes = _look_ahead(lines)
    num_bytes = min(num_bytes, max_bytes or num_bytes)
    lines = chain(ahead, lines)
    if separated or num_bytes < LEAST_SPLIT_BYTES:
        for text in _cut(lines, MAX_DOCUMENT_CHARS if separated else PIECE_CHARS):
            yield Stretch(text, None)
    else:
        yield from _alternate(lines, Pieces.of(num_bytes, val_fraction))


def plain_lines(path: Path) -> Iterator[str]:
    """The lines of a plain text, as they stand."""
    with open_text(path) as lines:
        yield from lines


def html_lines(path: Path) -> Iterator[str]:
    """The lines of a page's text, without its markup, scripts and styles."""
    parser = _Page()
    with open_text(path) as lines:
        for line in lines:
            parser.feed(line)
            yield from parser.finished_lines()
        if parser.rawdata.startswith("<!--"):  # what is left to be read
            raise bad("a comment is never closed, and hides what follows", path)
        parser.close()
    if parser.hidden:
        raise bad(f"a <{parser.hidden}> is never closed, and hides what follows", path)
    yield from parser.finished_lines(last=True)


class _Page(HTMLParser):
    """Collects the text between tags; tags that begin a block begin a line, and a paragraph leaves a blank one."""

    HIDDEN = ("script", "style", "template")
    PARAGRAPHS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "pre", "blockquote", "article", "title")
    LINES = ("div", "li", "tr", "dt", "dd", "section", "header", "footer", "hr", "body", "head", "option")

    def __init__(self) -> None:
        super().__init__()
        self._hidden: list[str] = []  # tags that are open and hide what is in them, the outermost first
        self._is_pre = False
        self._was_blank = True
        self._text = ""

    @property
    def hidden(self) -> str | None:
        """The tag that hides what comes next."""
        return self._hidden[0] if self._hidden else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.HIDDEN:
            self._hidden.append(tag)
        self._is_pre = self._is_pre or tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and tag == self._hidden[-1]:
            self._hidden.pop()
        self._is_pre = self._is_pre and tag != "pre"
        self._break(tag)
        if tag in ("td", "th"):
            self._text += " "

    def handle_data(self, data: str) -> None:
        if not self._hidden and not self._is_pre:
            data = re.sub(r"\s+", " ", data)
            self._text += data if self._text[-1:].strip() else data.lstrip(" ")
        elif not self._hidden:
            self._text += data

    def finished_lines(self, *, last: bool = False) -> Iterator[str]:
        """The lines that are whole; at most one blank line in a row."""
        *whole, self._text = (self._text + "\n" * last).split("\n")
        for line in whole:
            if line.strip() or not self._was_blank:
                yield line.rstrip() + "\n"
            self._was_blank = not line.strip()

    def _break(self, tag: str) -> None:
        if tag in self.PARAGRAPHS:
            self._text += "\n\n"
        elif tag == "br" or (tag in self.LINES and self._text[-1:].strip()):
            self._text += "\n"


def _look_ahead(lines: Iterator[str]) -> tuple[list[str], bool, int]:
    """The first lines, whether a separator divides the text, and how many bytes have been read: all of them, unless the
    text is longer than `MAX_DOCUMENT_CHARS`. A separator that ends the text divides nothing."""
    ahead: list[str] = []
    num_chars = num_bytes = 0
    for line in lines:
        if line.strip() == SEPARATOR:
            skipped = [line, *_to_the_next_text(lines)]
            if not skipped[-1].strip() or skipped[-1].strip() == SEPARATOR:
                return ahead, False, num_bytes  # nothing follows
            if any(held.strip() for held in ahead):
                return ahead + skipped, True, num_bytes
            line = skipped[-1]  # it stands before the text
        ahead.append(line)
        num_chars += len(line)
        num_bytes += len(line.encode())
        if num_chars > MAX_DOCUMENT_CHARS:
            break
    return ahead, False, num_bytes


def _to_the_next_text(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if line.strip() and line.strip() != SEPARATOR:
            return


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
            ends = _may_end(line, num_chars - max_chars, max_chars)
        if ends:
            yield "".join(held)
            held, num_chars = [], 0
    yield "".join(held)


def _may_end(line: str, excess: float, slack: float) -> bool:
    """Whether a piece may end behind this line, so much longer than it was to be: at a blank line at once, at any line
    after `slack`, and anywhere after three times that."""
    is_whole = line.endswith("\n")
    return excess > 0 and (not line.strip() or (is_whole and excess > slack) or excess > 3 * slack)


def _alternate(lines: Iterator[str], pieces: Pieces) -> Iterator[Stretch]:
    """The text in pieces for training and for validation."""
    held: list[str] = []
    num_bytes = place = num_validated = index = 0
    in_validation = False
    for part in _parts(lines, max(32, int(pieces.size / 8))):
        if part.strip() == SEPARATOR:
            yield Stretch("".join(held), in_validation)
            held, num_bytes = [], 0
            continue
        size = len(part.encode())
        held.append(part)
        num_bytes, place = num_bytes + size, place + size
        if in_validation:
            num_validated += size
            ends = _may_end(part, num_validated - (index + 1) * pieces.size, pieces.size / 8)
        else:
            turns = _may_end(part, place - pieces.start(index), pieces.size / 8)
            ends = turns or _may_end(part, num_bytes - PIECE_CHARS, PIECE_CHARS)
        if ends:
            yield Stretch("".join(held), in_validation)
            held, num_bytes = [], 0
            if in_validation:
                index, in_validation = index + 1, False
            else:
                in_validation = turns
    yield Stretch("".join(held), in_validation)


def _parts(lines: Iterator[str], max_chars: int) -> Iterator[str]:
    """Lines; those longer than `max_chars` in parts, each ending behind a blank where there is one."""
    for line in lines:
        start = 0
        while len(line) - start > max_chars:
            cut = line.rfind(" ", start, start + max_chars) + 1 or start + max_chars
            yield line[start:cut]
            start = cut
        yield line[start:]
