"""The gradient of one batch, in pieces and shared between processes, as if it were computed at once.

Losses are sums; each is divided by the number of targets of the whole batch, all processes together. Random numbers
(dropout) are drawn anew for each micro-batch from the seed, the step and its place in the batch, so there is no
generator state to save, and no process draws another one's numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.sharing import NOT_SHARED, Sharing, whole
from tiny_transformer.training.contract import Batch, LossFunction


@dataclass(frozen=True)
class Gradient:
    """What a batch gave; the gradient itself is in the weights' `grad`.

    Attributes:
        loss: mean loss in nats per target.
        norm: of the gradient before clipping.
        num_targets: in the batch.
        figures: the loss function's further figures, as means over the targets.
    """

    loss: float
    norm: float
    num_targets: int
    figures: dict[str, float]


def compute_gradient(
    model: CausalLM,
    micro_batches: Sequence[Batch],
    step: int,
    config: TrainingConfig,
    hardware: Hardware,
    loss_function: LossFunction,
    loss_scale: float = 1.0,
    sharing: Sharing = NOT_SHARED,
) -> Gradient:
    """Fill the weights' gradients for this process's part of the batch of one step, add the others', and clip them."""
    processes = sharing.processes
    num_targets = processes.total(sum(batch.num_targets for batch in micro_batches))
    num_rows = [len(batch.sample_ids) for batch in micro_batches]
    first_row = processes.rank * sum(num_rows)
    names: list[str] = []
    shares: list[float] = []  # of each micro-batch: its share of the mean loss, then of the figures

    def add_gradient(index: int) -> None:
        batch = micro_batches[index].to(hardware.device)
        draw_random_numbers_for(config.seed, step, first_row + sum(num_rows[:index]))
        with hardware.autocast():
            loss_sum, sums = sharing.run(lambda: loss_function(model, batch), "step", step)
        loss = loss_sum / num_targets
        (loss * (loss_scale * sharing.gradient_factor)).backward()
        names[:] = sums
        shares.extend([loss.item(), *(value / num_targets for value in sums.values())])

    sharing.accumulate(add_gradient, len(micro_batches), step)
    mean_loss, *means = _add_in_order(processes.gather(shares), 1 + len(names))
    if loss_scale != 1.0:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= loss_scale
    norm = _clip(model, math.inf if config.grad_clip is None else config.grad_clip)
    return Gradient(mean_loss, norm, num_targets, dict(zip(names, means, strict=True)))


def _clip(model: CausalLM, max_norm: float) -> float:
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
