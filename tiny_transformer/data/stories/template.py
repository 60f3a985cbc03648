"""The language the story plots are written in, and the tree a plot is read into.

A plot is ordinary text with four kinds of marks:

    [a|b|c]          one of the alternatives; `[3*a|b]` gives weights, `[#ending a|b]` the skill (else `wording`)
    {hero=girls}     draws an entry of a word list, writes it and remembers it
    {hat=clothes.a}  writes its form `a`; `{cup=things-hat}` never draws the same entry as `hat`;
                     `{spot=place/spots}` draws from a list that belongs to the entry remembered as `place`
    {all=many+more}  counts; so does `-`
    {hero.he}        writes a form of an entry remembered before; `{hat@ordering}` names the skill
    <rule>           another rule's text; `<thanks who=friend>` renames a slot inside it

A blank line starts a paragraph. A line break next to `[`, `|` or `]` is only layout; any other is a space. Every slot
is bound at most once in a story, so a story can be written first and its slots filled in afterwards; the slot `_` is
forgotten at once and can be used again. Two options of a choice must not be able to begin the same story, and the
sooner they differ, the more exactly the choice's place in the text is told.

Every probability is a whole number of 256ths: one random byte decides one choice, by a table of 256 places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

UNITS = 256  # one byte decides a choice
FORGOTTEN = "_"  # a slot that is written once and never again
_MARKS = re.compile(r"(\[(?:#\w+ )?(?:\d+\*)?|\|(?:\d+\*)?|\]|\{[^{}]*\}|<[^<>]*>)")
_BAR = re.compile(r"(?:\[(?:#(\w+) )?|\|)(?:(\d+)\*)?")
_DRAW = re.compile(r"(\w+)=(?:(\w+)/)?(\w+)(?:\.(\w+))?((?:-\w+)*)")
_SUM = re.compile(r"(\w+)=(\w+)([+-])(\w+)")
_REFERENCE = re.compile(r"(\w+)(?:\.(\w+))?(?:@(\w+))?")
_TAGS = dict.fromkeys(("names", "friend_names", "elders"), "name") | dict.fromkeys(
    ("few_numbers", "more_numbers", "two_or_three"), "number"
)
_PRONOUNS = frozenset({"he", "He", "him", "his", "His", "himself"})


class Entry:
    """One entry of a word list: its written forms, the lists that belong to it, and its value when it is a number."""

    __slots__ = ("forms", "lists", "value")

    def __init__(
        self, forms: Mapping[str, str], lists: Mapping[str, Sequence[Entry]] | None = None, value: int = 0
    ) -> None:
        self.forms = dict(forms)
        self.lists = {name: tuple(entries) for name, entries in (lists or {}).items()}
        self.value = value

    def __repr__(self) -> str:
        return f"Entry({self.forms!r}, {self.lists!r}, {self.value})"


class Literal(NamedTuple):
    """Fixed text."""

    text: str


class Reference(NamedTuple):
    """A form of an entry drawn before: nothing is chosen here."""

    slot: str
    form: str
    tag: str


class Alternatives(NamedTuple):
    """One of several continuations, option i with probability counts[i] / 256."""

    tag: str
    options: tuple[tuple[Node, ...], ...]
    counts: tuple[int, ...]


class Draw(NamedTuple):
    """One of `entries`, or of the list `source` of the entry in slot `owner`; never one in the slots `without`."""

    slot: str
    owner: str
    source: str
    entries: tuple[Entry, ...]
    without: tuple[str, ...]
    form: str
    tag: str
    size: int  # how many entries are left to choose from, the same whatever came before


class Sum(NamedTuple):
    """The number left + sign * right, written as a word: nothing is chosen here."""

    slot: str
    left: str
    sign: int
    right: str
    numbers: tuple[Entry, ...]
    form: str
    tag: str


Node = Literal | Reference | Alternatives | Draw | Sum


@cache
def shares(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Splits 256 units in proportion to `weights` by largest remainders, at least one unit each."""
    exact = [weight * UNITS / sum(weights) for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    while (missing := UNITS - sum(counts)) != 0:
        gaps = [share - count for share, count in zip(exact, counts, strict=True)]
        chosen = gaps.index(max(gaps)) if missing > 0 else counts.index(max(counts))
        counts[chosen] += 1 if missing > 0 else -1
    return tuple(counts)


class _Scope:
    """What is known about the slots at one place of the text: possible entries, and which slots can never be equal."""

    def __init__(self) -> None:
        self.domains: dict[str, tuple[Entry, ...]] = {}
        self.sources: dict[str, tuple[str, ...]] = {}
        self.apart: set[frozenset[str]] = set()
        self.ever: set[str] = set()  # bound on some path; binding again would change what was written before

    def copy(self) -> _Scope:
        other = _Scope()
        other.domains, other.sources = dict(self.domains), dict(self.sources)
        other.apart, other.ever = set(self.apart), set(self.ever)
        return other

    def merge(self, branches: list[_Scope]) -> None:
        self.ever = set().union(*(branch.ever for branch in branches))
        self.apart = set.intersection(*(branch.apart for branch in branches))
        for slot in set.intersection(*(set(branch.domains) for branch in branches)):
            entries = {id(entry): entry for branch in branches for entry in branch.domains[slot]}
            self.domains[slot] = tuple(entries.values())
            self.sources[slot] = tuple(dict.fromkeys(s for branch in branches for s in branch.sources[slot]))

    def bind(self, slot: str, entries: tuple[Entry, ...], sources: tuple[str, ...], where: str) -> None:
        if slot == FORGOTTEN:
            return
        if slot in self.ever:
            raise ValueError(f"{where}: slot {slot!r} is bound twice; give the second one another name")
        self.ever.add(slot)
        self.domains[slot], self.sources[slot] = entries, sources


class Reader:
    """Reads rules into a tree; raises ValueError naming the rule and the mark for any mistake in a plot."""

    def __init__(self, rules: Mapping[str, str], lists: Mapping[str, Sequence[Entry]]) -> None:
        self.rules = rules
        self.lists = {name: tuple(entries) for name, entries in lists.items()}
        self._tokens: dict[str, list[str]] = {}

    def read(self, start: str) -> tuple[Node, ...]:
        """The tree of the rule `start`, with all rules it names put in place."""
        return self._rule(start, {}, _Scope(), ())

    def _rule(self, name: str, renames: dict[str, str], scope: _Scope, above: tuple[str, ...]) -> tuple[Node, ...]:
        if name not in self.rules:
            raise ValueError(f"rule {above[-1] if above else name!r}: there is no rule <{name}>")
        if name in above:
            raise ValueError(f"rule {name!r} contains itself: {' > '.join(above)}")
        if name not in self._tokens:
            self._tokens[name] = [token for token in _MARKS.split(_layout(self.rules[name])) if token]
        tokens = self._tokens[name]
        nodes, end = self._sequence(tokens, 0, renames, scope, (*above, name))
        if end != len(tokens):
            raise ValueError(f"rule {name!r}: {tokens[end]!r} without a [ before it")
        return nodes

    def _sequence(
        self, tokens: list[str], at: int, renames: dict[str, str], scope: _Scope, above: tuple[str, ...]
    ) -> tuple[tuple[Node, ...], int]:
        nodes: list[Node] = []
        while at < len(tokens) and tokens[at][0] not in "|]":
            token = tokens[at]
            if token.startswith("["):
                node, at = self._alternatives(tokens, at, renames, scope, above)
                nodes.append(node)
                continue
            if token.startswith("{"):
                nodes.append(self._slot(token[1:-1], renames, scope, f"rule {above[-1]!r}, {token}"))
            elif token.startswith("<"):
                name, *pairs = token[1:-1].split()
                inner = dict(pair.split("=") for pair in pairs)
                inner = {key: renames.get(value, value) for key, value in inner.items()}
                nodes.extend(self._rule(name, {**renames, **inner}, scope, above))
            elif "%" in token:
                raise ValueError(f"rule {above[-1]!r}: '%' cannot be written in a story: {token!r}")
            else:
                nodes.append(Literal(token))
            at += 1
        return tuple(nodes), at

    def _alternatives(
        self, tokens: list[str], at: int, renames: dict[str, str], scope: _Scope, above: tuple[str, ...]
    ) -> tuple[Alternatives, int]:
        tag = "wording"
        options, weights, branches = [], [], []
        while tokens[at] != "]":
            bar = _BAR.fullmatch(tokens[at])
            assert bar is not None
            tag = bar[1] or tag
            weights.append(int(bar[2] or 1))
            branch = scope.copy()
            nodes, at = self._sequence(tokens, at + 1, renames, branch, above)
            if at == len(tokens):
                raise ValueError(f"rule {above[-1]!r}: a [ is never closed")
            options.append(nodes)
            branches.append(branch)
        at += 1
        scope.merge(branches)
        return Alternatives(tag, tuple(options), shares(tuple(weights))), at

    def _slot(self, mark: str, renames: dict[str, str], scope: _Scope, where: str) -> Node:
        if match := _SUM.fullmatch(mark):
            slot, left, sign, right = match.groups()
            if left not in self.lists:
                return self._sum(
                    renames.get(slot, slot), renames.get(left, left), sign, renames.get(right, right), scope
                )
        if match := _DRAW.fullmatch(mark):
            slot, owner, source, form, without = match.groups()
            names = tuple(renames.get(name, name) for name in without.split("-")[1:])
            owner = renames.get(owner, owner) if owner else ""
            return self._draw(renames.get(slot, slot), owner, source, names, form or "", scope, where)
        match = _REFERENCE.fullmatch(mark)
        if not match:
            raise ValueError(f"{where}: not a mark of the template language")
        slot, form, tag = renames.get(match[1], match[1]), match[2] or "", match[3]
        if slot not in scope.domains:
            raise ValueError(f"{where}: slot {slot!r} is not bound on every path to here")
        _check_form(scope.domains[slot], form, where)
        return Reference(slot, form, tag or ("pronoun" if form in _PRONOUNS else "copy"))

    def _sum(self, slot: str, left: str, sign: str, right: str, scope: _Scope) -> Sum:
        where = f"{slot} = {left} {sign} {right}"
        if left not in scope.domains or right not in scope.domains:
            raise ValueError(f"{where}: both numbers must be bound before")
        numbers = self.lists["numbers"]
        factor = 1 if sign == "+" else -1
        values = {a.value + factor * b.value for a in scope.domains[left] for b in scope.domains[right]}
        entries = tuple(entry for entry in numbers if entry.value in values)
        if len(entries) != len(values):
            raise ValueError(f"{where}: some results have no word in the list 'numbers': {sorted(values)}")
        scope.bind(slot, entries, ("numbers",), where)
        return Sum(slot, left, factor, right, numbers, "", "arithmetic")

    def _draw(
        self, slot: str, owner: str, source: str, without: tuple[str, ...], form: str, scope: _Scope, where: str
    ) -> Draw:
        if owner:
            if owner not in scope.domains:
                raise ValueError(f"{where}: slot {owner!r} is not bound on every path to here")
            owned = [entry.lists.get(source, ()) for entry in scope.domains[owner]]
            entries: tuple[Entry, ...] = tuple({id(e): e for entries in owned for e in entries}.values())
            sizes = {len(each) for each in owned}
            if len(sizes) != 1 or 0 in sizes:
                raise ValueError(f"{where}: the lists {source!r} must all have the same number of entries, not {sizes}")
            size = sizes.pop() - len(without)
            key = f"{owner}/{source}"
        else:
            if source not in self.lists:
                raise ValueError(f"{where}: there is no word list {source!r}")
            entries, key = self.lists[source], source
            size = len(entries) - len(without)
        if not 1 <= size <= UNITS:
            raise ValueError(f"{where}: {size} entries; one to {UNITS} can be chosen from")
        for i, other in enumerate(without):
            if scope.sources.get(other) != (key,):
                raise ValueError(f"{where}: {other!r} must have been drawn from the same list {key!r}")
            if any(frozenset((other, third)) not in scope.apart for third in without[:i]):
                raise ValueError(f"{where}: {without} must have been drawn without one another")
        _check_form(entries, form, where)
        scope.bind(slot, entries, (key,), where)
        scope.apart.update(frozenset((slot, other)) for other in without)
        return Draw(slot, owner, source, () if owner else entries, without, form, _TAGS.get(source, "thing"), size)


def _check_form(entries: tuple[Entry, ...], form: str, where: str) -> None:
    for entry in entries:
        if form not in entry.forms:
            raise ValueError(f"{where}: {entry.forms.get('', '?')!r} has no form {form!r}")
        if "%" in entry.forms[form]:
            raise ValueError(f"{where}: '%' cannot be written in a story: {entry.forms[form]!r}")


def _layout(text: str) -> str:
    """Turns a rule as it is laid out in the source into the text it stands for."""
    text = re.sub(r"(\[(?:#\w+)?)[ \t]*\n\s*", lambda m: m[1] + " " * ("#" in m[1]), text.strip())
    text = re.sub(r"\s*\n\s*\|[ \t]*|\|[ \t]*\n\s*", "|", text)
    text = re.sub(r"\s*\n\s*\]", "]", text)
    paragraphs = re.split(r"[ \t]*\n[ \t]*\n\s*", text)
    return "\n".join(re.sub(r"[ \t]*\n[ \t]*", " ", paragraph) for paragraph in paragraphs)
