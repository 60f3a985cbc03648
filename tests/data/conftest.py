"""Small corpora for the data tests."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_transformer.config.load import load_data_config
from tiny_transformer.data.meta import Meta
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.data.prepare.sources import Source

sys.path.insert(0, str(Path(__file__).parent))

WORDS = tuple(
    "the a little big red old cat dog bird sat ran saw lost found Tim Ann Zoë under over near tree house ✓ mat".split()  # noqa: SIM905
)


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 20 to 80 words, all different."""
    rng = random.Random(seed)
    return [f"Story {i}. " + " ".join(rng.choices(WORDS, k=rng.randint(20, 80))) + "." for i in range(count)]


def prepared(source: str | Path | Source, out_dir: Path, **options: Any) -> Meta:
    """`prepare` with the options of `data` and its own in one row, checked as on the command line."""
    own = {name: options.pop(name) for name in ("workers", "overwrite", "on_progress") if name in options}
    if isinstance(source, Source):
        own["source"] = source
    else:
        options["source"] = str(source)
    data = load_data_config([f"data.{key}={json.dumps(value)}" for key, value in options.items()])
    return prepare(data, out_dir, **own)


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
