"""Runs that are taken up from another directory, under another name, or on another machine: where their data is now."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.meta import read_meta
from tiny_transformer.data.prepare.command import is_prepared
from tiny_transformer.errors import UserError
from tiny_transformer.stages.resume_check import DATA
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.reading import read_regular
from tiny_transformer.storage.runs import CONFIG_FILE, load_identity

_STARTED_IN = re.compile(r"# started in (.+); relative paths are meant from there")  # see `write_config`


def with_data_of_run(config: RunConfig, run_dir: Path, name: str) -> RunConfig:
    """The config with the data directory of a run that was trained before. Nothing is prepared for such a run.

    A relative path is looked for from here and from where the run was started, and the one with the data that the run
    was trained on is taken.

    Args:
        config: as asked for; its data directory may be left open.
        run_dir: the run.
        name: what data directory a run has whose config names none.

    Raises:
        UserError: there is no prepared data in these places.
    """
    asked = config.data.data_dir or Path("data") / name
    places = dict.fromkeys([asked, *(home / asked for home in _started_in(run_dir))])
    prepared = [place for place in places if is_prepared(place)]
    if not prepared:
        raise UserError(
            f"the data of this run, {asked}, is not here",
            where=str(run_dir),
            remedy="say where it is now: --resume --data_dir DIR; if it is gone, prepare it again exactly as it was",
        )
    trained_on = _fingerprint_of_run(run_dir)
    chosen = next((place for place in prepared if _fingerprint(place) == trained_on), prepared[0])
    return config.model_copy(update={"data": config.data.model_copy(update={"data_dir": chosen})})


def _started_in(run_dir: Path) -> list[Path]:
    """The directory that a run was last started in, as its config.yaml says, relative to the run."""
    with suppress(OSError, UserError):
        for line in read_regular(run_dir / CONFIG_FILE).decode("utf-8", "replace").splitlines()[:5]:
            if match := _STARTED_IN.fullmatch(line):
                return [run_dir.resolve() / match[1]]
    return []


def _fingerprint(data_dir: Path) -> str | None:
    with suppress(UserError):
        return read_meta(data_dir).fingerprint
    return None


def _fingerprint_of_run(run_dir: Path) -> str | None:
    for checkpoint in reversed(RunDirectory(run_dir).checkpoints()):
        with suppress(UserError):
            return load_identity(checkpoint.path).get(DATA)
    return None
