"""Batches of preference pairs as pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tiny_transformer.data.batches import BatchesInOrder
from tiny_transformer.data.chat.pairs import EncodedPair
from tiny_transformer.tokenizers.chat import Encoded


@dataclass(frozen=True)
class AnswerRows:
    """Questions with answers, a row each, padded on the right.

    Attributes:
        ids: (B, T + 1) int64.
        is_answer: (B, T + 1) bool, which tokens are the answer's.
        is_text: (B, T + 1) bool, which are no padding.
    """

    ids: Tensor
    is_answer: Tensor
    is_text: Tensor

    def to(self, device: torch.device | str) -> AnswerRows:
        """The same rows on a device."""
        return AnswerRows(*(t.to(device, non_blocking=True) for t in (self.ids, self.is_answer, self.is_text)))


@dataclass(frozen=True)
class PairBatch:
    """Preference pairs.

    Attributes:
        rows: (2 P, T + 1): the chosen answers, then the rejected ones.
        reference: (2 P,) float32, the log-probability of each answer under the reference, in nats; None without one.
        token_weight: pairs of the whole batch / tokens of its chosen rows: what makes a sum over such tokens, divided
            by pairs, their mean.
        sample_ids: (P,) int64, which pair each is.
    """

    rows: AnswerRows
    reference: Tensor | None
    token_weight: float
    sample_ids: Tensor

    @property
    def num_targets(self) -> int:
        """The pairs."""
        return len(self.sample_ids)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on a device."""
        reference = None if self.reference is None else self.reference.to(device, non_blocking=True)
        return replace(self, rows=self.rows.to(device), reference=reference)


class Pairs:
    """The pairs of a split with what the reference says of them.

    Args:
        examples: fitted to a row.
        reference: (N, 2) float32, log-probabilities of the chosen and the rejected answers; None without a reference.
    """

    def __init__(self, examples: Sequence[EncodedPair], reference: Tensor | None = None) -> None:
        self.examples, self.reference = examples, reference
        self.sizes = np.array([len(pair.chosen.ids) - 1 for pair in examples])  # tokens of chosen rows, but the first

    def make(self, numbers: np.ndarray, whole: np.ndarray) -> PairBatch:
        """The pairs of these numbers as a part of the batch `whole`."""
        pairs = [self.examples[number] for number in numbers.tolist()]
        rows = answer_rows([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
        places = torch.from_numpy(numbers.copy())
        reference = None if self.reference is None else self.reference[places].t().flatten()
        return PairBatch(rows, reference, len(whole) / float(self.sizes[whole].sum()), places)

    def in_order(self, size: int) -> Iterator[PairBatch]:
        """Each pair once, in order."""
        whole = np.arange(len(self.examples))
        for first in range(0, len(whole), size):
            yield self.make(whole[first : first + size], whole)


class PairBatches(BatchesInOrder[PairBatch]):
    """Training batches of pairs.

    Args:
        pairs: gives the training pairs when the first batch is made, no sooner.
        num_pairs: how many there are.
        order: see `BatchesInOrder`.
    """

    def __init__(self, pairs: Callable[[], Pairs], num_pairs: int, **order: int) -> None:
        super().__init__(num_pairs, **order)
        self._pairs = pairs

    def make(self, sample_ids: np.ndarray, step: int) -> PairBatch:
        """The pairs of these numbers."""
        return self._pairs().make(sample_ids, self.sample_ids(step))


def answer_rows(answers: Sequence[Encoded]) -> AnswerRows:
    """Encoded answers as rows; padding is token 0, which nothing looks back at."""
    longest = max(len(answer.ids) for answer in answers)
    ids, flags = (
        torch.zeros(len(answers), longest, dtype=torch.int64),
        torch.zeros(len(answers), longest, dtype=torch.bool),
    )
    is_text = torch.zeros_like(flags)
    for row, answer in enumerate(answers):
        size = len(answer.ids)
        ids[row, :size], flags[row, :size] = torch.tensor(answer.ids), torch.tensor(answer.is_trained)
        is_text[row, :size] = True
    return AnswerRows(ids, flags, is_text)
