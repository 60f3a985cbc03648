"""Reading `config.json` of a model directory. No torch, so that commands can look at a model without paying for it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from reprlib import repr as short
from typing import Any

from tiny_transformer.config.hf import config_from_hf
from tiny_transformer.config.shapes import ModelConfig
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.swaps import Record, read_swaps
from tiny_transformer.storage.reading import check_inside, read_regular

BASE_FILE = "base.json"  # beside adapters: what they stand on, and the config.json of both together
MAX_CONFIG_BYTES = 2**20
MAX_GROUPS = 10_000  # an empty list is two bytes in the file and dozens in memory
MAX_END_IDS = 100
MAX_INDEX_BYTES = 16 * 2**20  # the largest published checkpoint's has 9 MB


def load_config(directory: Path | str) -> ModelConfig:
    """The shape of the model in a Hugging Face directory.

    Raises:
        UserError: not a model directory, or a config.json that is damaged or not supported.
    """
    hf, _ = read_config(directory)
    return config_from_hf(hf, str(Path(directory) / "config.json"))


def read_config(directory: Path | str) -> tuple[dict[str, Any], list[Record]]:
    """What `config.json` says, and which layers are swapped: see `models.swaps`. Of adapters with a `base.json` it
    stands there. Errors as in `load_config`."""
    directory = Path(directory)
    path = directory / "config.json"
    check_inside(path)
    if not path.exists() and (directory / BASE_FILE).is_file():
        config = read_json(directory / BASE_FILE).get("config")
        return read_swaps(config if isinstance(config, dict) else {}, str(directory / BASE_FILE))
    if not path.is_file():
        what = "is not a directory" if not directory.is_dir() else "is not a model directory: it has no config.json"
        if path.exists():
            what += " that is a regular file"
        remedy = "give a directory with config.json and model.safetensors"
        if (directory / "last").exists():
            remedy = f"did you mean {directory / 'last'}?"
        raise UserError(f"{directory} {what}", remedy=remedy)
    return read_swaps(read_json(path), str(path))


def is_classifier(hf: dict[str, Any]) -> bool:
    """Whether a config.json is that of a model which sorts texts."""
    names = hf.get("architectures")
    return isinstance(names, list) and any("ForSequenceClassification" in str(name) for name in names)


def refuse_classifier(hf: dict[str, Any], directory: Path) -> None:
    """Refuse a model that sorts texts where one is needed that writes them.

    Raises:
        UserError: it is one.
    """
    if is_classifier(hf):
        raise UserError(
            "this model is a classifier: it gives labels to texts and cannot write any",
            where=str(directory),
            remedy="tiny-transformer classify uses it; here, name the language model that it was made from",
            exit_code=ExitCode.BAD_DATA,
        )


def end_token_ids(directory: Path | str) -> list[int]:
    """The ids at which a text ends, as generation_config.json says or else config.json; none where neither does.

    Raises:
        UserError: a damaged file, or an `eos_token_id` that is neither an id nor a list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        path = Path(directory) / name
        value = read_swaps(read_json(path), str(path))[0].get("eos_token_id") if path.exists() else None
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if len(ids) > MAX_END_IDS or not all(type(i) is int and 0 <= i < 2**24 for i in ids):
            raise UserError(
                f"eos_token_id {short(value)} is neither a token's id nor a list of at most {MAX_END_IDS} ids",
                where=str(path),
                remedy="write the ids of the tokens that end a text",
                exit_code=ExitCode.BAD_DATA,
            )
        return ids
    return []


def read_json(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        UserError: unreadable, a link that leads outside, oversized, not JSON, a repeated key, or not an object.
    """
    check_inside(path)
    try:
        raw = read_regular(path, max_bytes)
        if raw.count(b"[") + raw.count(b"{") > MAX_GROUPS:
            raise ValueError(f"more than {MAX_GROUPS:,} lists and objects")
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
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


def read_small_file(path: Path) -> bytes:
    """The bytes of a file that is kept as it is, such as a chat template.

    Raises:
        UserError: a link that leads outside, no regular file, or an oversized one.
    """
    check_inside(path)
    try:
        return read_regular(path, MAX_CONFIG_BYTES)
    except OSError as error:
        raise UserError(
            f"cannot read {path.name}: {error.strerror}",
            where=str(path),
            remedy="fetch it again, or remove it: the model opens without",
            exit_code=ExitCode.BAD_DATA,
        ) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {short(Counter(names).most_common(1)[0][0])} appears twice")
    return value
