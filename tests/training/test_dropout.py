"""Dropout: other masks in each part of a batch, the same however the batch is shared; none in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.data.batches import TokenBatch
from tiny_transformer.evaluation.loss import evaluate_split
from tiny_transformer.hardware import Hardware
from tiny_transformer.parallel.processes import Place, Processes
from tiny_transformer.parallel.sharing import Sharing
from tiny_transformer.training.gradient import compute_gradient

CPU = Hardware(torch.device("cpu"), None)


class OneOfSeveral(Processes):
    """A process whose fellows are only imagined."""

    def total(self, value: int) -> int:
        return value * self.world_size

    def gather(self, values: Any) -> list[list[float]]:
        return [list(values)]


def masks_of(rank: int, world_size: int, step: int = 3) -> list[list[bool]]:
    """What dropout leaves of each micro-batch that a process has of a batch of four rows, two at a time."""
    rows = 4 // world_size
    batch = torch.ones(2, 16, dtype=torch.int64)
    pieces = [TokenBatch(batch, batch, 32, torch.arange(2)) for _ in range(rows // 2)]
    model, seen = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)), []

    def loss(module: nn.Module, piece: TokenBatch) -> tuple[torch.Tensor, dict[str, float]]:
        left = module[1](torch.ones(32))  # ty: ignore[not-subscriptable]
        seen.append((left != 0).tolist())
        return module[0](left[:, None]).sum(), {}  # ty: ignore[not-subscriptable]

    sharing = Sharing(OneOfSeveral(Place(rank, world_size)))
    compute_gradient(model, pieces, step, TrainingConfig(micro_batch_size=2), CPU, loss, sharing=sharing)
    return seen


def test_each_micro_batch_and_each_step_has_masks_of_its_own() -> None:
    first, second = masks_of(0, 1)
    assert first != second
    assert masks_of(0, 1) == [first, second]
    assert masks_of(0, 1, step=4) != [first, second]


def test_a_shared_batch_has_the_masks_of_the_whole_one() -> None:
    assert masks_of(0, 2) + masks_of(1, 2) == masks_of(0, 1)


def test_evaluation_is_without_dropout_and_leaves_the_mode_as_it_was() -> None:
    seen: list[bool] = []

    class Model(nn.Module):
        def forward(self, ids: torch.Tensor, **_: Any) -> torch.Tensor:
            seen.append(self.training)
            return nn.functional.dropout(torch.ones(*ids.shape, 8), 0.5, self.training) * torch.arange(8.0)

    ids = torch.ones(2, 16, dtype=torch.int64)
    for training in (True, False):
        model = Model().train(training)
        loss = evaluate_split(model, [TokenBatch(ids, ids, 32, torch.arange(2))] * 2, num_bytes=64, hardware=CPU)
        exact = torch.logsumexp(torch.arange(8.0), 0).item() - 1.0
        assert abs(loss.nats_per_token - exact) < 1e-5
        assert model.training is training
    assert seen == [False] * 4
