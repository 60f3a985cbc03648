"""Fixtures shared by all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from reliability import pytest_configure  # noqa: F401 - a hook: it notes figures for docs/RELIABILITY.md

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    """Each precision in turn that this CPU has arithmetic for; TINY_TRANSFORMER_BF16 hides bf16, or grants it."""
    from tiny_transformer.hardware import choose_hardware

    if choose_hardware("cpu", request.param).precision != request.param:
        pytest.skip(f"this CPU has no {request.param} arithmetic, or it is hidden")
    return request.param


@pytest.fixture
def rounding(precision: str) -> float:
    """How far one number of that precision lies from the next, relative to it."""
    import torch

    return torch.finfo({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]).eps


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text, tokenizers and a small trained model kept beside the project; tests that want them skip without
    them."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs {path}")
    return path
