"""Small real runs for the diagnosis: sixteen with one fault each and eleven healthy ones, made once per test session.

They run on a clock of their own, on which time passes by what is done, so that a busy machine changes no answer.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data import batches
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.stages import run as pretrain
from tiny_transformer.stages import stage
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training import loop
from tiny_transformer.training.losses import language_modelling_loss

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
TRAINING = {
    "device": "cpu",
    "precision": "fp32",
    "steps": 120,
    "micro_batch_size": 8,
    "optimizer": "muon",
    "muon_learning_rate": 0.02,
    "learning_rate": 5e-3,
    "eval_steps": 60,
    "save_steps": None,
    "log_steps": 1,
    "sample_prompts": [],
}
TOKEN_SECONDS = 1e-5  # a token's way through the model, on the made-up clock; there and back takes three times that
SAVE_SECONDS = 0.05
Hook = Callable[[pytest.MonkeyPatch], None]


def no_hook(patch: pytest.MonkeyPatch) -> None:
    """A fault that is in the settings."""


@dataclass(frozen=True)
class Recipe:
    """How a run is made.

    Attributes:
        training, model: settings that differ from the ones above.
        data: which of the prepared texts.
        seq_len: T.
        hook: plants what no setting can.
        finding: the key of the finding that is expected; None for a healthy run.
        also: findings that may stand beside it, because the fault brings them along.
        busy_after: the step from which the machine is at work on other things too, and a third as fast.
    """

    finding: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: str = "stories"
    seq_len: int = 64
    hook: Hook = no_hook
    also: frozenset[str] = frozenset()
    busy_after: int | None = None


class Clock:
    """Where time passes only when tokens go through the model or a checkpoint is saved."""

    def __init__(self, busy_after: int | None) -> None:
        self.now, self._num_passes, self._busy_after = 0.0, 0, busy_after

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def read_tokens(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """A hook for the embedding."""
        is_training = torch.is_grad_enabled()
        self._num_passes += is_training
        is_busy = self._busy_after is not None and self._num_passes > self._busy_after
        self.now += TOKEN_SECONDS * inputs[0].numel() * (3 if is_training else 1) * (3 if is_busy else 1)

    def rule(self, patch: pytest.MonkeyPatch) -> None:
        """Be the clock of the run."""
        build, publish = stage.build_model, RunDirectory.publish_step

        def build_watched(*arguments: Any, **options: Any) -> Any:
            model = build(*arguments, **options)
            model.model.embed_tokens.register_forward_pre_hook(self.read_tokens)
            return model

        def publish_slowly(directory: RunDirectory, step: int) -> Any:
            self.now += SAVE_SECONDS
            return publish(directory, step)

        patch.setattr(stage, "build_model", build_watched)
        patch.setattr(RunDirectory, "publish_step", publish_slowly)
        patch.setattr(loop.time, "monotonic", self.monotonic)


def shuffled_labels(patch: pytest.MonkeyPatch) -> None:
    chance = torch.Generator().manual_seed(0)

    def loss(model: Any, batch: batches.TokenBatch) -> Any:
        order = torch.randperm(batch.labels.numel(), generator=chance)
        labels = batch.labels.flatten()[order].view_as(batch.labels)
        return language_modelling_loss(
            model, batches.TokenBatch(batch.input_ids, labels, batch.num_targets, batch.sample_ids)
        )

    patch.setattr("tiny_transformer.stages.pretrain.language_modelling_loss", loss)


def labels_not_shifted(patch: pytest.MonkeyPatch) -> None:
    make = batches._make_batch

    def same(*arguments: Any) -> batches.TokenBatch:
        made = make(*arguments)
        labels = torch.where(made.labels == batches.IGNORE_INDEX, made.labels, made.input_ids)
        return batches.TokenBatch(made.input_ids, labels, made.num_targets, made.sample_ids)

    patch.setattr(batches, "_make_batch", same)


def frozen_layer(patch: pytest.MonkeyPatch) -> None:
    build = stage.build_model

    def frozen(*arguments: Any, **options: Any) -> Any:
        model = build(*arguments, **options)
        for weight in model.model.layers[1].parameters():
            weight.register_hook(torch.zeros_like)
        return model

    patch.setattr(stage, "build_model", frozen)


def stopped_at(step: int) -> Hook:
    def hook(patch: pytest.MonkeyPatch) -> None:
        inner = loop.train
        patch.setattr(pretrain, "train", lambda job, state, _: inner(job, state, lambda: state.step >= step))

    return hook


ADAMW = {"optimizer": "adamw", "learning_rate": 7e-3, "steps": 240}
FAULTS = {
    "few texts by heart": Recipe(
        "overfitting",
        {"eval_steps": 10, "schedule": "constant"},
        data="few stories",
        also=frozenset({"data repeated", "validation split tiny"}),
    ),
    "rate beyond all reason": Recipe(
        "rate too high", ADAMW | {"learning_rate": 3.0, "schedule": "constant", "steps": 120}
    ),
    "rate that rises until it breaks": Recipe(
        "rate too high", ADAMW | {"learning_rate": 2.0, "warmup_steps": 60, "grad_clip": None, "steps": 120}
    ),
    "rate of nearly nothing": Recipe("rate too low", ADAMW | {"learning_rate": 3e-6, "steps": 120}),
    "nine epochs": Recipe("data repeated", {"eval_steps": None}, data="nine times"),
    "shuffled labels": Recipe("stuck", hook=shuffled_labels),
    "labels not shifted": Recipe("below the floor", hook=labels_not_shifted),
    "frozen layer": Recipe("dead layers", hook=frozen_layer),
    "clipped to nothing": Recipe("clipped every step", {"grad_clip": 0.01}),
    "busy machine": Recipe("slowed down", {"eval_steps": None}, busy_after=50),
    "evaluates all the time": Recipe("overhead", {"eval_steps": 1, "steps": 20}),
    "saves all the time": Recipe(
        "overhead",
        {"save_steps": 1, "eval_steps": None, "steps": 30, "micro_batch_size": 2},
        also=frozenset({"batch too small"}),
    ),
    "eight tokens a step": Recipe("batch too small", {"micro_batch_size": 1, "eval_steps": None}, seq_len=8),
    "no warm-up": Recipe("no warm-up", {"learning_rate": 0.5, "warmup_steps": 0}),
    "tiny validation split": Recipe("validation split tiny", data="tiny validation"),
    "stopped half-way": Recipe("stopped before the decay ended", hook=stopped_at(60)),
}
HEALTHY = {
    "muon": Recipe(),
    "another seed": Recipe(training={"seed": 7}),
    "adamw": Recipe(training=ADAMW),
    "muon from zero": Recipe(training={"zero_residual": True, "seed": 3}),
    "deeper": Recipe(model={"num_hidden_layers": 4}),
    "llama": Recipe(training={"seed": 5}, model={"model_type": "llama"}),
    "constant rate": Recipe(training=ADAMW | {"schedule": "constant"}),
    "wsd": Recipe(training={"schedule": "wsd", "seed": 11}),
    "dropout": Recipe(training={"dropout": 0.1}),
    "in bf16, where there is any": Recipe(training={"precision": "bf16"}),
    "accumulated": Recipe(training={"micro_batch_size": 4, "grad_accum_steps": 4}),  # a row a step, as all of them
}


def prepare_texts(directory: Path) -> dict[str, Path]:
    """The texts of the recipes, as bytes."""
    texts = {
        "stories": {"max_bytes": 500_000, "val_fraction": 0.025},
        "few stories": {"max_bytes": 8_000, "val_fraction": 0.4},
        "nine times": {"max_bytes": 7_300, "val_fraction": 0.05},
        "tiny validation": {"max_bytes": 300_000, "val_fraction": 0.005},
    }
    for name, options in texts.items():
        prepare(DataConfig(source="stories", tokenizer="byte", seq_len=64, **options), directory / name)
    return {name: directory / name for name in texts}


def make(recipe: Recipe, data_dirs: dict[str, Path], run_dir: Path) -> Path:
    """Run a recipe."""
    tree = {
        "model": MODEL | recipe.model,
        "data": {"seq_len": recipe.seq_len, "data_dir": str(data_dirs[recipe.data])},
        "training": TRAINING | recipe.training,
        "out_dir": str(run_dir),
    }
    with pytest.MonkeyPatch.context() as patch:
        Clock(recipe.busy_after).rule(patch)
        recipe.hook(patch)
        launch(Request(load_run_config(tree), "planted", command=["test"]), Console(file=io.StringIO()))
    return run_dir


def thinned(log: list[dict[str, Any]], log_steps: int) -> list[dict[str, Any]]:
    """The rows that a run would have written at another `log_steps`, from those of one that logged each step."""
    rows, tokens, seconds = [], 0.0, 0.0
    for row in log:
        made = row["num_tokens"] - (rows[-1]["num_tokens"] if rows else 0) - tokens
        tokens, seconds = tokens + made, seconds + made / row["tokens_per_second"]
        if loop.is_log_step(row["step"], log_steps) or "val_loss" in row or row is log[-1]:
            rows.append(row | {"tokens_per_second": tokens / seconds})
            tokens, seconds = 0.0, 0.0
    return rows
