"""Starting from a checkpoint's weights (`init_from`): what a run takes over, and what must agree with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tiny_transformer.config.schema import DataConfig, RunConfig
from tiny_transformer.config.shapes import ModelConfig
from tiny_transformer.errors import UserError
from tiny_transformer.models import load_config
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.stages.stage import Request, Stage
from tiny_transformer.tokenizers import load_tokenizer


def take_over(request: Request, console: Console) -> Request:
    """The request with shape and tokenizer of the checkpoint that `init_from` names, and a sentence that says so.

    Raises:
        UserError: no whole checkpoint there, or a key of the model that was set to something else than it has.
    """
    config = request.config
    if config.init_from is None or request.resume:
        return request
    checkpoint, _ = find_checkpoint(config.init_from)
    shape = load_config(checkpoint)
    _refuse_another_shape(config, shape, checkpoint)
    data = _data_for(config.data, shape, checkpoint)
    console.print(
        f"starting from {checkpoint}: weights, shape ({shape.model_type}, {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}) and tokenizer are taken over; optimizer, schedule and step count start anew",
        markup=False,
        highlight=False,
    )
    config = config.model_copy(update={"init_from": checkpoint, "model": shape, "data": data})
    asked = data.model_fields_set if request.asked is None else request.asked | {"tokenizer"}
    return replace(request, config=config, asked=frozenset(asked))


def check_tokenizer(request: Request, stage: Stage) -> None:
    """Refuse data whose ids mean something else to the model that a run starts from.

    Raises:
        UserError: the data was prepared with another tokenizer than the checkpoint's.
    """
    checkpoint = stage.config.init_from
    if checkpoint is None or request.resume:
        return
    own, shape = load_tokenizer(checkpoint), stage.config.model
    if own.fingerprint != stage.tokenizer.fingerprint:
        raise UserError(
            f"the data was prepared with another tokenizer ({stage.tokenizer.name}) than that of {checkpoint}",
            where=str(stage.config.data.data_dir),
            remedy=f"leave --tokenizer away, or prepare the text with --tokenizer {checkpoint}",
        )
    if shape.known_vocab_size < own.vocab_size:
        raise UserError(
            f"the model knows {shape.known_vocab_size:,} ids and its tokenizer gives {own.vocab_size:,}",
            where=str(checkpoint),
            remedy="take a checkpoint whose config.json and tokenizer.json belong together",
        )


def _refuse_another_shape(config: RunConfig, shape: ModelConfig, checkpoint: Path) -> None:
    """The shape is the checkpoint's; a key that says otherwise was a wish that cannot come true."""
    named = config.model.model_fields_set - {"model_type"}
    wishes: dict[str, Any] = {key: getattr(config.model, key) for key in named}
    if not named or config.model.model_type != "qwen3":  # any key of a model makes it one of the default type
        wishes |= dict.fromkeys(config.model.model_fields_set & {"model_type"}, config.model.model_type)
    for key, wish in wishes.items():
        there = getattr(shape, key, None)
        if there != wish:
            raise UserError(
                f"model.{key} = {wish!r}, and the model in {checkpoint} has {there!r}",
                where="init_from",
                remedy="leave the key away: the shape is the checkpoint's. Or train without init_from",
            )


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
