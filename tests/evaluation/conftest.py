"""Makes `small_corpus` importable by the tests beside it; its data and its oracle are made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from small_corpus import MANY, PLAIN, Oracle

from tiny_transformer.data.token_file import Dataset


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors gain nothing from threads, and other work shares the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Stories of the grammar that can be listed."""
    return PLAIN.prepare(tmp_path_factory.mktemp("data") / "plain", count=200)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Stories of the grammar that is hard to guess."""
    return MANY.prepare(tmp_path_factory.mktemp("data") / "many")


@pytest.fixture(scope="session")
def oracle(plain: Dataset) -> Oracle:
    """The model that knows the grammar."""
    return Oracle(plain.tokenizer)
