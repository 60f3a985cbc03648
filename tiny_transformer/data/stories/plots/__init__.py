"""The plots, and the rule that every story starts from."""

from __future__ import annotations

from . import broken, build, gift, guests, lost, newcomer, night, parcels, pull, race, shared, storm, walk, wishes

_PLOTS = (lost, gift, parcels, pull, night, build, race, guests, broken, wishes, newcomer, walk, storm)

_STORY = "<beginning>\n\n[#plot " + "|".join(f"<{plot.__name__.rpartition('.')[2]}>" for plot in _PLOTS) + "]"

RULES: dict[str, str] = {"story": _STORY}
for _module in (shared, *_PLOTS):
    RULES |= _module.RULES
