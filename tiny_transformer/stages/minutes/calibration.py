"""What `train --minutes` does before the run: time real steps of a few models and let `autopilot` choose."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.config.shapes import SHAPES, ModelConfig
from tiny_transformer.costs.accounting import count_parameters
from tiny_transformer.data.meta import Meta
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.stages.attention import uses_blocks
from tiny_transformer.stages.minutes import autopilot, words
from tiny_transformer.stages.minutes.autopilot import Candidate, Choice, Corpus, Length, SpeedModel
from tiny_transformer.stages.minutes.compiling import decide_compiling
from tiny_transformer.stages.stage import Stage
from tiny_transformer.stages.summary import overruled
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.modifiers import checkpoint_gradients, compile_backbone, use_blocked_attention
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.speed import measure_seconds

SHAPE_KEYS = {
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    "intermediate_size",
}
FIRST_PROBES = ((2, 2_048), (0, 512), (4, 1_024))  # place on the ladder and tokens of the models timed first
MOST_PROBES = 6
GROWTH = 6  # a model is timed before one of more than so many times its arithmetic is believed in


def take_choice(
    config: RunConfig,
    meta: Meta,
    trial: Callable[[RunConfig], Stage],
    hardware: Hardware,
    processes: Processes,
    console: Console,
    *,
    explain: bool = False,
) -> RunConfig:
    """The config with everything filled in that its author has not set, for `training.max_train_minutes`.

    Whoever sets one key of the model's shape keeps the whole shape; then only batch, rates and length are chosen.

    Args:
        config: the size of its vocabulary is that of the data.
        meta: of the data.
        trial: the stage of a config, on this data; what its steps take is timed.
        hardware: this machine's.
        processes: of this run.
        console: where the choice is told.
        explain: tell the reasons too.

    Raises:
        UserError: a kind of model whose shape is not chosen here, or a run shared by several processes.
    """
    if processes.world_size > 1:
        raise UserError(
            f"--minutes works with one process, but {processes.world_size} were started",
            where="command line",
            remedy="choose with one process, then train its config.yaml with all of them, with --max_train_minutes",
        )
    assert config.training.max_train_minutes is not None  # the caller's promise
    begun = time.monotonic()
    with console.status("timing a few models"):
        choice, corpus, at_minutes = _measure_and_choose(config, meta, trial, hardware)
    chosen = autopilot.settings(
        choice, corpus, on_cpu=hardware.device.type == "cpu", optimizer=_said(config, "training", "optimizer", "muon")
    )
    chosen["training"]["previous_token_init"] = overlay(config, chosen).model.look_back_refusal() is None
    minutes, set_by_hand = config.training.max_train_minutes, config.training.model_fields_set
    words.tell(choice, corpus, minutes=minutes, at_minutes=at_minutes, console=console)
    if explain:
        words.explain(choice, corpus, minutes=minutes, set_by_hand=set_by_hand, console=console)
    return decide_compiling(
        overlay(config, chosen),
        lambda candidate: _step_seconds(trial(candidate), hardware, 60 * minutes),
        hardware,
        console,
        lambda: min(60 * minutes - (time.monotonic() - begun), choice.best.steps * choice.best.step_seconds),
    )


def overlay(config: RunConfig, chosen: dict[str, dict[str, Any]]) -> RunConfig:
    """What was chosen, under what the config's author has set."""
    said = {key: value for key, value in config.model_dump(exclude_unset=True).items() if value is not None}
    for section, keys in chosen.items():
        own = said.get(section, {})
        if section == "model" and SHAPE_KEYS & own.keys():
            keys = {}
        if section == "training" and {"micro_batch_size", "grad_accum_steps"} & own.keys():
            keys = {key: value for key, value in keys.items() if key not in ("micro_batch_size", "grad_accum_steps")}
        said[section] = {**keys, **own}
    said["model"]["model_type"] = config.model.model_type
    found = load_run_config(said)
    idle = overruled(found.training).keys() - config.training.model_fields_set
    said["training"] = {key: value for key, value in said["training"].items() if key not in idle}
    return load_run_config(said) if idle else found


def _measure_and_choose(
    config: RunConfig, meta: Meta, trial: Callable[[RunConfig], Stage], hardware: Hardware
) -> tuple[Choice, Corpus, Callable[[float], Choice]]:
    """Time models, from the demo's size towards the chosen one, until that one has been timed itself. Also gives the
    choice for any other number of minutes, as far as those timings tell."""
    training, vocab_size = config.training, config.model.known_vocab_size
    seconds = 60 * (training.max_train_minutes or 0.0)
    corpus = Corpus(meta.train.num_tokens, meta.val.num_tokens, meta.train.num_documents, vocab_size)
    context = _said(config, "model", "max_position_embeddings", autopilot.LONGEST)
    seq_len = _said(config, "data", "seq_len", min(corpus.seq_len, context))
    rows, length = None, Length(training.steps, training.max_tokens)
    if {"micro_batch_size", "grad_accum_steps"} & training.model_fields_set:
        rows = training.examples_per_step
    candidates = _candidates(config.model, seq_len)
    started = time.monotonic()
    first = FIRST_PROBES if seconds > 30 else FIRST_PROBES[:2]
    if len(candidates) == 1:
        first = ((0, 2_048), (0, 512))
    probes = [(candidates[place], rows or max(1, tokens // seq_len)) for place, tokens in first]
    timings: list[tuple[Candidate, int, float]] = []
    while True:
        for probe, probe_rows in probes:
            took = _step_seconds(trial(_trial_config(config, probe, probe_rows, seq_len)), hardware, seconds)
            timings.append((probe, probe_rows * seq_len, took))
        left = max(0.5 * seconds, seconds - (time.monotonic() - started))
        most = GROWTH * max(candidate.token_operations for candidate, _, _ in timings)
        believed = [c for c in candidates if c.token_operations <= most] or candidates
        choice = autopilot.choose(left, corpus, SpeedModel.fit(timings), believed, seq_len, rows, length)
        probes = [(choice.best.candidate, min(choice.best.rows, max(1, 8192 // seq_len)))]
        if any(choice.best.candidate == timed for timed, _, _ in timings) or len(timings) >= MOST_PROBES:
            break
    speed = SpeedModel.fit(timings)
    return choice, corpus, lambda m: autopilot.choose(60 * m, corpus, speed, candidates, seq_len, rows)


def _candidates(model: ModelConfig, seq_len: int) -> list[Candidate]:
    if SHAPE_KEYS & model.model_fields_set:
        parts, active = count_parameters(model)
        attention = 6.0 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * seq_len
        shape = {"num_hidden_layers": model.num_hidden_layers}
        return [Candidate(shape, parts.total(), parts.total(), 6.0 * active + attention, 0.0, 0.0)]
    if not model.minutes_ladder:
        known = ", ".join(name for name, shape in SHAPES.items() if shape.minutes_ladder)
        raise UserError(
            f"--minutes chooses the size of {known} models; what size suits a {model.model_type} is not known",
            where="model.model_type",
            remedy="give its size in a config (hidden_size, num_hidden_layers and so on), such as "
            "configs/qwen3_next_demo.json",
        )
    return autopilot.ladder(model.known_vocab_size, seq_len)


def _trial_config(config: RunConfig, candidate: Candidate, rows: int, seq_len: int) -> RunConfig:
    """The config with a candidate in it, to be timed."""
    model = {**candidate.model, "max_position_embeddings": max(autopilot.LONGEST, seq_len)}
    training = {"optimizer": "muon", "micro_batch_size": rows, "grad_accum_steps": 1}
    tried = overlay(config, {"model": model, "data": {"seq_len": seq_len}, "training": training})
    plain = tried.training.model_copy(update={"compile": False})  # each size would be compiled anew
    return tried.model_copy(update={"training": plain})


def _step_seconds(stage: Stage, hardware: Hardware, budget: float) -> float:
    """The median time of an update as this stage makes it, on a fresh model; few repetitions where time is short."""
    training, model = stage.config.training, stage.build_model(str(hardware.device))
    if training.gradient_checkpointing:
        checkpoint_gradients(model)
    if uses_blocks(stage.config, hardware):
        use_blocked_attention(model)
    optimizers = Optimizers(model, training, hardware.update_dtype)
    if training.compile:
        model = compile_backbone(model)
    micro_batches = list(stage.batches(rank=0, world_size=1).micro_batches(0, training.micro_batch_size))

    def one_step() -> None:
        compute_gradient(model, micro_batches, 0, training, hardware, stage.loss)
        optimizers.step(0.0)

    return measure_seconds(one_step, at_least_seconds=min(1.0, 0.005 * budget), warm_up=1)


def _said(config: RunConfig, section: str, key: str, otherwise: Any) -> Any:
    """What the config's author has set, or else something."""
    part = getattr(config, section)
    return getattr(part, key) if key in part.model_fields_set else otherwise
