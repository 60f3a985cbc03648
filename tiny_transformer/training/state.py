"""Everything a run must remember to continue as if it had never stopped: one list, saved and loaded in one place.

The order of the examples is a pure function of the seed and the step, so the data cursor *is* the step; the learning
rate is a pure function of the step and the plan; random numbers are drawn from the seed, the step and the place in the
batch. What is left, whatever the number of processes: weights, optimizer state, a few
counters. No pickle: safetensors and JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.storage.runs import STATE_DIRECTORY, STATE_FILE
from tiny_transformer.training.optimizers import Optimizers

COUNTED = ("evaluations", "samples", "saves")


@dataclass
class TrainState:
    """Where a run stands.

    Attributes:
        step: updates made.
        num_tokens: targets trained on.
        elapsed_seconds: wall-clock time spent training, over all starts.
        best_val_loss: the lowest validation loss so far, in nats per token.
        best_step: after which step that was; the link `best` leads there.
        evaluations_without_gain: evaluations in a row that did not lower it.
        loss_scale: see `loss_scale`; 1 but in fp16.
        steps_at_loss_scale: steps without overflow since it changed.
        metrics: the last training loss and validation figures.
        seconds: where the time went, over all starts: `steps` (and of these `data`, `forward_backward` and
            `optimizer`), `evaluations`, `samples`, `logging`, `saves` and `planning`.
            Each ends with a figure that the host waits
            for (loss, gradient norm, whether the weights are finite), so a GPU's time is counted where it was asked
            for; only copies of batches to it are not waited for, and count as `forward_backward`.
        counts: how often, for what is planned by its mean: `evaluations`, `samples` and `saves`.
    """

    step: int = 0
    num_tokens: int = 0
    elapsed_seconds: float = 0.0
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    loss_scale: float = 1.0
    steps_at_loss_scale: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def spend(self, kind: str, seconds: float) -> None:
        """Note time spent on something; the kinds are those of `seconds`."""
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        if kind in COUNTED:
            self.counts[kind] = self.counts.get(kind, 0) + 1

    @contextmanager
    def timed(self, kind: str) -> Generator[None]:
        """Note the time that the block takes."""
        begun = time.monotonic()
        yield
        self.spend(kind, time.monotonic() - begun)

    def mean_seconds(self, kind: str) -> float | None:
        """How long one of them takes; None before the first."""
        return self.seconds[kind] / self.counts[kind] if kind in self.seconds else None


def save_state(directory: Path, state: TrainState, tensors: dict[str, Tensor], identity: dict[str, Any]) -> None:
    """Write `trainer_state/` into a checkpoint that is being made (the weights are written beside it, as a model
    directory).

    Args:
        directory: the checkpoint's temporary directory.
        state: the counters.
        tensors: what the optimizers remember, by parameter name: `Optimizers.state`, whole and in main memory.
        identity: what a resumed run is compared with, see `resume_check`.
    """
    target = directory / STATE_DIRECTORY
    target.mkdir()
    save_file(tensors, target / "optimizer.safetensors")
    text = json.dumps({"format_version": 1, "identity": identity, **asdict(state)}, indent=2)
    (target / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def load_state(checkpoint: Path, model: CausalLM, optimizers: Optimizers) -> TrainState:
    """Take a run up again: fills the optimizers and gives back the counters.

    The weights come from the same checkpoint through `models.load_weights`.

    Raises:
        UserError: the checkpoint has no trainer state or one that does not fit this model.
    """
    source = checkpoint / STATE_DIRECTORY
    try:
        raw = json.loads((source / STATE_FILE).read_text(encoding="utf-8"))
        device = next(model.parameters()).device
        optimizers.load_state(load_file(source / "optimizer.safetensors", device=str(device)))
        return TrainState(**{key: raw[key] for key in TrainState.__dataclass_fields__})
    except FileNotFoundError as error:
        raise UserError(
            f"this checkpoint cannot be resumed: it has no {STATE_DIRECTORY}/{Path(error.filename).name}",
            where=str(checkpoint),
            remedy="resume from a checkpoint written by train; a plain model directory has weights only",
            exit_code=ExitCode.BAD_DATA,
        ) from None
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the trainer state does not fit: {error}", where=str(source), exit_code=ExitCode.BAD_DATA
        ) from None
