"""Reads stories: finds every derivation of a text, and with it the text's exact log-probability.

A configuration is a place in the text and what of the grammar is still to come; a choice splits it. The options of
every choice begin differently (`analysis.ambiguities` proves it), so all but one of the parts die within a few
characters, and reading takes time in proportion to the text. Nothing is assumed, though: should a text have several
derivations, all are found and their probabilities are summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .sampler import available
from .template import UNITS, Alternatives, Draw, Entry, Literal, Node, Reference, Sum, shares

SKILLS = {
    "opening": "how the story begins",
    "plot": "which kind of story it is",
    "ending": "how it ends",
    "wording": "one of several ways to say it, or of several turns",
    "name": "a new name",
    "thing": "a new thing, place, feeling or trait",
    "number": "a new number",
    "phrase": "fixed text that follows from what stands before it",
    "copy": "a word told in the last 200 characters, or one that goes with it",
    "recall": "the same from further back",
    "pronoun": "she, he, her, his, him",
    "arithmetic": "the result of a sum",
    "ordering": "things told once more, in their order",
}
_FAR = 200  # characters


class Choice(NamedTuple):
    """A piece of a story: text[start:end], the skill it takes to tell it, and the -log p (nats) of what was chosen.

    The pieces of a story cover it without gaps. From `phrase` on in `SKILLS`, nothing is chosen and the cost is 0. An
    empty piece (start == end) is a choice that shows in the next piece.
    """

    start: int
    end: int
    tag: str
    cost: float


Written = tuple[str, float, "Entry | None"]  # text, -log p, entry to remember


class Derivation(NamedTuple):
    """One way the grammar makes a text."""

    log_probability: float
    choices: tuple[Choice, ...]


class Parser:
    """Finds the derivations of texts under one tree."""

    def __init__(self, tree: tuple[Node, ...]) -> None:
        self._tree = tree
        self._logs = [0.0] + [math.log(count / UNITS) for count in range(1, UNITS + 1)]
        self._by_letter: dict[int, dict[str, list[Written]]] = {}

    def derivations(self, text: str) -> list[Derivation]:
        """All derivations of `text`: none if it is no story, one if it is."""
        return [Derivation(total, _collect(trail)) for total, trail in self._search(text, None)]

    def reach(self, text: str) -> int:
        """The length of the longest beginning of `text` that begins some story: where a text stops being one."""
        places = [0]
        for _ in self._search(text, places):
            pass
        return max(places)

    def _search(self, text: str, places: list[int] | None) -> Iterator[tuple[float, Any]]:
        """Yields (log-probability, trail) of each derivation; notes in `places` how far every attempt came.

        Continuations (sequence, next node, continuation after it) and trails (before, piece) are linked lists, so that
        configurations share what they have in common.
        """
        waiting: list[tuple] = [(0, (self._tree, 0, None), {}, None, 0.0)]
        while waiting:
            at, (sequence, place, after), slots, trail, total = waiting.pop()
            while place == len(sequence) and after is not None:
                sequence, place, after = after
            if place == len(sequence):
                if places is not None:
                    places.append(at)
                if at == len(text):
                    yield total, trail
                continue
            node = sequence[place]
            follow = (sequence, place + 1, after)
            if isinstance(node, Alternatives):
                for option, count in zip(node.options, node.counts, strict=True):
                    if places is None and option and _misses(option[0], text, at):
                        continue
                    log_p = self._logs[count]
                    waiting.append(
                        (at, (option, 0, follow), slots, (trail, (at, at, node.tag, -log_p, "")), total + log_p)
                    )
                continue
            for written, cost, entry in self._written(node, slots, text[at : at + 1] if places is None else None):
                if text.startswith(written, at):
                    end = at + len(written)
                    bound = slots if entry is None else {**slots, node.slot: entry}
                    waiting.append((end, follow, bound, _extend(trail, at, end, node, cost), total - cost))
                elif places is not None:
                    places.append(at + _common(text, at, written))

    def _written(self, node: Any, slots: dict[str, Entry], letter: str | None) -> list[Written]:
        """What a node can write here; for most draws only what begins with `letter`, if that is given."""
        if isinstance(node, Literal):
            return [(node.text, 0.0, None)]
        if isinstance(node, Reference):
            return [(slots[node.slot].forms[node.form], 0.0, None)]
        if isinstance(node, Sum):
            value = slots[node.left].value + node.sign * slots[node.right].value
            entry = next(entry for entry in node.numbers if entry.value == value)
            return [(entry.forms[node.form], 0.0, entry)]
        if letter is None or node.owner or node.without:
            return self._drawn(node, available(node, slots.__getitem__))
        if id(node) not in self._by_letter:
            index = self._by_letter[id(node)] = {}
            for item in self._drawn(node, node.entries):
                index.setdefault(item[0][0], []).append(item)
        return self._by_letter[id(node)].get(letter, [])

    def _drawn(self, node: Draw, entries: tuple[Entry, ...]) -> list[Written]:
        counts = shares((1,) * len(entries))
        return [
            (entry.forms[node.form], -self._logs[count], entry) for entry, count in zip(entries, counts, strict=True)
        ]


def _misses(node: Node, text: str, at: int) -> bool:
    return isinstance(node, Literal) and not text.startswith(node.text, at)


def _extend(trail: Any, start: int, end: int, node: Any, cost: float) -> Any:
    """The trail with one more piece; fixed text right after an empty piece shows that piece's choice."""
    if isinstance(node, Literal):
        if trail is not None and trail[1][0] == trail[1][1] == start:
            return trail[0], (start, end, *trail[1][2:])
        return trail, (start, end, "phrase", 0.0, "")
    return trail, (start, end, node.tag, cost, node.slot)


def _collect(trail: Any) -> tuple[Choice, ...]:
    pieces = []
    while trail is not None:
        trail, piece = trail
        pieces.append(piece)
    told: dict[str, int] = {}  # where each slot was written last
    choices = []
    for start, end, tag, cost, slot in reversed(pieces):
        far = tag == "copy" and start - told[slot] > _FAR
        choices.append(Choice(start, end, "recall" if far else tag, cost))
        told[slot] = end
    return tuple(choices)


def _common(text: str, at: int, written: str) -> int:
    """How many characters of `written` stand at `at`."""
    length = 0
    while length < len(written) and text[at + length : at + length + 1] == written[length]:
        length += 1
    return length
