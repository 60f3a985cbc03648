"""Writes stories: the tree is compiled once into tables, and a story is one walk along random bytes.

The bytes of story `index` of `seed` come from SHAKE-128 over both numbers, so any story can be made on its own, on
any machine. The walk only collects text and log-probabilities; the slots are filled in by one `%` at the end, in C.
What limits the speed is the interpreter's cost of about a quarter of a microsecond per choice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from .template import FORGOTTEN, UNITS, Alternatives, Draw, Entry, Literal, Node, Reference, Sum, shares

Slots = dict[str, Any]  # "slot.form": text, and "slot#": the entry itself
Option = tuple[float, str, "Slots | None", tuple]  # log p, text, slots it binds, items that follow
Table = tuple[Option, ...]  # 256 places, one for each value of a byte
Item = tuple[Any, Any, str]  # table, or how to find it; the text after it


class Sampler:
    """Draws (text, log-probability) pairs from a tree, each a function of `(seed, index)` alone."""

    def __init__(self, tree: tuple[Node, ...]) -> None:
        self.num_bytes = longest(tree)
        self._forms = used_forms(tree)
        self._bindings: dict[tuple[str, Entry], Slots] = {}
        self._tables: dict[tuple, Table] = {}  # equal choices share a table: what is small stays in the cache
        self._head, self._items = self._compile(tree)

    def sample(self, seed: int, index: int) -> tuple[str, float]:
        """Story `index` of `seed` and the natural logarithm of its probability."""
        draws = iter(hashlib.shake_128(b"%d:%d" % (seed, index)).digest(self.num_bytes))
        pieces = [self._head]
        slots: Slots = {}
        log_probability = _walk(self._items, draws, pieces.append, slots)
        return "".join(pieces) % slots, log_probability

    def _compile(self, sequence: tuple[Node, ...]) -> tuple[str, tuple[Item, ...]]:
        """Text before the first choice, then each choice with the text after it."""
        head = ""
        items: list[Item] = []
        for node in sequence:
            if isinstance(node, Literal | Reference):
                text = node.text if isinstance(node, Literal) else _mark(node.slot, node.form)
                if items:
                    items[-1] = (items[-1][0], items[-1][1], items[-1][2] + text)
                else:
                    head += text
            elif isinstance(node, Alternatives):
                items.append((self._alternatives(node), None, ""))
            elif isinstance(node, Draw) and not (node.owner or node.without):
                items.append((self._draw(node, node.entries), None, ""))
            else:
                items.append((None, self._sum(node) if isinstance(node, Sum) else self._dependent(node), ""))
        return head, tuple(items)

    def _alternatives(self, node: Alternatives) -> Table:
        options = [(head, None, items) for head, items in map(self._compile, node.options)]
        key = (
            node.counts,
            tuple((head, tuple((id(t), id(f), after) for t, f, after in items)) for head, _, items in options),
        )
        return self._tables.setdefault(key, _table(options, node.counts))

    def _draw(self, node: Draw, entries: tuple[Entry, ...]) -> Table:
        options = [(entry.forms[node.form], self._binding(node.slot, entry), ()) for entry in entries]
        return self._tables.setdefault((node.slot, node.form, entries), _table(options, shares((1,) * len(entries))))

    def _dependent(self, node: Draw) -> Callable[[Slots], Table]:
        """A draw whose entries depend on slots bound before; its tables are made when first needed."""
        keys = [slot + "#" for slot in ((node.owner,) if node.owner else ()) + node.without]
        tables: dict[tuple, Table] = {}

        def find(slots: Slots) -> Table:
            known = tuple([slots[key] for key in keys])
            table = tables.get(known)
            if table is None:
                table = tables[known] = self._draw(node, available(node, lambda slot: slots[slot + "#"]))
            return table

        return find

    def _sum(self, node: Sum) -> Callable[[Slots], Table]:
        options = {
            entry.value: (0.0, entry.forms[node.form], self._binding(node.slot, entry), ()) for entry in node.numbers
        }

        def find(slots: Slots) -> Table:
            value = slots[node.left + "#"].value + node.sign * slots[node.right + "#"].value
            return (options[value],) * UNITS

        return find

    def _binding(self, slot: str, entry: Entry) -> Slots | None:
        if slot == FORGOTTEN:
            return None
        binding = self._bindings.get((slot, entry))
        if binding is None:
            forms: Slots = {
                f"{slot}.{form}": entry.forms[form] for form in self._forms.get(slot, ()) if form in entry.forms
            }
            binding = self._bindings[slot, entry] = forms | {slot + "#": entry}
        return binding


def _table(options: list[tuple[str, Slots | None, tuple]], counts: tuple[int, ...]) -> Table:
    places: list[Option] = []
    for option, count in zip(options, counts, strict=True):
        places += [(math.log(count / UNITS), *option)] * count
    return tuple(places)


def _walk(items: tuple[Item, ...], draws: Iterator[int], push: Callable[[str], None], slots: Slots) -> float:
    total = 0.0
    for table, find, after in items:
        log_p, text, binding, inner = (table or find(slots))[next(draws)]
        total += log_p
        push(text)
        if binding:
            slots.update(binding)
        elif inner:
            total += _walk(inner, draws, push, slots)
        push(after)
    return total


def available(node: Draw, entry_in: Callable[[str], Entry]) -> tuple[Entry, ...]:
    """The entries `node` chooses from, given the entries in the slots bound before it."""
    entries = entry_in(node.owner).lists[node.source] if node.owner else node.entries
    taken = [entry_in(slot) for slot in node.without]
    return tuple(entry for entry in entries if entry not in taken)


def used_forms(tree: tuple[Node, ...]) -> dict[str, set[str]]:
    """The forms that are written of each slot after it has been bound."""
    forms: dict[str, set[str]] = {}
    for node in every_node(tree):
        if isinstance(node, Reference):
            forms.setdefault(node.slot, set()).add(node.form)
    return forms


def every_node(tree: tuple[Node, ...]) -> Iterator[Node]:
    """All nodes of a tree, in the order of the text."""
    for node in tree:
        yield node
        if isinstance(node, Alternatives):
            for option in node.options:
                yield from every_node(option)


def longest(tree: tuple[Node, ...]) -> int:
    """The most bytes a walk through the tree can use."""
    total = 0
    for node in tree:
        if isinstance(node, Alternatives):
            total += 1 + max(longest(option) for option in node.options)
        elif isinstance(node, Draw | Sum):
            total += 1
    return total


def _mark(slot: str, form: str) -> str:
    return f"%({slot}.{form})s"
