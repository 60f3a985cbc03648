"""What a stage hands the training loop: batches, a loss, an evaluation.

Pretraining's batch is `data.batches.TokenBatch`; a batch of preference pairs or of rollouts is another class with the
same three members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from tiny_transformer.models.contract import CausalLM


class Batch(Protocol):
    """What the loop needs to know of a micro-batch."""

    @property
    def num_targets(self) -> int:
        """What its loss is a sum over (tokens, pairs, sequences); the loop divides by the whole batch's number."""
        ...

    @property
    def sample_ids(self) -> Tensor:
        """(rows,) int64: which example each row is, for messages."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        ...


# `(model, batch) -> (loss_sum, figures)`: the loss summed over the batch's targets, a scalar with a graph, in nats;
# further figures for the log, summed over the targets too. Any: each stage's loss knows its own batch.
LossFunction = Callable[[CausalLM, Any], tuple[Tensor, dict[str, float]]]


class BatchSource(Protocol):
    """Batches as a pure function of the step."""

    @property
    def steps_per_epoch(self) -> float:
        """How many updates see every example once."""
        ...

    def micro_batches(self, step: int, micro_batch_size: int) -> Iterable[Batch]:
        """This process's part of the batch of update number `step` (the first is 0), in pieces."""
        ...

    def epoch(self, step: int) -> float:
        """How many times the data has been seen before update number `step`."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """How good the model is now.

    Attributes:
        score: decides which checkpoint is the best; lower is better.
        figures: for the log.
    """

    score: float
    figures: Mapping[str, float]
