"""tiny-transformer: read, train and own a language model on a laptop or one GPU.

    from tiny_transformer import load
    lm = load("runs/demo")
    print(lm.generate("Once upon a time"))

Importing the package is cheap (no torch): every room is imported when it is first needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiny_transformer.generation.loaded import generate_story, load
    from tiny_transformer.generation.qwen3_model import Qwen3Model

__version__ = "0.1.0"
__all__ = ["Qwen3Model", "generate_story", "load"]
_HOMES = {"load": "loaded", "generate_story": "loaded", "Qwen3Model": "qwen3_model"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.generation.{_HOMES[name]}"), name)
