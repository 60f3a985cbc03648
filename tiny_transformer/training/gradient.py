"""The gradient of one batch, in pieces and shared between processes, as if it were computed at once.

Losses are sums; each is divided by the number of targets of the whole batch, all processes together. Random numbers
(dropout) are drawn anew for each micro-batch from the seed, the step and its place in the batch, so there is no
generator state to save, and no process draws another one's numbers.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.data.batches import Batch
from tiny_transformer.hardware import Hardware
from tiny_transformer.parallel.sharing import NOT_SHARED, Sharing, whole

LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, int, dict[str, float]]]


class BatchSource(Protocol):
    """Batches as a pure function of the step."""

    def micro_batches(self, step: int, micro_batch_size: int) -> Iterable[Batch]:
        """This process's part of the batch of update number `step`, in pieces."""
        ...

    def epoch(self, step: int) -> float:
        """How many times the data has been seen before update number `step`."""
        ...


@dataclass(frozen=True)
class Gradient:
    """What a batch gave; the gradient itself is in the weights' `grad`.

    Attributes:
        loss: mean loss in nats per token.
        norm: of the gradient before clipping.
        num_tokens: targets in the batch.
        figures: the loss function's further figures, as means over the targets.
        data_seconds: time it took to make the batch.
    """

    loss: float
    norm: float
    num_tokens: int
    figures: dict[str, float]
    data_seconds: float


def compute_gradient(
    model: nn.Module,
    batches: BatchSource,
    step: int,
    config: TrainingConfig,
    hardware: Hardware,
    loss_function: LossFunction,
    loss_scale: float = 1.0,
    sharing: Sharing = NOT_SHARED,
) -> Gradient:
    """Fill the weights' gradients for the batch of one step, whoever computes which part of it, and clip them."""
    processes, begun = sharing.processes, time.monotonic()
    micro_batches = list(batches.micro_batches(step, config.micro_batch_size))
    data_seconds = time.monotonic() - begun
    num_tokens = processes.total(sum(batch.num_tokens for batch in micro_batches))
    num_rows = [len(batch.sample_ids) for batch in micro_batches]
    first_row = processes.rank * sum(num_rows)
    names: list[str] = []
    shares: list[float] = []  # of each micro-batch: its share of the mean loss, then of the figures

    def add_gradient(index: int) -> None:
        batch = micro_batches[index].to(hardware.device)
        processes.mark("step", step)
        draw_random_numbers_for(config.seed, step, first_row + sum(num_rows[:index]))
        with hardware.autocast():
            loss_sum, _, sums = sharing.run(lambda: loss_function(model, batch))
        loss = loss_sum / num_tokens
        processes.mark("step", step)
        (loss * (loss_scale * sharing.gradient_factor)).backward()
        names[:] = sums
        shares.extend([loss.item(), *(value / num_tokens for value in sums.values())])

    sharing.accumulate(add_gradient, len(micro_batches))
    processes.mark("step", step)
    mean_loss, *means = _add_in_order(processes.gather(shares), 1 + len(names))
    if loss_scale != 1.0:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= loss_scale
    norm = _clip(model, math.inf if config.grad_clip is None else config.grad_clip)
    return Gradient(mean_loss, norm, num_tokens, dict(zip(names, means, strict=True)), data_seconds)


def _clip(model: nn.Module, max_norm: float) -> float:
    """Shorten the gradient to `max_norm`; its norm before that. One that is not finite is left as it is: scaled, all of
    it would be, and nobody could tell where it began."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    length = whole(norm).item()
    if math.isfinite(length):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return length


def draw_random_numbers_for(seed: int, step: int, row: int) -> None:
    """Start the generators anew for the micro-batch that begins at row `row` of the batch of update number `step`."""
    digest = hashlib.blake2b(f"{seed} {step} {row}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little", signed=True))


def _add_in_order(shares: list[list[float]], width: int) -> list[float]:
    """The sums of `width` columns, row by row in the order of the batch, whoever computed which rows."""
    flat = [value for everyone in shares for value in everyone]
    return [sum(flat[column::width]) for column in range(width)]
