"""A second stage, so that the engine is seen to know none by name: guess masked letters, with a frozen embedding.

It has a section of its own in the config, a loss that counts a part of the tokens only, and another evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tiny_transformer.config import stages
from tiny_transformer.config.schema import RunConfig, Section, setting
from tiny_transformer.data.batches import IGNORE_INDEX, Batches, TokenBatch, evaluation_batches
from tiny_transformer.data.token_file import Dataset, open_dataset
from tiny_transformer.evaluation.loss import evaluate_split
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.parallel.sharing import Sharing
from tiny_transformer.stages import stage
from tiny_transformer.stages.stage import Request, RunResult, Stage
from tiny_transformer.training.contract import Evaluation
from tiny_transformer.training.losses import language_modelling_loss


class MaskConfig(Section):
    """What the toy adds to a config."""

    every: int = setting(3, "refuse", ge=1)
    """One target in so many counts."""


class ToyConfig(RunConfig):
    """A config with a section more."""

    mask: MaskConfig = MaskConfig()
    """The masked loss."""


class ToyStage(Stage):
    """Masked targets over a frozen embedding."""

    checks = ("overfitting", "rate_too_high")

    def __init__(self, config: ToyConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset.tokenizer)
        self.dataset, self.every = dataset, config.mask.every

    @classmethod
    def open(cls, request: Request, run_dir: Path, hardware: Hardware, processes: Processes, console: Console) -> Self:
        config: Any = request.config
        dataset = open_dataset(config.data.data_dir)
        model = config.model.model_copy(update={"vocab_size": dataset.tokenizer.vocab_size})
        return cls(config.model_copy(update={"model": model}), dataset)

    def build_model(self, device: torch.device | str) -> CausalLM:
        model = super().build_model(device)
        model.model.embed_tokens.requires_grad_(False)
        return model

    def batches(self, rank: int, world_size: int) -> MaskedBatches:
        training = self.config.training
        rows = training.micro_batch_size * training.grad_accum_steps
        options = {"seq_len": self.config.data.seq_len, "global_batch_size": rows, "seed": training.seed}
        return MaskedBatches(self.dataset.train, self.every, **options, rank=rank, world_size=world_size)

    def loss(self, model: CausalLM, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
        loss_sum, figures = language_modelling_loss(model, batch)
        return loss_sum, {**figures, "masked_targets": float(batch.num_targets)}

    def evaluation_batches(self) -> Iterable[TokenBatch]:
        return evaluation_batches(self.dataset.val, seq_len=self.config.data.seq_len, batch_size=4)

    def evaluate(self, model: CausalLM, batches: Iterable[Any], hardware: Hardware, sharing: Sharing) -> Evaluation:
        masked = (masked_batch(batch, self.every) for batch in batches)
        loss = evaluate_split(model, masked, num_bytes=1, hardware=hardware, sharing=sharing)
        return Evaluation(loss.nats_per_token, {"masked_loss": loss.nats_per_token})

    def fingerprints(self) -> dict[str, str]:
        return {"the toy's data": self.dataset.meta.fingerprint}

    def facts(self) -> dict[str, Any]:
        return {"toy": self.every}

    def describe_data(self, total_steps: int) -> str:
        return f"one target in {self.every}"

    def show_figures(self, result: RunResult, console: Console) -> None:
        console.print(f"masked loss {result.state.metrics['masked_loss']:.3f}")

    def show_batch(self, micro_batches: Sequence[Any]) -> Table:
        table = Table("masked micro-batches")
        table.add_row(str(len(micro_batches)))
        return table


class MaskedBatches(Batches):
    """Batches in which one target in `every` counts."""

    def __init__(self, tokens: Any, every: int, **options: Any) -> None:
        super().__init__(tokens, **options)
        self._every = every

    def micro_batches(self, step: int, micro_batch_size: int) -> Any:
        return (masked_batch(batch, self._every) for batch in super().micro_batches(step, micro_batch_size))


def masked_batch(batch: TokenBatch, every: int) -> TokenBatch:
    """The batch with one target in `every`."""
    counts = torch.arange(batch.labels.shape[1]) % every == 0
    labels = torch.where(counts, batch.labels, IGNORE_INDEX)
    return replace(batch, labels=labels, num_targets=int((labels != IGNORE_INDEX).sum()))


def register(patch: pytest.MonkeyPatch) -> None:
    """What adding a stage takes besides its class."""
    patch.setitem(stages.CONFIGS, "toy", ToyConfig)
    patch.setitem(stage.HOMES, "toy", ToyStage)
