"""Starting from a checkpoint's weights (`init_from`): what a run takes over, and what must agree with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import DataConfig, RunConfig
from tiny_transformer.config.shapes import ModelConfig
from tiny_transformer.errors import UserError, command_line
from tiny_transformer.models import load_config
from tiny_transformer.models.config_file import read_config, refuse_classifier
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.stages.stage import Request, Stage
from tiny_transformer.storage.runs import CONFIG_FILE
from tiny_transformer.tokenizers import load_tokenizer, tell_apart

MADE_HERE = ("byte", "char", "bpe")  # tokenizers that are made for the text at hand
FRESH = {"zero_residual", "previous_token_init"}  # keys of `training` about weights that are drawn


def take_over(request: Request, run_dir: Path, console: Console) -> Request:
    """The request with shape and tokenizer of the checkpoint that `init_from` names, and a sentence that says so. A
    resumed run has taken them over at its start, and keeps them.

    Raises:
        UserError: no whole checkpoint there, or a key that was set to something else than the checkpoint has.
    """
    config = request.config
    if config.init_from is None:
        return request
    if request.resume:
        return replace(request, config=_as_at_its_start(config, run_dir))
    checkpoint, _ = find_checkpoint(config.init_from)
    if request.overwrite and checkpoint.resolve().is_relative_to(run_dir.resolve()):
        raise UserError(
            f"{checkpoint} belongs to the run that --overwrite would replace",
            where="init_from",
            remedy="choose another --out_dir",
        )
    shape = load_config(checkpoint)
    refuse_classifier(read_config(checkpoint)[0], checkpoint)
    if config.stage == "pretrain":
        _refuse_quantized(checkpoint)
    _refuse_another_shape(config, shape, checkpoint)
    _refuse_another_tokenizer(config, checkpoint)
    asked = config.data.model_fields_set if request.asked is None else request.asked
    data = _data_for(config.data, shape, checkpoint)
    console.print(
        f"starting from {checkpoint}: weights, shape ({shape.model_type}, {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}) and tokenizer are taken from it; optimizer, schedule and step count start afresh",
        markup=False,
        highlight=False,
    )
    if idle := sorted(key for key in FRESH & config.training.model_fields_set if getattr(config.training, key)):
        what = f"{' and '.join(idle)} say{'s' * (len(idle) == 1)} how random weights begin, and nothing about these"
        console.print(what, markup=False, highlight=False)
    config = config.model_copy(update={"init_from": checkpoint, "model": shape, "data": data})
    return replace(request, config=config, asked=frozenset({"tokenizer", *asked}))


def check_tokenizer(request: Request, stage: Stage) -> None:
    """Refuse data whose ids mean something else to the model that a run starts from.

    Raises:
        UserError: the data was prepared with another tokenizer than the checkpoint's.
    """
    checkpoint = stage.config.init_from
    if checkpoint is None or request.resume or stage.adds_tokens:
        return
    own, shape = load_tokenizer(checkpoint), stage.config.model
    if own.fingerprint != stage.tokenizer.fingerprint:
        its, models = tell_apart(stage.tokenizer, own)
        raise UserError(
            f"the data was prepared with a different tokenizer ({its}) from that of {checkpoint} ({models})",
            where=str(stage.config.data.data_dir),
            remedy=f"leave out --tokenizer, or prepare the text with {command_line('--tokenizer', checkpoint)}",
        )
    if shape.known_vocab_size < own.vocab_size:
        raise UserError(
            f"the model knows {shape.known_vocab_size:,} ids and its tokenizer gives {own.vocab_size:,}",
            where=str(checkpoint),
            remedy="take a checkpoint whose config.json and tokenizer.json belong together",
        )


def _refuse_quantized(checkpoint: Path) -> None:
    """Integers do not learn."""
    kinds = sorted({record["kind"] for record in read_config(checkpoint)[1]} & {"int8", "int4"})
    if kinds:
        raise UserError(
            f"the weights in {checkpoint} are rounded to {' and '.join(kinds)}, and integers do not learn",
            where="init_from",
            remedy="start from the checkpoint it was quantized from",
        )


def _refuse_another_shape(config: RunConfig, shape: ModelConfig, checkpoint: Path) -> None:
    """The shape is the checkpoint's; a key that says otherwise was a wish that cannot come true."""
    for key in sorted(config.model.model_fields_set):
        wish, there = getattr(config.model, key), getattr(shape, key, None)
        if wish is not None and there != wish:
            raise UserError(
                f"model.{key} = {wish!r}, but the model in {checkpoint} has {there!r}",
                where="init_from",
                remedy=f"leave out model.{key} (or the preset or file that sets it): the shape is the checkpoint's",
            )


def _refuse_another_tokenizer(config: RunConfig, checkpoint: Path) -> None:
    """Before any text is prepared with it. Of a stage that prepares none nobody would compare it later."""
    data, own = config.data, load_tokenizer(checkpoint).name
    if "tokenizer" not in data.model_fields_set:
        return
    if data.tokenizer in MADE_HERE and data.tokenizer != own:
        raise UserError(
            f"data.tokenizer = {data.tokenizer!r}, but the model in {checkpoint} has a tokenizer of its own ({own})",
            where="init_from",
            remedy="leave out --tokenizer (or the preset or file that sets it)",
        )
    if config.stage != "pretrain":
        OpenCheckpoint(checkpoint).check_tokenizer(data.tokenizer)


def _as_at_its_start(config: RunConfig, run_dir: Path) -> RunConfig:
    """The config of a run to be resumed, with what it has taken over."""
    own = load_run_config(run_dir / CONFIG_FILE)
    _refuse_another_shape(config, own.model, run_dir)
    is_asked = config.stage != "pretrain" and "tokenizer" in config.data.model_fields_set
    if is_asked and config.data.tokenizer != own.data.tokenizer:
        what = f"data.tokenizer is {config.data.tokenizer!r}, and this run goes on with {own.data.tokenizer!r}"
        raise UserError(what, where=str(run_dir / CONFIG_FILE), remedy="leave out --tokenizer")
    taken = {key: getattr(own.data, key) for key in ("tokenizer", "seq_len") if key not in config.data.model_fields_set}
    data = config.data.model_copy(update=taken)
    return config.model_copy(update={"init_from": own.init_from, "model": own.model, "data": data})


def _data_for(data: DataConfig, shape: ModelConfig, checkpoint: Path) -> DataConfig:
    """The data section with the checkpoint's tokenizer, and sequences that the model can read."""
    changes: dict[str, Any] = {}
    if "tokenizer" not in data.model_fields_set:
        changes["tokenizer"] = str(checkpoint)
    if data.seq_len > shape.max_position_embeddings:
        if "seq_len" in data.model_fields_set:
            raise UserError(
                f"data.seq_len {data.seq_len} is longer than the context of the model in {checkpoint}, "
                f"{shape.max_position_embeddings} tokens",
                where="data.seq_len",
                remedy=f"--seq_len {shape.max_position_embeddings} or less",
            )
        changes["seq_len"] = shape.max_position_embeddings
    return data.model_copy(update=changes)
