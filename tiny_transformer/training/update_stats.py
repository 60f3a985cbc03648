"""What a logged step tells besides its loss: how far the weights of each part moved, and the memory in use.

A *part* is one block, or a weight outside the blocks: `embed_tokens`, `layers.0`, ..., `norm`, `lm_head`. Both figures
of a part are functions of weights and gradients alone, so a resumed run logs the same ones; memory is read from the
system and is not. The weights are copied before the update, but only at a logged step: a copy and three norms, which
read every weight a few times, where a step reads each of them hundreds of times.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

import torch

from tiny_transformer.models.contract import CausalLM, trainable
from tiny_transformer.parallel.sharing import NOT_SHARED, Sharing, local

DIGITS = 4  # of a logged figure: enough for a chart, and a log line stays short with many layers


def part_name(name: str) -> str:
    """The part a parameter belongs to: `model.layers.3.mlp.up_proj.weight` is in `layers.3`."""
    pieces = name.removeprefix("model.").removesuffix(".weight").split(".")
    end = pieces.index("layers") + 2 if "layers" in pieces else 1
    return ".".join(pieces[:end])


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most memory in use at one time so far, in bytes: of this process (resident, as the system counts it), and on
    a CUDA device also of the tensors there."""
    found = {}
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # not on Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        found["peak_memory_bytes"] = getrusage(RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        found["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


class UpdateStats:
    """How far one update moves each part of a model: `begin` right before it, `end` right after.

    Args:
        model: its trainable weights are read, never changed.
        sharing: whether this process has only parts of them.

    Attributes:
        figures: filled by `end`: `update_ratios`, the norm of the change over the norm of the weights, and
            `part_grad_norms`, the norm of the gradient after clipping; each by part.
    """

    def __init__(self, model: CausalLM, sharing: Sharing = NOT_SHARED) -> None:
        self._sharing = sharing
        named = trainable(model)
        self._parts = [part_name(name) for name, _ in named]
        self._weights = [parameter for _, parameter in named]
        self.figures: dict[str, dict[str, float]] = {}

    @torch.no_grad()
    def begin(self) -> None:
        """Copy the weights, and read the gradients while they are there."""
        self._before = [local(weight.detach()).clone() for weight in self._weights]
        self._gradients = torch._foreach_norm(
            [local(weight.new_zeros(1) if weight.grad is None else weight.grad) for weight in self._weights]
        )

    @torch.no_grad()
    def end(self) -> None:
        """Compare the weights with their copies, and drop those."""
        sizes = torch._foreach_norm(self._before)
        now = [local(weight.detach()) for weight in self._weights]
        changes = torch._foreach_norm(torch._foreach_sub(self._before, now))
        norms = torch.stack([*self._gradients, *changes, *sizes]).view(3, -1).tolist()  # one wait for the device
        gradients, moved, size = (self._by_part(row) for row in norms)
        self.figures = {
            "update_ratios": {part: _short(moved[part] / size[part] if size[part] else 0.0) for part in size},
            "part_grad_norms": {part: _short(gradients[part]) for part in size},
        }
        del self._before, self._gradients

    def _by_part(self, norms: Iterable[float]) -> dict[str, float]:
        squares: dict[str, float] = {}
        for part, norm in zip(self._parts, norms, strict=True):
            squares[part] = squares.get(part, 0.0) + norm * norm
        totals = self._sharing.add_parts(list(squares.values()))
        return {part: math.sqrt(square) for part, square in zip(squares, totals, strict=True)}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
