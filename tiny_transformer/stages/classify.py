"""Classification as a stage: texts with labels, a head on the last token, cross-entropy of the label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from tiny_transformer.config.secrets import last_parts
from tiny_transformer.config.stages import ClassifyConfig
from tiny_transformer.data.labels import LabelBatch, LabelBatches, make_batch, place_of
from tiny_transformer.evaluation.classes import evaluate_classes
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.classifier import make_classifier, save_classifier, scores_of
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.vocabulary import copy_tensors, load_ordinary, tensors_of
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.parallel.sharing import Sharing, local_part
from tiny_transformer.stages.class_data import ClassData, class_weights, describe, open_class_data, show_classes
from tiny_transformer.stages.examples import beginning, table_of
from tiny_transformer.stages.resume_check import DATA, TOKENIZER
from tiny_transformer.stages.stage import Request, RunResult, Stage
from tiny_transformer.storage import Staging
from tiny_transformer.training.contract import Evaluation


class Classifying(Stage[LabelBatch]):
    """Learn to sort texts.

    Args:
        data: texts and labels, with the completed config.
    """

    target = "text"
    checks = ("diverged", "rate_too_high", "loss_scale_collapsed", "overfitting", "slowed_down", "overhead")

    def __init__(self, data: ClassData) -> None:
        super().__init__(data.config, data.tokenizer)
        self.data, self.labels, self.train, self.val = data, data.labels, data.train, data.val
        self.weights = class_weights(data)

    @classmethod
    def open(cls, request: Request, run_dir: Path, hardware: Hardware, processes: Processes, console: Console) -> Self:
        """See `Stage`; every process reads the rows."""
        data = open_class_data(request, cast(ClassifyConfig, request.config), run_dir)
        return cls(data)

    def build_model(self, device: torch.device | str) -> CausalLM:
        """A model with a score for each label in the place of its head."""
        model = super().build_model(device)
        make_classifier(model, len(self.labels), seed=self.config.training.seed)
        return model

    def load_first_weights(self, model: CausalLM) -> None:
        """Those of `init_from`, but for the new head."""
        if self.config.init_from is not None:
            copy_tensors(tensors_of(load_ordinary(self.config.init_from)), model, local_part)

    def batches(self, rank: int, world_size: int) -> LabelBatches:
        """The training texts."""
        training = self.config.training
        rows = training.examples_per_step
        pad = self.tokenizer.end_id
        return LabelBatches(
            self.train, pad, global_batch_size=rows, seed=training.seed, rank=rank, world_size=world_size
        )

    def loss(self, model: CausalLM, batch: LabelBatch) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the labels, each weighted by its class, and how many were right."""
        scores = scores_of(model, batch.input_ids, batch.lengths).float()
        losses = F.cross_entropy(scores, batch.labels, reduction="none")
        right = (scores.argmax(-1) == batch.labels).sum().item()
        return (losses * self.weights.to(losses.device)[batch.labels]).sum(), {"accuracy": float(right)}

    def evaluation_batches(self) -> Iterator[LabelBatch]:
        """The validation texts in order."""
        size = self.config.training.micro_batch_size
        for first in range(0, len(self.val), size):
            numbers = range(first, min(first + size, len(self.val)))
            yield make_batch(self.val, numbers, self.tokenizer.end_id)

    def evaluate(
        self, model: CausalLM, batches: Iterable[LabelBatch], hardware: Hardware, sharing: Sharing
    ) -> Evaluation:
        """Loss, accuracy and macro-F1 on held-out texts; the loss decides which checkpoint is the best."""
        figures = evaluate_classes(model, batches, len(self.labels), hardware=hardware, sharing=sharing)
        told = {"val_loss": figures.loss, "val_accuracy": figures.accuracy, "val_macro_f1": figures.macro_f1}
        return Evaluation(figures.loss, told)

    def save(self, model: CausalLM, directory: Staging, weights: dict[str, Tensor]) -> None:
        """A model directory that transformers opens for sequence classification."""
        end = self.tokenizer.end_id
        save_classifier(model, directory, weights, self.labels, eos_token_id=end, pad_token_id=end)
        self.tokenizer.save(directory, max_length=model.config.max_position_embeddings)

    def fingerprints(self) -> dict[str, str]:
        """Texts and labels as they are learnt, and the tokenizer."""
        return {DATA: f"{place_of(repr((self.labels, self.train))):.16f}", TOKENIZER: self.tokenizer.fingerprint}

    def facts(self) -> dict[str, Any]:
        """The tokenizer, the labels, the size of the data."""
        source = last_parts(self.config.data.source)
        return {
            **super().facts(),
            "labels": self.labels,
            "data": {"source": source, "train_texts": len(self.train), "val_documents": len(self.val)},
        }

    def describe_data(self, total_steps: int) -> str:
        """The texts and how they are spread over the labels."""
        return describe(self.data)

    def show_figures(self, result: RunResult, console: Console) -> None:
        """Accuracy, macro-F1 and the confusion of the best checkpoint; they are kept in classification.json."""
        show_classes(result, self.data, self.evaluation_batches(), console)

    def show_batch(self, micro_batches: Sequence[LabelBatch]) -> Table:
        """Each text: its number in the epoch, its label, and how it begins."""
        columns = ((batch.sample_ids, batch.labels, batch.input_ids) for batch in micro_batches)
        numbered = (row for parts in columns for row in zip(*parts, strict=True))
        rows = (
            (f"{n:,}", self.labels[int(label)], beginning(self.tokenizer, ids.tolist())) for n, label, ids in numbered
        )
        return table_of(("number", "label", "text"), rows, num_texts=2)
