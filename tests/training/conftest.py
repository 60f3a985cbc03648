"""One small prepared data set for all tests of training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from run_helpers import prepare_tiny, run_tiny
from worlds import Worlds


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some stories in bytes."""
    return prepare_tiny(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def base_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that other stages start from; nobody changes it."""
    run_dir = tmp_path_factory.mktemp("base") / "base"
    run_tiny(tiny_data, run_dir, steps=2, eval_steps=None)
    return run_dir


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """Starts worlds of a few processes."""
    worlds = Worlds(tmp_path_factory.mktemp("worlds"))
    yield worlds
    worlds.close()
