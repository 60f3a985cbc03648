"""Reading `config.json` of a model directory. No torch, so that commands can look at a model without paying for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_transformer.config.hf import config_from_hf
from tiny_transformer.config.model import ModelConfig
from tiny_transformer.errors import ExitCode, UserError

MAX_JSON_BYTES = 64 * 2**20  # the index of the largest published checkpoints is below 1 MiB


def load_config(directory: Path | str) -> ModelConfig:
    """The shape of the model in a Hugging Face directory.

    Raises:
        UserError: not a model directory, or a config.json that is damaged or not supported.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        what = "is not a directory" if not directory.is_dir() else "is not a model directory: it has no config.json"
        remedy = "give a directory with config.json and model.safetensors"
        if (directory / "last").exists():
            remedy = f"did you mean {directory / 'last'}?"
        raise UserError(f"{directory} {what}", remedy=remedy)
    return config_from_hf(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        UserError: unreadable, oversized, not JSON, a repeated key, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path.name}: {error}",
            where=str(path),
            remedy="the file is damaged or half-written; take another checkpoint or fetch it again",
            exit_code=ExitCode.BAD_DATA,
        ) from None
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} appears twice")
    return value
