"""The lists of files that docs/DESIGN.md and README.md print are those in which functions really run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import roads

LONGEST = {"token files to loss": 16, "checkpoint to text": 25, "command line to the loop": 60}


@pytest.mark.slow
def test_the_lists_are_the_files_on_the_way(repository: Path, tmp_path: Path) -> None:
    """`python tests/roads.py` writes them again."""
    traced = roads.trace(tmp_path)
    assert roads.written((repository / "docs/DESIGN.md").read_text(encoding="utf-8")) == roads.in_words(traced)
    assert {name: len(files) for name, files in traced.items() if len(files) > LONGEST[name]} == {}
    readme = (repository / "README.md").read_text(encoding="utf-8")
    for name, files in traced.items():
        assert re.search(rf"{name}[^|]*\\| {len(files)} \\|", readme), f"README.md gives another number for: {name}"


def test_the_files_of_the_sentences_are_there(repository: Path) -> None:
    for sentence in roads.SENTENCES.values():
        for name in sentence.split(" → "):
            assert (repository / f"tiny_transformer/{name}.py").is_file(), name
