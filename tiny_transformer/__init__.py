"""tiny-transformer: read, train and own a language model on a laptop or one GPU.

    from tiny_transformer import load
    lm = load("runs/demo")
    print(lm.generate("Once upon a time"))

Importing the package is cheap (no torch): every room is imported when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiny_transformer.generation.loaded import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tiny_transformer.generation.loaded import load

    return load
