"""What can be proved about a grammar: its entropy, and that no two derivations write the same text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from .sampler import available
from .template import UNITS, Alternatives, Draw, Entry, Literal, Node, Reference, Sum, shares

Domains = dict[str, tuple[Entry, ...]]  # what each slot bound so far may hold
Apart = set[frozenset[str]]  # pairs of slots that never hold the same entry
_END = "\0"  # stands after every story, so that a story that ends and one that goes on differ


def entropy(tree: tuple[Node, ...]) -> float:
    """The expected -log p of a story in nats, exactly: each choice's entropy times the probability of reaching it.

    How many entries a draw chooses from never depends on what was chosen before (the reader checks this), so a choice's
    entropy depends only on its place in the tree.
    """
    total = 0.0
    for node in tree:
        if isinstance(node, Draw):
            total += _entropy_of(shares((1,) * node.size))
        elif isinstance(node, Alternatives):
            total += _entropy_of(node.counts)
            total += sum(count / UNITS * entropy(o) for o, count in zip(node.options, node.counts, strict=True))
    return total


def _entropy_of(counts: tuple[int, ...]) -> float:
    return -sum(count / UNITS * math.log(count / UNITS) for count in counts)


class _View(NamedTuple):
    """A set of texts: text already known, the continuation (a linked list), and the slots bound since the choice."""

    text: str
    follow: tuple
    slots: dict[str, Entry]


def ambiguities(tree: tuple[Node, ...]) -> list[str]:
    """Every pair of options of one choice that can be followed by the same text; an empty list proves there is none.

    Two options are told apart by walking all their continuations side by side until their characters differ. Slots
    bound before the choice have some entry, the same on both sides; all entries are tried, so the proof covers at least
    the stories that can happen.
    """
    found: list[str] = []
    _visit(tree, ((Literal(_END),), 0, None), {}, set(), found)
    return found


def _visit(
    sequence: tuple[Node, ...],
    after: tuple,
    domains: Domains,
    apart: Apart,
    found: list[str],
) -> None:
    """Compares the options of each choice of `sequence`, which `after` follows; leaves what it binds in `domains`."""
    for i, node in enumerate(sequence):
        rest = (sequence, i + 1, after)
        if isinstance(node, Alternatives):
            views = [_View("", (option, 0, rest), {}) for option in node.options]
            _compare(views, domains, apart, found, f"[{node.tag}]")
            branches = []
            for option in node.options:
                branches.append((dict(domains), set(apart)))
                _visit(option, rest, *branches[-1], found)
            for slot in set.intersection(*(set(branch) for branch, _ in branches)):
                domains[slot] = tuple({id(e): e for branch, _ in branches for e in branch[slot]}.values())
            apart |= set.intersection(*(pairs for _, pairs in branches))
        elif isinstance(node, Draw):
            entries = _owned(node, domains)
            views = [_View(entry.forms[node.form], rest, {node.slot: entry}) for entry in entries]
            _compare(views, domains, apart, found, f"{{{node.slot}={node.source}}}")
            domains[node.slot] = entries
            apart.update(frozenset((node.slot, other)) for other in node.without)
        elif isinstance(node, Sum):
            domains[node.slot] = node.numbers


def _owned(node: Draw, domains: Domains) -> tuple[Entry, ...]:
    if not node.owner:
        return node.entries
    return tuple({id(e): e for owner in domains[node.owner] for e in owner.lists[node.source]}.values())


def _compare(views: list[_View], domains: Domains, apart: Apart, found: list[str], where: str) -> None:
    """Compares all pairs; views that start with known text are sorted, so that only prefixes need a closer look."""
    known = sorted((view for view in map(_advance, views) if view.text), key=lambda view: view.text)
    unknown = [view for view in map(_advance, views) if not view.text]
    pairs = [(unknown[i], other) for i in range(len(unknown)) for other in unknown[i + 1 :] + known]
    for i, view in enumerate(known):
        for other in known[i + 1 :]:
            if not other.text.startswith(view.text):
                break
            pairs.append((view, other))
    for left, right in pairs:
        clash = _clash(left, right, {}, domains, apart)
        if clash is not None:
            found.append(f"{where}: {left.text!r} and {right.text!r} can both be followed to {clash!r}")


def _advance(view: _View) -> _View:
    """Moves fixed text from the continuation to the known text."""
    text, (sequence, place, after), slots = view
    while True:
        while place == len(sequence):
            if after is None:
                return _View(text, (sequence, place, after), slots)
            sequence, place, after = after
        node = sequence[place]
        if not isinstance(node, Literal):
            return _View(text, (sequence, place, after), slots)
        text, place = text + node.text, place + 1


def _clash(
    left: _View,
    right: _View,
    shared: dict[str, Entry],
    domains: Domains,
    apart: Apart,
) -> str | None:
    """A text that both sides can write to its end, or None."""
    left, right = _advance(left), _advance(right)
    same = min(len(left.text), len(right.text))
    if left.text[:same] != right.text[:same]:
        return None
    if left.text[same:] == right.text[same:] == "" and left.text[-1:] == _END:
        return left.text
    if len(left.text) > same:  # expand the shorter side
        left, right = right, left
    for view, known in _expand(left, shared, domains, apart):
        if (clash := _clash(view, right, known, domains, apart)) is not None:
            return clash
    return None


def _expand(
    view: _View, shared: dict[str, Entry], domains: Domains, apart: Apart
) -> Iterator[tuple[_View, dict[str, Entry]]]:
    """The ways a view can go on at its first open node, with what each assumes about the slots bound before."""
    sequence, place, after = view.follow
    node, rest = sequence[place], (sequence, place + 1, after)
    if isinstance(node, Alternatives):
        for option in node.options:
            yield _View(view.text, (option, 0, rest), view.slots), shared
        return
    needed = _needed(node)
    missing = [slot for slot in needed if slot not in view.slots and slot not in shared]
    if missing:
        for entry in domains[missing[0]]:
            if not any(shared[s] is entry and frozenset((s, missing[0])) in apart for s in shared):
                yield view, {**shared, missing[0]: entry}
        return
    slots = {**shared, **view.slots}
    if isinstance(node, Reference):
        yield _View(view.text + slots[node.slot].forms[node.form], rest, view.slots), shared
    elif isinstance(node, Sum):
        value = slots[node.left].value + node.sign * slots[node.right].value
        entry = next(entry for entry in node.numbers if entry.value == value)
        yield _View(view.text + entry.forms[node.form], rest, {**view.slots, node.slot: entry}), shared
    elif isinstance(node, Draw):
        for entry in available(node, slots.__getitem__):
            yield _View(view.text + entry.forms[node.form], rest, {**view.slots, node.slot: entry}), shared


def _needed(node: Node) -> tuple[str, ...]:
    if isinstance(node, Reference):
        return (node.slot,)
    if isinstance(node, Sum):
        return node.left, node.right
    if isinstance(node, Draw):
        return ((node.owner,) if node.owner else ()) + node.without
    return ()
