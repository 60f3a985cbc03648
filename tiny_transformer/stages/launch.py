"""Before training starts: which run directory, which data, which vocabulary."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.prepare.command import is_prepared, prepare_with_progress
from tiny_transformer.data.token_file import Dataset, open_dataset
from tiny_transformer.errors import UserError
from tiny_transformer.storage.runs import CONFIG_FILE, holds_a_run


@dataclass(frozen=True)
class Request:
    """What the user asked for, besides the config.

    Attributes:
        config: the checked config.
        name: what to call the run and its data when no directory is given.
        resume: continue the run in `out_dir` (or the newest of that name).
        overwrite: replace a run that is already there.
        chooses: fill in what the config leaves open so that it makes the most of `max_train_minutes`.
        command: the command line, for the record.
    """

    config: RunConfig
    name: str
    resume: bool = False
    overwrite: bool = False
    chooses: bool = False
    command: list[str] = field(default_factory=lambda: list(sys.argv))


def choose_run_dir(request: Request) -> Path:
    """The directory of this run: the one asked for, else `runs/NAME`, `runs/NAME-2`, ... (the newest of them to
    resume).

    Raises:
        UserError: a run is already there, or there is nothing to resume.
    """
    asked = request.config.out_dir
    base = asked or Path("runs") / request.name
    if base.exists() and not base.is_dir():
        raise UserError(f"{base} is a file, and a run is a directory", where=str(base), remedy="another --out_dir")
    if request.resume:
        candidates = [base] if asked else [p for p in (base, *base.parent.glob(f"{base.name}-*")) if holds_a_run(p)]
        newest = max(
            candidates,
            key=lambda path: (path / CONFIG_FILE).stat().st_mtime if holds_a_run(path) else 0.0,
            default=base,
        )
        if not holds_a_run(newest):
            raise UserError(
                f"there is nothing to resume in {newest}",
                remedy="start it without --resume, or name the run with --out_dir (tiny-transformer runs lists them)",
            )
        return newest
    if not holds_a_run(base) or request.overwrite:
        return base
    if asked:
        raise UserError(
            f"{base} already holds a run",
            remedy="--resume continues it, --overwrite replaces it, another --out_dir leaves it alone",
        )
    number = 2
    while holds_a_run(base.with_name(f"{base.name}-{number}")):
        number += 1
    return base.with_name(f"{base.name}-{number}")


def settle_data_dir(request: Request) -> RunConfig:
    """The config with `data.data_dir` filled in, so that the saved one leads back to the data from any start.

    Raises:
        UserError: a directory without prepared data was named, and no source: nobody asked for stories there.
    """
    data = request.config.data
    if data.data_dir is not None and "source" not in data.model_fields_set and not is_prepared(data.data_dir):
        raise UserError(
            f"{data.data_dir} holds no prepared data, and no data.source says what to prepare there",
            where=str(data.data_dir),
            remedy=f"tiny-transformer prepare --source TEXT --out_dir {data.data_dir}, or train with --source stories",
        )
    data = data.model_copy(update={"data_dir": data.data_dir or Path("data") / request.name})
    return request.config.model_copy(update={"data": data})


def open_training_data(config: RunConfig, console: Console) -> Dataset:
    """The prepared token files; made from `data.source` when they are missing."""
    data, data_dir = config.data, config.data.data_dir
    assert data_dir is not None  # settle_data_dir filled it in
    if not is_prepared(data_dir):
        console.print(f"preparing {data.source} in {data_dir}", highlight=False, markup=False)
        prepare_with_progress(
            data.source,
            console=console,
            out_dir=data_dir,
            tokenizer=data.tokenizer,
            vocab_size=data.vocab_size,
            seq_len=data.seq_len,
            max_bytes=data.max_bytes,
            val_fraction=data.val_fraction,
            text_field=data.text_field,
        )
    return open_dataset(data_dir)


def fit_vocabulary(config: RunConfig, dataset: Dataset, console: Console) -> RunConfig:
    """The config with `model.vocab_size` taken from the tokenizer, or raised to it when it is too small."""
    needed, asked = dataset.tokenizer.vocab_size, config.model.vocab_size
    if asked is not None and asked >= needed:
        return config
    if asked is not None:
        console.print(
            f"model.vocab_size {asked} is too small for this tokenizer's ids: using {needed}", highlight=False
        )
    model = config.model.model_copy(update={"vocab_size": needed})
    return config.model_copy(update={"model": model})
