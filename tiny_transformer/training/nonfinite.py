"""Where NaN or infinity first appeared: which tensor, which examples were in the batch, and how to see it again.

A step that is not finite is never saved, so the newest checkpoint is from before it, and the order of the examples is a
function of the step: `tiny-transformer replay RUN --step N` makes the same step again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tiny_transformer.errors import ExitCode, UserError, command_line
from tiny_transformer.models.contract import CausalLM, trainable
from tiny_transformer.parallel.sharing import local
from tiny_transformer.training.optimizers import Optimizers

SHOWN_EXAMPLES = 8


class NotFiniteError(UserError):
    """A run's loss, gradient or weights are no longer finite, which ends it.

    Attributes:
        step: the update at which it was noticed, counted from 1.
        figure: what is not finite, and what it is: "loss is nan".
        run_dir: of the run.
        ways_out: the part of the remedy that needs no checkpoint of the run.
    """

    ways_out = "try a lower learning rate, or precision=fp32"

    def __init__(self, step: int, figure: str, run_dir: Path, what: str, where: str) -> None:
        again = command_line("tiny-transformer", "replay", run_dir, "--step", step)
        remedy = f"{self.ways_out}; {again} repeats the step"
        super().__init__(what, where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA)
        self.step, self.figure, self.run_dir = step, figure, run_dir

    def to_json(self) -> str:
        """For `NOT_FINITE_FILE`, which the report reads."""
        return json.dumps({"step": self.step, "figure": self.figure}) + "\n"


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds a nan or an infinity, or this process's part of it; one pass over the memory."""
    parts = [local(tensor.detach()) for tensor in tensors]
    parts = [part for part in parts if part.numel()]
    # The usual norm is many times faster than the largest element; it alone can overflow, and then the other decides.
    return any(bool(torch.stack(torch._foreach_norm(parts, order)).isfinite().all()) for order in (2, torch.inf))


def first_bad_after_update(model: CausalLM, optimizers: Optimizers) -> str | None:
    """The name of the first tensor that an update left not finite: of what the optimizers remember, then the weights.

    An infinite mean of squared gradients would stay unseen in the weights: it makes their updates zero.
    """
    memory = optimizers.state()
    if all_finite([*memory.values(), *(parameter for _, parameter in trainable(model))]):
        return None
    named: dict[str, Tensor] = {f"the optimizer's {name}": tensor for name, tensor in memory.items()}
    named |= {f"the weight {name}": parameter for name, parameter in trainable(model)}
    return first_bad_tensor(named.items())


def named_tensors(model: CausalLM) -> Iterator[tuple[str, Tensor]]:
    """The weights, then their gradients, in the order in which a batch meets them."""
    for name, parameter in model.named_parameters():
        yield f"the weight {name}", parameter
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield f"the gradient of {name}", parameter.grad


def first_bad_tensor(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that is not finite."""
    return next((name for name, tensor in tensors if not local(tensor).isfinite().all()), None)


def not_finite(step: int, what: str, culprit: str | None, examples: Sequence[int], run_dir: Path) -> NotFiniteError:
    """The error that ends a run.

    Args:
        step: the update that would have been made, counted from 1.
        what: which figure is not finite, and what it is.
        culprit: the first tensor that is not finite; None when all are.
        examples: the rows of the step's batch, all processes together.
        run_dir: of the run.
    """
    shown = ", ".join(str(example) for example in examples[:SHOWN_EXAMPLES]) + (
        ", ..." if len(examples) > SHOWN_EXAMPLES else ""
    )
    first = f"; first bad tensor: {culprit}" if culprit else ""
    return NotFiniteError(
        step,
        what,
        run_dir,
        what=f"{what} at step {step}; the step was not saved{first}",
        where=f"the batch of step {step}, examples {shown}" if examples else f"the evaluation after step {step}",
    )
