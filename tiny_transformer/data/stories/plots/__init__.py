"""The plots, and the rule that every story starts from."""

from __future__ import annotations

from . import gift, lost, parcels, shared

_STORY = """
<beginning>

[#plot <lost>|<gift>|<parcels>]
"""

RULES: dict[str, str] = {"story": _STORY} | shared.RULES | lost.RULES | gift.RULES | parcels.RULES
