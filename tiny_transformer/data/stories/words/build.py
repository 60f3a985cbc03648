"""How the word lists are written down: a line or a phrase becomes an entry with its forms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..template import Entry as Entry

_PRONOUNS = {
    "she": {"he": "she", "He": "She", "him": "her", "his": "her", "His": "Her", "himself": "herself"},
    "he": {"he": "he", "He": "He", "him": "him", "his": "his", "His": "His", "himself": "himself"},
}


def nouns(text: str) -> tuple[Entry, ...]:
    """Things that can be counted, separated by commas; `leaf=leaves` gives a plural that does not follow the rule.

    Forms: the bare noun, `Bare` (with a capital), `a` (with its article), `A`, and `many`.
    """
    entries = []
    for item in _items(text):
        one, _, many = item.partition("=")
        a = with_article(one)
        entries.append(Entry({"": one, "Bare": _capital(one), "a": a, "A": _capital(a), "many": many or plural(one)}))
    return tuple(entries)


def phrases(text: str) -> tuple[Entry, ...]:
    """One phrase a line; forms: as written, `Cap` (with a capital), and `the` (for one that begins with a or an)."""
    return tuple(
        Entry({"": line, "Cap": _capital(line), "the": re.sub(r"^an? ", "the ", line)}) for line in _lines(text)
    )


def words(text: str) -> tuple[Entry, ...]:
    """Words separated by commas, with the forms: as written, `a` and `A` (with its article) and `Cap` (with a capital)."""
    return tuple(
        Entry({"": w, "a": with_article(w), "A": _capital(with_article(w)), "Cap": _capital(w)}) for w in _items(text)
    )


def dishes(text: str) -> tuple[Entry, ...]:
    """Dishes separated by commas; forms: as written, and `was` (was or were)."""
    return tuple(Entry({"": w, "was": "were" if w.endswith("s") else "was"}) for w in _items(text))


def rows(names: str, text: str) -> tuple[Entry, ...]:
    """One entry a line, its forms separated by bars and named by `names` in the same order (`-` is the bare form)."""
    forms = ["" if name == "-" else name for name in names.split()]
    return tuple(
        Entry(dict(zip(forms, (cell.strip() for cell in line.split("|")), strict=True))) for line in _lines(text)
    )


def people(she: str, he: str) -> tuple[Entry, ...]:
    """Names separated by commas, with pronouns; women and men take turns."""
    women = [Entry({"": name} | _PRONOUNS["she"]) for name in _items(she)]
    men = [Entry({"": name} | _PRONOUNS["he"]) for name in _items(he)]
    pairs = [entry for pair in zip(women, men, strict=False) for entry in pair]
    return tuple(pairs) + tuple(women[len(men) :]) + tuple(men[len(women) :])


def with_lists(entries: Sequence[Entry], lists: Mapping[str, Sequence[Sequence[Entry]]]) -> tuple[Entry, ...]:
    """The same entries, the i-th with the i-th list of each name."""
    return tuple(
        Entry(entry.forms, {name: each[i] for name, each in lists.items()}, entry.value)
        for i, entry in enumerate(entries)
    )


def numbers(text: str, first: int) -> tuple[Entry, ...]:
    """Number words separated by commas, counting up from `first`.

    Forms: as written, `Cap` (with a capital), `s` (the ending of what is counted) and `was` (was or were).
    """
    return tuple(
        Entry({"": w, "Cap": _capital(w), "s": "s" * (n != 1), "was": "was" if n == 1 else "were"}, value=n)
        for n, w in enumerate(_items(text), first)
    )


def with_article(noun: str) -> str:
    """`noun` after a or an, by its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The regular plural of a noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _items(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.split(",") if item.strip()]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
