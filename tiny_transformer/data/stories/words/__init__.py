"""The word lists by the names that plots use for them."""

from __future__ import annotations

from . import moments, people, places, things
from .build import Entry

LISTS: dict[str, tuple[Entry, ...]] = {
    name.lower(): entries
    for module in (people, places, things, moments)
    for name, entries in sorted(vars(module).items())
    if name.isupper() and not name.startswith("_")
}
