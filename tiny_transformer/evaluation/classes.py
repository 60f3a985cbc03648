"""How well a classifier sorts texts: accuracy, macro-F1, and which label is taken for which."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from tiny_transformer.data.labels import LabelBatch
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.classifier import scores_of
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.sharing import NOT_SHARED, Sharing


@dataclass(frozen=True)
class ClassFigures:
    """What a classifier came to.

    Attributes:
        loss: mean cross-entropy of a text, in nats, without class weights.
        confusion: (labels, labels) int64: row the true label, column the one with the highest score.
    """

    loss: float
    confusion: torch.Tensor

    @property
    def accuracy(self) -> float:
        """The share of texts whose label has the highest score."""
        return self.confusion.diagonal().sum().item() / max(1, self.confusion.sum().item())

    @property
    def macro_f1(self) -> float:
        """The mean over the labels of 2 hits / (texts of the label + texts taken for it); a label that is neither there
        nor ever taken does not count."""
        hits = self.confusion.diagonal().double()
        both = (self.confusion.sum(0) + self.confusion.sum(1)).double()
        there = both > 0
        return (2 * hits[there] / both[there]).mean().item() if there.any() else math.nan


@torch.no_grad()
def evaluate_classes(
    model: CausalLM,
    batches: Iterable[LabelBatch],
    num_labels: int,
    *,
    hardware: Hardware,
    sharing: Sharing = NOT_SHARED,
) -> ClassFigures:
    """Sort all texts; each process sorts all of them, so that all know the same. The model's mode is put back."""
    was_training = model.training
    model.eval()
    loss, count, confusion = 0.0, 0, torch.zeros(num_labels, num_labels, dtype=torch.int64)
    for batch in batches:
        moved = batch.to(hardware.device)
        with hardware.autocast():
            scores = sharing.run(
                lambda batch=moved: scores_of(model, batch.input_ids, batch.lengths).float(), "evaluation"
            )
        loss += F.cross_entropy(scores, moved.labels, reduction="sum").item()
        count += batch.num_targets
        for true, taken in zip(batch.labels.tolist(), scores.argmax(-1).tolist(), strict=True):
            confusion[true, taken] += 1
    model.train(was_training)
    return ClassFigures(loss / max(1, count), confusion)
