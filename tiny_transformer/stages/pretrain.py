"""Pretraining as a stage: prepared token files, cross-entropy of the next token, the loss on held-out text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table
from torch import Tensor

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.batches import Batches, TokenBatch
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.evaluation.skills import chances
from tiny_transformer.evaluation.stories import Reading, fresh_stories
from tiny_transformer.evaluation.validation import validation_batches, validation_loss
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.parallel.sharing import Sharing
from tiny_transformer.stages.examples import show_rows
from tiny_transformer.stages.final_losses import show_losses
from tiny_transformer.stages.minutes.calibration import take_choice
from tiny_transformer.stages.resume_check import DATA, TOKENIZER
from tiny_transformer.stages.stage import Request, RunResult, Stage
from tiny_transformer.stages.summary import show_written_stories
from tiny_transformer.stages.training_data import (
    as_read,
    data_facts,
    fit_vocabulary,
    open_training_data,
    settle_data_dir,
    with_evaluations,
)
from tiny_transformer.training.contract import Evaluation
from tiny_transformer.training.losses import language_modelling_loss

LESSONS = 4  # steps whose tokens a look at the skills may read
MOST_STORIES = 16  # that it reads


class Pretraining(Stage[TokenBatch]):
    """Learn to predict the next token of a text.

    Args:
        config: the resolved config.
        dataset: its token files.
    """

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        super().__init__(config, dataset.tokenizer)
        self.dataset = dataset

    @classmethod
    def open(cls, request: Request, run_dir: Path, hardware: Hardware, processes: Processes, console: Console) -> Self:
        """See `Stage`; with `request.chooses` the config is completed to make the most of its minutes."""
        config = settle_data_dir(request, run_dir, console)
        dataset = open_training_data(config, console) if processes.is_first else None
        processes.barrier()  # the data is there now
        dataset = dataset or open_training_data(config, console)
        config = fit_vocabulary(as_read(config, dataset), dataset, console)
        begun = time.monotonic()
        if request.chooses and not request.resume:
            trial = partial(cls, dataset=dataset)
            config = take_choice(config, dataset.meta, trial, hardware, processes, console, explain=request.explain)
        stage = cls(with_evaluations(config, dataset.meta), dataset)
        stage.spent_seconds = time.monotonic() - begun
        return stage

    def batches(self, rank: int, world_size: int) -> Batches:
        """Windows of the training split."""
        training = self.config.training
        return Batches(
            self.dataset.train,
            seq_len=self.config.data.seq_len,
            global_batch_size=training.examples_per_step,
            seed=training.seed,
            packing=self.config.data.packing,
            rank=rank,
            world_size=world_size,
        )

    def loss(self, model: CausalLM, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of each next token, and what else the model wants to be trained on."""
        return language_modelling_loss(model, batch)

    def evaluation_batches(self) -> Iterator[TokenBatch]:
        """The validation split, or `eval_tokens` of it."""
        return validation_batches(self.config, self.dataset)

    def evaluate(
        self, model: CausalLM, batches: Iterable[TokenBatch], hardware: Hardware, sharing: Sharing
    ) -> Evaluation:
        """The loss on held-out text, in three units; its nats per token decide which checkpoint is the best."""
        loss = validation_loss(model, batches, self.config, self.dataset, hardware, sharing)
        figures = {
            "val_loss": loss.nats_per_token,
            "val_perplexity": loss.perplexity,
            "val_bits_per_byte": loss.bits_per_byte,
        }
        return Evaluation(loss.nats_per_token, figures)

    def fingerprints(self) -> dict[str, str]:
        """Token files and tokenizer by their hashes."""
        return {DATA: self.dataset.meta.fingerprint, TOKENIZER: self.tokenizer.fingerprint}

    def facts(self) -> dict[str, Any]:
        """The best loss possible, where it is known, the tokenizer, the size of the data."""
        return {**super().facts(), "floor": self.dataset.meta.val.floor, "data": data_facts(self.dataset)}

    def describe_data(self, total_steps: int) -> str:
        """The text, its size, and how often the run sees it."""
        meta, tokenizer = self.dataset.meta, self.tokenizer
        passes = self.batches(0, 1).epoch(total_steps)  # as the log counts: without the tokens that fill no sequence
        return (
            f"{meta.source}, {meta.train.num_tokens:,} tokens ({tokenizer.name}, {tokenizer.vocab_size:,} words); "
            f"this run sees {passes:.2f} times that"
        )

    def show_figures(self, result: RunResult, console: Console) -> None:
        """Validation loss, the floor, and the distance between them."""
        show_losses(result, self.config, self.dataset, console)

    def chances(self, model: CausalLM, hardware: Hardware) -> dict[str, float]:
        """How far each skill is that fresh stories take, if the text is the story corpus."""
        meta, config = self.dataset.meta, self.config
        if meta.source != STORIES:
            return {}
        length = meta.train.num_tokens / max(1, meta.train.num_documents)
        count = min(MOST_STORIES, max(2, int(LESSONS * config.tokens_per_step / length)))
        has_first = config.data.packing == "concat" or self.tokenizer.begin_id is not None
        reading = Reading(self.tokenizer, config.data.seq_len, predicts_first=has_first, hardware=hardware)
        return chances(model, fresh_stories(count), reading)

    def show_knowledge(self, result: RunResult, console: Console) -> None:
        """What a model of the story corpus gets right where it writes."""
        if self.dataset.meta.source == STORIES:
            show_written_stories(result, console)

    def show_batch(self, micro_batches: Sequence[TokenBatch]) -> Table:
        """Each row: its number in the epoch and how its text begins."""
        return show_rows(micro_batches, self.tokenizer)
