"""What each skill of the story corpus is, in words. No torch: reports say it too."""

from __future__ import annotations

from tiny_transformer.data.stories import SKILLS

STOP = "stop"
MEANINGS = {**SKILLS, STOP: "that the story is over"}
