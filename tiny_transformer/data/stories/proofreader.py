"""Reads what a model wrote as the grammar would have told it, and notes each word that should have been another.

`Parser` reads a text that is a story; one wrong name, and it is none. Here a sentence is read from where the last one
ended, and a word that repeats something (a name, a pronoun, a thing, a sum, a place in a list) may be any word of its
kind: whether it is the right one is noted. A sentence that does not go on from the last one is read as if the story
had been told up to there in some other way, from every place where a sentence can begin. One that cannot be read there
either is none of the language.

Of several readings the one with the fewest wrong words counts; so a story of the grammar is read as the grammar told
it, without one.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from itertools import count, pairwise
from typing import Any, NamedTuple

from .sampler import available, every_node
from .template import FORGOTTEN, Alternatives, Draw, Entry, Literal, Node, Reference, Sum

CHECKS = {
    "hero": "the hero's name, each time it is told again",
    "others": "the names of friends and elders, told again",
    "pronouns": "she, he, her, his, him",
    "things": "what was told before: what was lost is what is found",
    "sums": "the results of sums",
    "lists": "things told once more, in their order",
}
_END_OF_SENTENCE = re.compile(r'(?<!\bMr)(?<!\bMrs)[.!?]"?(?=\s)')
_MOST_WRONG = 4  # words in one sentence; with more it is another sentence
_MOST_READINGS = 16  # of a text so far; more are forgotten, those with most wrong words first

Place = tuple[tuple[Node, ...], int, Any]  # sequence of nodes, the next of them, the place after the sequence
Slots = dict[str, Entry]


class Check(NamedTuple):
    """A word that repeats something: text[start:end], which of `CHECKS` it is, and whether it is the right one."""

    start: int
    end: int
    kind: str
    is_right: bool


class Sentence(NamedTuple):
    """text[start:end]: whether the language has it, and whether it goes on from the sentence before."""

    start: int
    end: int
    is_told: bool
    goes_on: bool


class Proof(NamedTuple):
    """How a text reads.

    Attributes:
        sentences: all of it; a part of one at the end counts as one that the language does not have.
        checks: the words in them that repeat something.
        has_ending: it ends as a story does that goes on like its last sentences: an ending that follows.
    """

    sentences: tuple[Sentence, ...]
    checks: tuple[Check, ...]
    has_ending: bool


class _Reading(NamedTuple):
    """One way to read a text up to `at`: where in the grammar that is, what is remembered, what was noted."""

    wrong: int
    at: int
    place: Place
    slots: Slots
    checks: Any  # a linked list: (those before, Check)
    chose_ending: bool


class Proofreader:
    """Reads texts under one tree."""

    def __init__(self, tree: tuple[Node, ...]) -> None:
        self._tree = tree
        self._domains = _domains(tree)
        self._rests_of: dict[Any, list[str]] = {}
        self._by_letter: dict[str, list[Place]] = {}
        letters: dict[Any, set[str]] = {}
        for place in self._beginnings(tree, None):
            first = place[0][place[1]]
            key = first if isinstance(first, Literal | Reference) else id(first)
            if key not in letters:
                letters[key] = {text[0] for text, *_ in self._written(first, {})}
            for letter in letters[key]:
                self._by_letter.setdefault(letter, []).append(place)

    def read(self, text: str) -> Proof:
        """How a text reads."""
        readings = [_Reading(0, 0, (self._tree, 0, None), {}, None, False)]
        sentences: list[Sentence] = []
        borders = [0, *(match.end() for match in _END_OF_SENTENCE.finditer(text)), len(text.rstrip())]
        for border, end in pairwise(borders):
            start = end - len(text[border:end].lstrip())
            if start == end:
                continue
            found = self._sentence(text, [r._replace(at=border) for r in readings], end)
            goes_on = bool(found)
            if not found:
                best = readings[0]._replace(chose_ending=False)
                found = self._sentence(text, self._anew(best, text, start), end)
            is_whole = end < borders[-1] or _END_OF_SENTENCE.search(text[start:end] + " ") is not None
            sentences.append(Sentence(start, end, bool(found) and is_whole, goes_on))
            readings = found or [r._replace(chose_ending=False) for r in readings]
        ended = [r for r in readings if r.chose_ending and _is_over(r.place)] if sentences else []
        best = (ended or readings)[0]
        return Proof(tuple(sentences), _collect(best.checks), bool(ended) and sentences[-1].is_told)

    def _anew(self, reading: _Reading, text: str, start: int) -> Iterator[_Reading]:
        """Readings that begin at `start`, at every place of the grammar where a sentence can begin."""
        for place in self._by_letter.get(text[start], ()):
            yield reading._replace(at=start, place=place)

    def _sentence(self, text: str, readings: Iterable[_Reading], end: int) -> list[_Reading]:
        """All readings that come to `end`, the fewest wrong words first."""
        order = count()
        waiting = [(r.wrong, -r.at, next(order), r) for r in readings]
        heapq.heapify(waiting)
        found: list[_Reading] = []
        most = waiting[0][0] + _MOST_WRONG if waiting else 0
        while waiting and len(found) < _MOST_READINGS:
            *_, reading = heapq.heappop(waiting)
            if reading.at == end:
                found.append(reading)
                continue
            for following in self._steps(reading, text, end):
                if following.wrong <= most:
                    heapq.heappush(waiting, (following.wrong, -following.at, next(order), following))
        return found

    def _steps(self, reading: _Reading, text: str, end: int) -> Iterator[_Reading]:
        """The readings that are one node further, or at the end of the sentence within a node."""
        sequence, place, after = reading.place
        while place == len(sequence) and after is not None:
            sequence, place, after = after
        if place == len(sequence):
            return
        node, follow = sequence[place], (sequence, place + 1, after)
        if isinstance(node, Alternatives):
            ending = reading.chose_ending or node.tag == "ending"
            for option in node.options:
                yield reading._replace(place=(option, 0, follow), chose_ending=ending)
            return
        at = reading.at
        for written, entry, kind, is_right in self._written(node, reading.slots, text[at]):
            stop = at + len(written)
            if stop <= end and text.startswith(written, at):
                rest = follow
            elif stop > end and written.startswith(text[at:end]) and written[end - at].isspace():
                stop, rest = end, ((Literal(written[end - at :]),), 0, follow)
            else:
                continue
            slots = reading.slots if entry is None else {**reading.slots, getattr(node, "slot", ""): entry}
            checks = reading.checks if kind is None else (reading.checks, Check(at, stop, kind, is_right))
            yield _Reading(reading.wrong + (not is_right), stop, rest, slots, checks, reading.chose_ending)

    def _written(
        self, node: Node, slots: Slots, letter: str | None = None
    ) -> Iterator[tuple[str, Entry | None, str | None, bool]]:
        """What can stand at a node: the text, what is to be remembered, what is checked, whether it is right. With a
        letter only what begins with it, which of a long list of words is little."""
        if isinstance(node, Literal):
            yield node.text, None, None, True
        elif isinstance(node, Reference):
            yield from self._repeated(node, slots, letter)
        elif isinstance(node, Sum):
            known = node.left in slots and node.right in slots
            value = slots[node.left].value + node.sign * slots[node.right].value if known else None
            meant = next((entry for entry in node.numbers if entry.value == value), None)
            for entry in node.numbers:  # what is remembered is what it should have been
                is_right = meant is None or entry is meant
                yield entry.forms[node.form], meant or entry, "sums" if meant else None, is_right
        elif isinstance(node, Draw):
            entries = self._domains.draws(node, letter)
            if not entries:
                return
            needed = (*((node.owner,) if node.owner else ()), *node.without)
            known = bool(needed) and all(slot in slots for slot in needed)
            allowed = set(map(id, available(node, slots.__getitem__))) if known else set()
            for entry in entries:
                bound = None if node.slot == FORGOTTEN else entry
                yield entry.forms[node.form], bound, "things" if known else None, not known or id(entry) in allowed

    def _repeated(
        self, node: Reference, slots: Slots, letter: str | None
    ) -> Iterator[tuple[str, Entry | None, str | None, bool]]:
        meant = slots.get(node.slot)
        kind = self._domains.kind(node)
        if meant is not None and node.form in meant.forms:
            yield meant.forms[node.form], None, kind, True
            for form in self._domains.forms(node, letter):
                if form != meant.forms[node.form]:
                    yield form, None, kind, False
            return
        for form, entries in self._domains.forms(node, letter).items():  # told for the first time in this text
            yield form, entries[0] if len(entries) == 1 else None, None, True

    def _beginnings(self, sequence: tuple[Node, ...], after: Any) -> Iterator[Place]:
        """Every place of the grammar where a sentence can begin: after the blank behind the end of one."""
        for i, node in enumerate(sequence):
            follow: Place = (sequence, i + 1, after)
            if isinstance(node, Alternatives):
                for option in node.options:
                    yield from self._beginnings(option, follow)
                continue
            for rest in self._rests(node):
                if rest:
                    yield (Literal(rest),), 0, follow
                else:
                    yield from _first_nodes(follow)
        if after is None:
            yield self._tree, 0, None

    def _rests(self, node: Node) -> list[str]:
        """What a node can write after the end of a sentence within it."""
        if isinstance(node, Literal):
            return [node.text[start:] for start in _starts(node.text)]
        key = (node.slot, node.form) if isinstance(node, Reference) else id(node)
        if key not in self._rests_of:
            texts = {text for text, *_ in self._written(node, {})}
            self._rests_of[key] = [text[start:] for text in sorted(texts) for start in _starts(text)]
        return self._rests_of[key]


class _Domains:
    """What each slot of a tree can hold, and how it is written; a person's can hold any person."""

    def __init__(
        self, drawn: dict[int, tuple[Entry, ...]], slots: dict[str, dict[int, Entry]], people: set[str]
    ) -> None:
        self.drawn, self._slots, self._people = drawn, slots, people
        self._forms: dict[tuple[str, str, str | None], dict[str, list[Entry]]] = {}
        self._draws: dict[tuple[int, str | None], list[Entry]] = {}

    def kind(self, node: Reference) -> str:
        """Which of `CHECKS` a reference is."""
        if node.tag in ("pronoun", "arithmetic", "ordering"):
            return {"pronoun": "pronouns", "arithmetic": "sums", "ordering": "lists"}[node.tag]
        if node.slot not in self._people:
            return "things"
        return "hero" if node.slot == "hero" else "others"

    def forms(self, node: Reference, letter: str | None) -> dict[str, list[Entry]]:
        """The texts that can stand there, with the entries that are written so; those with this letter, if given."""
        key = node.slot, node.form, letter
        if key not in self._forms:
            found = self._forms[key] = {}
            for entry in self._slots[node.slot].values():
                if node.form in entry.forms and _begins(entry.forms[node.form], letter):
                    found.setdefault(entry.forms[node.form], []).append(entry)
        return self._forms[key]

    def draws(self, node: Draw, letter: str | None) -> list[Entry]:
        """What can be drawn there; what begins with this letter, if one is given."""
        key = id(node), letter
        if key not in self._draws:
            self._draws[key] = [e for e in self.drawn[id(node)] if _begins(e.forms[node.form], letter)]
        return self._draws[key]


def _begins(text: str, letter: str | None) -> bool:
    return letter is None or text[:1] in ("", letter)


def _domains(tree: tuple[Node, ...]) -> _Domains:
    drawn: dict[int, tuple[Entry, ...]] = {}
    slots: dict[str, dict[int, Entry]] = {}
    people: set[str] = set()
    for node in every_node(tree):
        if isinstance(node, Draw):
            entries = node.entries
            if node.owner:
                owners = slots[node.owner].values()
                entries = tuple({id(e): e for owner in owners for e in owner.lists.get(node.source, ())}.values())
            drawn[id(node)] = entries
            slots.setdefault(node.slot, {}).update({id(entry): entry for entry in entries})
            if node.tag == "name" or node.source == "names":
                people.add(node.slot)
        elif isinstance(node, Sum):
            slots.setdefault(node.slot, {}).update({id(entry): entry for entry in node.numbers})
    everybody = {key: entry for slot in people for key, entry in slots[slot].items()}
    slots.update(dict.fromkeys(people, everybody))
    return _Domains(drawn, slots, people)


def _starts(text: str) -> list[int]:
    """Where sentences can begin within a node's text, if one can end before it."""
    inside = [match.end() + 1 for match in _END_OF_SENTENCE.finditer(text)]
    return [1, *inside] if text[:1].isspace() else inside


def _first_nodes(place: Place) -> Iterator[Place]:
    """The place itself, or where alternatives stand there, the first of each that writes something."""
    sequence, at, after = place
    while at == len(sequence) and after is not None:
        sequence, at, after = after
    if at == len(sequence):
        return
    node = sequence[at]
    if isinstance(node, Alternatives):
        for option in node.options:
            yield from _first_nodes((option, 0, (sequence, at + 1, after)))
    else:
        yield sequence, at, after


def _is_over(place: Place) -> bool:
    sequence, at, after = place
    while at == len(sequence) and after is not None:
        sequence, at, after = after
    return at == len(sequence)


def _collect(checks: Any) -> tuple[Check, ...]:
    found = []
    while checks is not None:
        checks, check = checks
        found.append(check)
    return tuple(reversed(found))
