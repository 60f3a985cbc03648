"""The prepared data that a checkpoint is measured on: which it is, and how the model reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tiny_transformer.config.load import config_name, load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.meta import read_meta
from tiny_transformer.data.prepare.command import is_prepared
from tiny_transformer.data.token_file import Dataset, open_dataset
from tiny_transformer.errors import UserError, command_line
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.storage.runs import STATE_DIRECTORY, load_identity, readable_states, started_in
from tiny_transformer.tokenizers import tell_apart


def open_data(opened: OpenCheckpoint, data_dir: Path) -> Dataset:
    """Prepared data for a model to read.

    Raises:
        UserError: it was prepared with another tokenizer than the model's, or see `open_dataset`.
    """
    dataset = open_dataset(data_dir)
    if not opened.tokenizer.writes_texts_as(dataset.tokenizer):
        its, models = tell_apart(dataset.tokenizer, opened.tokenizer)
        raise UserError(
            f"{data_dir} was prepared with another tokenizer ({its}) than the model's ({models})",
            where=str(data_dir),
            remedy="prepare the text with the model's: "
            + command_line("tiny-transformer", "prepare", "--tokenizer", opened.path, "..."),
        )
    return dataset


def how_it_reads(opened: OpenCheckpoint, dataset: Dataset) -> tuple[int, str]:
    """Length of a sequence and packing: as the model was trained, else as the data was prepared."""
    config = opened.run_config
    if config is None:
        return min(dataset.meta.seq_len, opened.config.max_position_embeddings), "concat"
    return config.data.seq_len, config.data.packing


def data_of_config(config: Path) -> Path:
    """Where a run of a config finds its prepared data: in the directory that it names, else in `data/NAME`.

    Raises:
        UserError: see `load_run_config`; there is nothing.
    """
    data_dir = load_run_config(config).data.data_dir or Path("data") / config_name(config)
    if not is_prepared(data_dir):
        remedy = "--data_dir names prepared data; without --config it is what the run learnt from"
        raise UserError(f"{data_dir}, the data of this config, is not prepared", where=str(config), remedy=remedy)
    return data_dir


def data_dir_of(checkpoint: Path, config: RunConfig | None) -> Path:
    """What the run was trained on: where its config says, seen from here or from where it was started, else beneath
    data/; in each place only if it is the same data."""
    if config is None:
        raise UserError(
            f"{checkpoint} does not say what it was trained on",
            where=str(checkpoint),
            remedy="name prepared data with --data_dir (tiny-transformer prepare makes it)",
        )
    if config.stage != "pretrain":
        raise UserError(
            f"this run learnt from {config.data.source} in the stage {config.stage}, not from prepared data",
            where=str(checkpoint),
            remedy="--data_dir DIR measures it on prepared data; its own loss stands in its report",
        )
    asked, places = config.data.data_dir, [Path("data"), *sorted(Path("data").glob("*"))]
    if asked is not None:
        homes = started_in(checkpoint.resolve().parent)
        places = [asked, *(Path(os.path.relpath(home / asked)) for home in homes), *places]
    fingerprints = _identity_of(checkpoint).values()
    for place in dict.fromkeys(places):
        if is_prepared(place) and read_meta(place).fingerprint in fingerprints:
            return place
    if asked is not None and is_prepared(asked):
        raise UserError(
            f"{asked} does not hold the data that this run was trained on",
            where=str(checkpoint),
            remedy=f"--data_dir {asked} measures on it all the same",
        )
    raise UserError(
        f"the data this run was trained on is not in {asked or 'data'}/ any more",
        where=str(checkpoint),
        remedy="name it with --data_dir, or other data prepared with the same tokenizer",
    )


def _identity_of(checkpoint: Path) -> dict[str, Any]:
    """What the run was that a checkpoint is of; a quantized copy beside the checkpoints has no state of its own."""
    if not (checkpoint / STATE_DIRECTORY).is_dir():
        for state in readable_states(checkpoint.resolve().parent):
            return state["identity"]
    return load_identity(checkpoint)
