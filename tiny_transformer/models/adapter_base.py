"""What adapters stand on: where the base is and what it is, written beside them in `base.json`.

A checkpoint of adapters holds no weights of its base. It names the place twice, as seen from itself and from the
directory where the run was started, so that runs which move together find each other; and it holds a hash of every
weight, so that a base that has changed since is refused. No absolute path: a checkpoint is given away.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tiny_transformer.errors import ExitCode, UserError, command_line
from tiny_transformer.models.building import tensors_of
from tiny_transformer.models.config_file import BASE_FILE, load_config, read_json
from tiny_transformer.storage.commit import Staging, write_into

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM


class Base(NamedTuple):
    """A model that adapters stand on.

    Attributes:
        path: its directory.
        identity: a hash of its weights, see `identity_of`.
    """

    path: Path
    identity: str


def identity_of(model: CausalLM) -> str:
    """BLAKE2b of names, dtypes, shapes and bytes of a model's tensors."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(tensors_of(model).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def write_base(directory: Staging | Path | str, base: Base, config: Mapping[str, Any]) -> None:
    """Write `base.json`.

    Args:
        directory: of the adapters.
        base: what they stand on.
        config: what config.json would say of base and adapters together.
    """
    place, start = os.path.realpath(base.path), os.path.realpath(directory)
    told = {
        "path": os.path.relpath(place, start),
        "path_from_start": path_from_here(base.path),
        "weights_blake2b": base.identity,
        "config": config,
    }
    write_into(directory, BASE_FILE, json.dumps(told, indent=2) + "\n")


def path_from_here(path: Path) -> str:
    """A path as seen from the working directory: what peft and transformers make of a base's name."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(Path.cwd()))


def find_base(directory: Path) -> Base:
    """Where the base of adapters is, and what it must be. It is not read.

    Raises:
        UserError: a damaged `base.json`, or no model at either place.
    """
    if not (directory / BASE_FILE).is_file():
        raise UserError(
            f"these adapters do not say what they stand on: there is no {BASE_FILE}",
            where=str(directory),
            remedy=f"name it: {_ways(directory)}",
            exit_code=ExitCode.BAD_DATA,
        )
    told = read_json(directory / BASE_FILE)
    seen = [told.get(key) for key in ("path", "path_from_start", "weights_blake2b")]
    if not all(isinstance(value, str) and 0 < len(value) < 4096 and "\0" not in value for value in seen):
        raise UserError(
            "it does not name a base by its place and its weights",
            where=str(directory / BASE_FILE),
            remedy=f"take another checkpoint, or name the base: {_ways(directory)}",
            exit_code=ExitCode.BAD_DATA,
        )
    beside, from_start, identity = map(str, seen)
    places = [Path(os.path.normpath(directory.resolve() / beside)), Path(from_start)]
    for place in places:
        if (place / "config.json").is_file():
            return Base(place, identity)
    raise UserError(
        f"the base of these adapters is neither at {places[0]} nor at {places[1]}",
        where=str(directory),
        remedy=f"put it back, or name it: {_ways(directory)}",
        exit_code=ExitCode.BAD_DATA,
    )


def check_base(directory: Path, base: Base, model: CausalLM) -> None:
    """Refuse a base that is not what adapters were trained on.

    Raises:
        UserError: its shape or its weights are others.
    """
    ours, there = load_config(directory), model.config
    different = [key for key in type(ours).model_fields if getattr(ours, key) != getattr(there, key, None)]
    if different:
        key = different[0]
        what = f"{key} is {getattr(there, key, None)!r:.60} in its config.json and was {getattr(ours, key)!r:.60}"
    elif identity_of(model) != base.identity:
        what = "its weights are not those that the adapters were trained on"
    else:
        return
    raise UserError(
        f"the base {base.path} has changed since: {what}",
        where=str(directory),
        remedy=f"restore it, or name a copy of it as it was: {_ways(directory)}",
        exit_code=ExitCode.BAD_DATA,
    )


def _ways(directory: Path) -> str:
    return command_line("tiny-transformer", "merge", directory, "--base", "DIR", "--out_dir", "DIR")
