"""Models by name: build one, load one from a Hugging Face directory, save one as a Hugging Face directory.

Importing this room is cheap; torch and the architecture come in with the first function that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiny_transformer.models.building import build_model, empty_model
    from tiny_transformer.models.checkpoint import load_model, load_weights, save_model
    from tiny_transformer.models.config_file import end_token_ids, load_config

_HOMES = {
    "build_model": "building",
    "empty_model": "building",
    "end_token_ids": "config_file",
    "load_config": "config_file",
    "load_model": "checkpoint",
    "load_weights": "checkpoint",
    "save_model": "checkpoint",
}

__all__ = ["build_model", "empty_model", "end_token_ids", "load_config", "load_model", "load_weights", "save_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
