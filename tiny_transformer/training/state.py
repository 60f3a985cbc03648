"""Everything a run must remember to continue as if it had never stopped: one list, saved and loaded in one place.

The order of the examples is a pure function of the seed and the step, so the data cursor *is* the step; the learning
rate is a pure function of the step and the plan; random numbers are drawn from the seed, the step and the place in the
batch. What is left, whatever the number of processes: weights, optimizer state, a few
counters. No pickle: safetensors and JSON.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.safetensors_file import encode, load_tensors
from tiny_transformer.storage import Staging
from tiny_transformer.storage.runs import STATE_DIRECTORY, STATE_FILE, STATE_FORMAT, read_state
from tiny_transformer.training.optimizers import Optimizers

OPTIMIZER_FILE = "optimizer.safetensors"
MAX_COUNT = 2**62  # of steps and tokens
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


def save_state(
    staging: Staging,
    state: TrainState,
    tensors: dict[str, Tensor],
    identity: dict[str, Any],
    plan: dict[str, Any] | None = None,
) -> None:
    """Write `trainer_state/` into a checkpoint that is being made (the weights are written beside it, as a model
    directory).

    Args:
        staging: the checkpoint.
        state: the counters.
        tensors: what the optimizers remember, by parameter name: `Optimizers.state`, whole and in main memory.
        identity: what a resumed run is compared with, see `resume_check`.
        plan: the plan in force, for the case that plan.json is lost.
    """
    content = {"format_version": STATE_FORMAT, "identity": identity, **asdict(state)}
    if plan is not None:
        content["plan"] = plan
    staging.write(f"{STATE_DIRECTORY}/{OPTIMIZER_FILE}", encode(tensors))
    staging.write(f"{STATE_DIRECTORY}/{STATE_FILE}", json.dumps(content, indent=2) + "\n")


def load_state(checkpoint: Path, model: CausalLM, optimizers: Optimizers) -> TrainState:
    """Take a run up again: fills the optimizers and gives back the counters.

    The weights come from the same checkpoint through `models.load_weights`. Nothing is filled before all of it has been
    judged.

    Raises:
        UserError: the checkpoint has no trainer state or one that does not fit this model.
    """
    source = checkpoint / STATE_DIRECTORY
    state = _typed(read_state(checkpoint), checkpoint)
    if not (source / OPTIMIZER_FILE).exists():
        raise UserError(
            f"this checkpoint cannot be resumed: it has no {STATE_DIRECTORY}/{OPTIMIZER_FILE}",
            where=str(checkpoint),
            remedy="resume from a checkpoint written by train; a plain model directory has weights only",
            exit_code=ExitCode.BAD_DATA,
        )
    tensors = load_tensors(source / OPTIMIZER_FILE, str(next(model.parameters()).device))
    try:
        _check_tensors(tensors, model, optimizers)
        optimizers.load_state(tensors)
    except (KeyError, ValueError) as error:
        raise _unfit(error.args[0], source / OPTIMIZER_FILE) from None
    return state


def _check_tensors(tensors: dict[str, Tensor], model: CausalLM, optimizers: Optimizers) -> None:
    """Compare shapes and dtypes with what the optimizers of this model remember.

    Raises:
        ValueError: the first tensor that is of another shape or dtype, or is surplus or missing.
    """
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    expected = optimizers.shapes()
    for key in sorted(expected.keys() ^ tensors.keys()):
        raise ValueError(f"{key} {'is missing' if key in expected else 'belongs to no weight of this model'}")
    for key, shape in expected.items():
        found, dtype = tensors[key], dtypes[key.rpartition("/")[0]] if shape else torch.float32
        if tuple(found.shape) != shape or found.dtype != dtype:
            raise ValueError(f"{key} is {found.dtype} {list(found.shape)}, this model needs {dtype} {list(shape)}")


def _typed(raw: dict[str, Any], checkpoint: Path) -> TrainState:
    """The counters of state.json, each of its type and in its range.

    Raises:
        UserError: the first that is not.
    """
    where = checkpoint / STATE_DIRECTORY / STATE_FILE
    for name, (is_right, what) in _FIELDS.items():
        if name not in raw:
            raise _unfit(f"{name} is missing", where)
        if not is_right(raw[name]):
            raise _unfit(f"{name} is {repr(raw[name])[:60]}, not {what}", where)
    state = TrainState(**{name: raw[name] for name in _FIELDS})
    if checkpoint.resolve().name.startswith("step-") and checkpoint.resolve().name != f"step-{state.step:08d}":
        raise _unfit(f"it is that of step {state.step}, in {checkpoint.resolve().name}", where)
    if state.best_step is not None and state.best_step > state.step:
        raise _unfit(f"best_step {state.best_step} comes after step {state.step}", where)
    return state


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def _is_amount(value: Any) -> bool:
    return _is_number(value) and 0 <= value < MAX_COUNT


def _are(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_right, value.values()))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_count, "a number of steps"),
    "num_tokens": (_is_count, "a number of tokens"),
    "elapsed_seconds": (_is_amount, "seconds"),
    "best_val_loss": (lambda v: v is None or (_is_number(v) and math.isfinite(v)), "a finite loss"),
    "best_step": (lambda v: v is None or _is_count(v), "a number of steps"),
    "evaluations_without_gain": (_is_count, "a number of evaluations"),
    "loss_scale": (lambda v: _is_number(v) and 0 < v < MAX_COUNT, "a loss scale"),
    "steps_at_loss_scale": (_is_count, "a number of steps"),
    "metrics": (lambda v: _are(v, _is_number), "a table of figures"),
    "seconds": (lambda v: _are(v, _is_amount), "a table of seconds"),
    "counts": (lambda v: _are(v, _is_amount), "a table of counts"),
}


def _unfit(what: object, where: Path) -> UserError:
    return UserError(
        f"the trainer state does not fit: {what}",
        where=str(where),
        remedy="resume from an older checkpoint (the doctor command lists them)",
        exit_code=ExitCode.BAD_DATA,
    )
