"""The two pages of training mathematics, each as a module of its formulas."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from math_pages import Page, load, read_page


@pytest.fixture(scope="session")
def qwen3_page(repository: Path) -> Page:
    """docs/TRAINING_MATH_QWEN3.md."""
    return read_page(repository / "docs" / "TRAINING_MATH_QWEN3.md")


@pytest.fixture(scope="session")
def next_page(repository: Path, qwen3_page: Page) -> Page:
    """docs/TRAINING_MATH_QWEN3_NEXT.md, which goes on from the first page."""
    return read_page(repository / "docs" / "TRAINING_MATH_QWEN3_NEXT.md", after=qwen3_page)


@pytest.fixture(scope="session")
def qwen3(qwen3_page: Page) -> ModuleType:
    """The formulas of the first page."""
    return load(qwen3_page)


@pytest.fixture(scope="session")
def qwen3_next(next_page: Page) -> ModuleType:
    """The formulas of both pages."""
    return load(next_page)
