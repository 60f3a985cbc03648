"""The data of a pretraining run: which directory, whether it holds what was asked for, what the config says after it.

A resumed run may have been moved to another directory, name or machine; its data is looked for.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.config.secrets import last_parts
from tiny_transformer.data.meta import META_FILE, Meta, not_prepared, read_meta
from tiny_transformer.data.openings import openings
from tiny_transformer.data.prepare.command import is_prepared, prepare_with_progress
from tiny_transformer.data.prepare.request import differences, prepare_command, recorded
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.data.token_file import Dataset, open_dataset, unigram_nats
from tiny_transformer.errors import UserError
from tiny_transformer.stages.resume_check import DATA
from tiny_transformer.stages.stage import Request
from tiny_transformer.storage.runs import readable_states, started_in

EVALUATED_STEPS = 8  # whose tokens an evaluation reads at most


def settle_data_dir(request: Request, run_dir: Path, console: Console) -> RunConfig:
    """The config with `data.data_dir` filled in, so that the saved one leads back to the data from any start.

    Without a directory of its own a run takes `data/NAME`, or the first of `data/NAME-2`, ... that holds what the
    config asks for or nothing yet. A resumed run takes the data that it has learnt from.

    Raises:
        UserError: the directory that was named holds other data than was asked for, or none and nobody said which; a
            resumed run's data is not there.
    """
    data = request.config.data
    if request.resume:
        data_dir = _data_of_run(request, run_dir)
        _compare(request, data_dir, console)
    elif data.data_dir is None:
        data_dir = _free_data_dir(request, console)
    else:
        data_dir = data.data_dir
        if is_prepared(data_dir):
            _compare(request, data_dir, console)
        elif "source" not in data.model_fields_set:
            raise not_prepared(data_dir)
    return request.config.model_copy(update={"data": data.model_copy(update={"data_dir": data_dir})})


def _free_data_dir(request: Request, console: Console) -> Path:
    """`data/NAME`, or the first of its followers that holds what is asked for or nothing."""
    data = request.config.data
    first = data_dir = Path("data") / (request.data_name or request.name)
    number, reason = 1, ""
    while is_prepared(data_dir) and (found := differences(data, read_meta(data_dir))):
        reason = reason or "; ".join(found)
        number += 1
        data_dir = first.with_name(f"{first.name}-{number}")
    if reason:
        verb = "reading" if is_prepared(data_dir) else "using"
        console.print(f"{verb} {data_dir}: {first} holds different data ({reason})", markup=False, highlight=False)
    return data_dir


def _data_of_run(request: Request, run_dir: Path) -> Path:
    """The data directory of a run that was trained before, perhaps elsewhere. Nothing is prepared for such a run.

    A relative path is looked for from here and from where the run was started, and the one with the data that the run
    was trained on is taken.
    """
    asked = request.config.data.data_dir or Path("data") / (request.data_name or request.name)
    places = dict.fromkeys([asked, *(Path(os.path.relpath(home / asked)) for home in started_in(run_dir))])
    prepared = [place for place in places if is_prepared(place)]
    if not prepared:
        raise UserError(
            f"the data of this run, {asked}, is missing",
            where=str(run_dir),
            remedy="say where it is now: --resume --data_dir DIR; if it is gone, prepare it again exactly as before",
        )
    trained_on = _fingerprint_of_run(run_dir)
    return next((place for place in prepared if _fingerprint(place) == trained_on), prepared[0])


def _fingerprint(data_dir: Path) -> str | None:
    with suppress(UserError):
        return read_meta(data_dir).fingerprint
    return None


def _fingerprint_of_run(run_dir: Path) -> str | None:
    return next((state["identity"].get(DATA) for state in readable_states(run_dir)), None)


def _compare(request: Request, data_dir: Path, console: Console) -> None:
    """Refuse data that differs in what was asked for; say where it differs from the rest of the config."""
    data, meta = request.config.data, read_meta(data_dir)
    asked = data.model_fields_set if request.asked is None else request.asked
    if found := differences(data, meta, asked):
        resumed = "leave that out: a resumed run continues on the data it was trained on"
        kept = {key: value for key, value in recorded(meta).items() if key not in asked}
        command = prepare_command(data.model_copy(update=kept), data_dir)
        raise UserError(
            f"{data_dir} holds different data from what was asked for ({'; '.join(found)})",
            where=str(data_dir / META_FILE),
            remedy=resumed if request.resume else f"{command}; or another --data_dir",
        )
    others = data.model_fields_set - asked
    if not request.resume and (found := differences(data, meta, others)):
        console.print(
            f"{data_dir} is used as it is, though the config describes different data ({'; '.join(found)})",
            markup=False,
            highlight=False,
        )


def open_training_data(config: RunConfig, console: Console) -> Dataset:
    """The prepared token files; made from `data.source` when they are missing."""
    data, data_dir = config.data, config.data.data_dir
    assert data_dir is not None  # settle_data_dir filled it in
    if not is_prepared(data_dir):
        console.print(f"preparing [bold]{escape(data.source)}[/] in {escape(str(data_dir))}", highlight=False)
        prepare_with_progress(data, data_dir, console)
    return open_dataset(data_dir)


def as_read(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The config with what follows from the data: what it was really made from, so that no source is named that was not
    read; its epochs in tokens; prompts that begin as its documents do, where none were asked for."""
    meta, training = dataset.meta, config.training
    if training.epochs is not None:
        tokens = math.ceil(training.epochs * meta.train.num_tokens)
        training = training.model_copy(update={"max_tokens": min(tokens, training.max_tokens or tokens)})
    if "sample_prompts" not in training.model_fields_set and meta.source != STORIES:
        training = training.model_copy(update={"sample_prompts": openings(dataset) or training.sample_prompts})
    data = config.data.model_copy(update=recorded(meta))
    return config.model_copy(update={"data": data, "training": training})


def with_evaluations(config: RunConfig, meta: Meta) -> RunConfig:
    """The config where nobody has said how often to evaluate: each time on no more text than eight steps train on, and
    never without held-out text.

    Raises:
        UserError: the run is to stop early, and there is no held-out text.
    """
    training, told = config.training, dict[str, int | None]()
    if training.eval_steps == "auto" and meta.val.num_tokens < 2:
        if training.early_stopping_patience is not None:
            raise UserError(
                "early_stopping_patience needs validation text, and this data has none",
                remedy="prepare it with a larger --val_fraction, or leave early_stopping_patience out",
            )
        told["eval_steps"] = None
    elif training.eval_steps == "auto" and "eval_tokens" not in training.model_fields_set:
        most = EVALUATED_STEPS * config.tokens_per_step
        told = {"eval_tokens": most} if meta.val.num_tokens > most else {}
    return config.model_copy(update={"training": training.model_copy(update=told)})


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


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """What run_info.json says of the data: its source, its size, and what knows no order of words loses on it."""
    meta = dataset.meta
    return {
        "source": last_parts(meta.source),
        "train_tokens": meta.train.num_tokens,
        "val_tokens": meta.val.num_tokens,
        "val_documents": meta.val.num_documents,
        "val_text": meta.text_fingerprint,
        "unigram_nats": round(unigram_nats(dataset.train), 4),
    }
