"""`data/tiny_corpus.txt`: sixty of the built-in stories, for a smoke test with a text on the disk.

`python tests/tiny_corpus.py` writes it; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from tiny_transformer.data.stories import story

PATH = Path(__file__).parent.parent / "data/tiny_corpus.txt"
SEED, STORIES = 2024, 60


def tiny_corpus() -> str:
    """The text: a blank line between stories, and a newline at the end."""
    return "\n\n".join(story(SEED, number).text for number in range(STORIES)) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(tiny_corpus(), encoding="utf-8", newline="\n")
