"""Small corpora for the data tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

WORDS = tuple(
    "the a little big red old cat dog bird sat ran saw lost found Tim Ann Zoë under over near tree house ✓ mat".split()  # noqa: SIM905
)


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 20 to 80 words, all different."""
    rng = random.Random(seed)
    return [f"Story {i}. " + " ".join(rng.choices(WORDS, k=rng.randint(20, 80))) + "." for i in range(count)]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Three hundred small documents."""
    return make_documents(300)


@pytest.fixture
def corpus(tmp_path: Path, documents: list[str]) -> Path:
    """The documents as a text file with separator lines."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return path
