"""What adapters stand on: where the base is and what it is, written beside them in `base.json`.

A checkpoint of adapters holds no weights of its base. It names the place twice, as seen from itself and from the
directory where the run was started, so that runs which move together find each other; and it holds a hash of every
weight, so that a base that has changed since is refused. A checkpoint is given away: it names no folder that is nobody
else's business, and where that leaves a place untold, the config of its run tells it.

A base that is gone or has changed is no damage of the checkpoint: the exit code is not that of damaged data, and a
resumed run leaves its checkpoints where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.secrets import shown_path
from tiny_transformer.errors import ExitCode, UserError, command_line
from tiny_transformer.models.building import tensors_of
from tiny_transformer.models.config_file import BASE_FILE, load_config, read_json
from tiny_transformer.storage.commit import Staging, write_into
from tiny_transformer.storage.reading import at_home
from tiny_transformer.storage.runs import CONFIG_FILE, started_in

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM

MOST_NAMES = 2  # of folders elsewhere in a path that others see, as in `last_parts`
_MERGE = ("tiny-transformer", "merge")


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
    told = {
        "path": place_seen_from(Path(os.path.realpath(directory)), base.path),
        "path_from_start": place_seen_from(Path.cwd(), base.path),
        "weights_blake2b": base.identity,
        "config": config,
    }
    write_into(directory, BASE_FILE, json.dumps(told, indent=2) + "\n")


def place_seen_from(start: Path, place: Path) -> str:
    """The path from one directory to another, if it tells no more of the disk than others may know: two names, or what
    lies below the working directory. Any other place as `shown_path` has it, which may not lead there."""
    place, start, here = (Path(os.path.realpath(path)) for path in (place, start, Path.cwd()))
    seen = Path(os.path.relpath(place, start))
    names = [part for part in seen.parts if part != os.pardir]
    if len(names) <= MOST_NAMES or (place.is_relative_to(here) and start.is_relative_to(here)):
        return str(seen)
    return shown_path(str(place))


def find_base(directory: Path) -> Base:
    """Where the base of adapters is, and what it must be. It is not read.

    Raises:
        UserError: a damaged `base.json` (BAD_DATA), or none, or no model at any of the places.
    """
    if not (directory / BASE_FILE).is_file():
        raise UserError(
            f"these adapters of an older version do not say what they stand on: there is no {BASE_FILE}",
            where=str(directory),
            remedy=f"make one model of them, to start from: {command_line(*_MERGE, directory, '--out_dir', 'DIR')}",
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
    places = []
    for place in _places(directory, beside, from_start):
        if (place / "config.json").is_file():
            return Base(place, identity)
        places.append(place)
    raise UserError(
        f"the base of these adapters is neither at {' nor at '.join(map(str, places))}",
        where=str(directory),
        remedy=f"put it back, or name it: {_ways(directory)}",
    )


def _places(directory: Path, beside: str, from_start: str) -> Iterator[Path]:
    """Where a base may be: the two places of `base.json`, and what the run of a checkpoint says it started from."""
    yield Path(os.path.normpath(directory.resolve() / at_home(beside)))
    yield at_home(from_start)
    run_dir = directory.resolve().parent
    with suppress(UserError):
        if (run_dir / CONFIG_FILE).is_file() and (base := load_run_config(run_dir / CONFIG_FILE).init_from):
            for start in started_in(run_dir) or [Path()]:
                yield Path(os.path.normpath(start / base))


def unusable_base(directory: Path, base: Base, error: UserError) -> UserError:
    """What to tell when the base of adapters cannot be opened."""
    return UserError(
        f"the base of these adapters, {base.path}, cannot be opened: {error.what}",
        where=error.where,
        remedy=f"restore it, or name a copy of it as it was: {_ways(directory)}",
    )


def check_base(directory: Path, base: Base, model: CausalLM, *, may_grow: bool) -> None:
    """Refuse a base that is not what adapters were trained on.

    Args:
        directory: of the adapters.
        base: where it is, and what it must be.
        model: what is there.
        may_grow: the adapters may know more tokens than the base.

    Raises:
        UserError: its shape or its weights are others.
    """
    ours, there = load_config(directory), model.config
    different = [key for key in type(ours).model_fields if getattr(ours, key) != getattr(there, key, None)]
    if may_grow and different == ["vocab_size"] and ours.known_vocab_size > there.known_vocab_size:
        different = []
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
    )


def _ways(directory: Path) -> str:
    return command_line(*_MERGE, directory, "--base", "DIR", "--out_dir", "DIR")
