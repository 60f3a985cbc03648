"""How long a run's steps, evaluations, saves and samples take on this machine: measured before the first step, on a
second model, so that the run's own does not learn from it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from tiny_transformer.evaluation.validation import validation_batches
from tiny_transformer.parallel.sharing import Sharing
from tiny_transformer.storage import RunDirectory, StepLog
from tiny_transformer.storage.temporary import LEFTOVER_PREFIX
from tiny_transformer.training import plan as planning
from tiny_transformer.training.checkpoint_writer import CheckpointWriter
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.state import TrainState

if TYPE_CHECKING:
    from tiny_transformer.stages.run import Run

TIMED_SAVE = LEFTOVER_PREFIX + "timed-save"  # what a killed start leaves of it, the next one removes


def measure_speed(start: Run) -> planning.Speed:
    """Time what the run will do; every process takes part, and the first one's clock counts."""
    model, sharing, optimizers = start.build()
    step = _step_seconds(start, model, sharing, optimizers)
    save = _save_seconds(start, model, sharing, optimizers)
    return planning.Speed(step, _eval_seconds(start), save, _sampling_seconds(start))


def _step_seconds(start: Run, model: Any, sharing: Sharing, optimizers: Optimizers) -> float:
    training, hardware, compiled = start.config.training, start.hardware, start.compiled(model)

    def one_step() -> None:
        compute_gradient(compiled, start.batches, 0, training, hardware, language_modelling_loss, sharing=sharing)
        optimizers.step(0.0)

    budget = 60 * (training.max_train_minutes or 0.0)
    return planning.measure_seconds(one_step, start.processes.broadcast, at_least_seconds=min(2.0, 0.01 * budget))


def _save_seconds(start: Run, model: nn.Module, sharing: Sharing, optimizers: Optimizers) -> float:
    """One checkpoint, written, hashed, synced and read back as in the run, in a directory that is removed again."""
    directory, is_first = start.run.path / TIMED_SAVE, start.processes.is_first

    def save() -> None:
        with ExitStack() as stack:
            run, log = RunDirectory(directory), None
            if is_first:
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                stack.enter_context(run.lock())
                log = StepLog(directory / "log.jsonl")
                stack.callback(log.close)
            tokenizer, facts = start.dataset.tokenizer, {"steps_per_epoch": start.batches.steps_per_epoch}
            writer = CheckpointWriter(
                run, log, model, optimizers, tokenizer, start.identity, lambda: facts, keep=1, sharing=sharing
            )
            writer(TrainState(step=1), "running", is_best=False)

    return planning.measure_seconds(save, start.processes.broadcast, at_least_seconds=0.0, warm_up=0, least=1)


def _eval_seconds(start: Run) -> float:
    if start.config.training.eval_steps is None:
        return 0.0
    batches = list(validation_batches(start.config, start.dataset))
    few = batches[:2]
    agree, world_size = start.processes.broadcast, start.processes.world_size
    seconds = planning.measure_seconds(lambda: start.split_loss(few), agree, at_least_seconds=0.5, warm_up=1)
    return seconds * -(-len(batches) // world_size) / -(-len(few) // world_size)


def _sampling_seconds(start: Run) -> float:
    sampler = start.sampler()
    seconds = planning.measure_seconds(sampler.texts, at_least_seconds=0.1, warm_up=1) if sampler else 0.0
    return start.processes.broadcast(seconds)
