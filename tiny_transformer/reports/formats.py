"""Numbers, times and texts as people read them, in the terminal and in the report."""

from __future__ import annotations

from itertools import groupby
from typing import Any

NOTHING = "–"
_MAX_TEXT = 400  # characters of one setting that are worth showing
_MAX_ITEMS = 16
_MAX_DEPTH = 3


def count(value: float | None) -> str:
    """A whole number: 12,300."""
    return NOTHING if value is None else f"{value:,.0f}"


def large(value: float | None) -> str:
    """A number with three significant digits and a word for its size: 8.19 million."""
    if value is None:
        return NOTHING
    for limit, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {word}"
    return count(value)


def loss(value: float | None) -> str:
    """A loss in nats or bits: 1.618."""
    return NOTHING if value is None else f"{value:.3f}"


def figure(value: float, form: str) -> str:
    """A value of a chart: `loss`, `count`, or anything else with three significant digits."""
    return loss(value) if form == "loss" else count(value) if form == "count" else f"{value:.3g}"


def signed(value: float | None) -> str:
    """A difference of losses, its sign always written: +0.094."""
    return NOTHING if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def size(num_bytes: float) -> str:
    """A size on disk in decimal units, as disks are sold: 4.1 MB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float | None) -> str:
    """How long something took: 4.5 seconds, 45 seconds, 9.6 minutes, 3.2 hours."""
    if seconds is None:
        return NOTHING
    for limit, unit, length in ((90.0, "seconds", 1.0), (5_400.0, "minutes", 60.0), (172_800.0, "hours", 3_600.0)):
        if seconds < limit:
            return f"{seconds:.0f} seconds" if 9.95 <= seconds < 90.0 else f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def ago(seconds: float) -> str:
    """How long ago something happened: "3 min ago". A clock that was set back gives "just now"."""
    if seconds < 60:
        return "just now"
    for limit, length, unit in ((3_600, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds // 86_400:,.0f} days ago"


def setting(value: Any, depth: int = 0) -> str:
    """A config value in the spelling of YAML, shortened where it is long, deep or refers to itself."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict | list | tuple):
        if depth == _MAX_DEPTH:
            return "…"
        if isinstance(value, dict):
            items = [f"{key}: {setting(item, depth + 1)}" for key, item in list(value.items())[:_MAX_ITEMS]]
        else:
            runs = [(item, len(list(equal))) for item, equal in groupby(value)]
            items = [
                setting(item, depth + 1) + (f"\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{n}" if n > 1 else "")
                for item, n in runs[:_MAX_ITEMS]
            ]
            value = runs
        return shorten(", ".join([*items, "…"] if len(value) > _MAX_ITEMS else items) or "none")
    return shorten(str(value))


def shorten(text: str, limit: int = _MAX_TEXT) -> str:
    """The text, cut at `limit` characters."""
    return text if len(text) <= limit else text[:limit] + " …"
