"""The only training loop. A stage hands it a model, batches, a loss and an evaluation; it knows nothing else of it.

A *step* is one update of the weights. Its gradient is that of the loss summed over the whole batch and divided once by
the number of targets in the whole batch (`gradient.py`), so cutting the batch into micro-batches, or sharing it between
processes, changes memory and speed, never the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.sharing import NOT_SHARED, Sharing
from tiny_transformer.training.contract import Batch, BatchSource, Evaluation, LossFunction
from tiny_transformer.training.gradient import Gradient, compute_gradient
from tiny_transformer.training.loss_scale import count_step_at_loss_scale, lower_loss_scale
from tiny_transformer.training.modifiers import set_dropout
from tiny_transformer.training.nonfinite import (
    NotFiniteError,
    first_bad_after_update,
    first_bad_tensor,
    named_tensors,
    not_finite,
)
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.plan import Pace
from tiny_transformer.training.state import TrainState
from tiny_transformer.training.update_stats import UpdateStats, peak_memory

Save = Callable[[TrainState, str, bool], None]


class Progress(Protocol):
    """Shows a person how far the run is."""

    def step(self, state: TrainState, tokens_per_second: float) -> None:
        """One more update has been made."""
        ...

    def length(self, total_steps: int) -> None:
        """The run will have this many steps."""
        ...


@dataclass(frozen=True)
class Job:
    """What a stage hands the loop.

    Attributes:
        model: called by `loss_function` only (it may be compiled).
        optimizers: they own the weights' updates.
        pace: learning rate and number of steps.
        batches: training data.
        loss_function: see `contract.LossFunction`.
        evaluate: how good the model is as it stands, or None.
        sample: continues some prompts at a few points of the run, or None.
        save: publishes a checkpoint: `save(state, status, is_best)`.
        log: takes one record per logged step.
        config: how often to do which.
        hardware: device and precision.
        progress: shows progress.
        sharing: how the processes share the work; each of them runs this loop, and all do the same at the same step.
        run_dir: how messages call the run.
    """

    model: CausalLM
    optimizers: Optimizers
    pace: Pace
    batches: BatchSource
    loss_function: LossFunction
    evaluate: Callable[[], Evaluation] | None
    sample: Callable[[TrainState], None] | None
    save: Save
    log: Callable[[dict[str, Any]], None]
    config: TrainingConfig
    hardware: Hardware
    progress: Progress
    sharing: Sharing = NOT_SHARED
    run_dir: Path = Path("RUN")


def train(job: Job, state: TrainState, stop_requested: Callable[[], bool]) -> str:
    """Train from `state.step` to the end of the schedule.

    Args:
        job: everything that does not change during the run.
        state: updated in place; saved by `job.save`.
        stop_requested: asked after every step; when true in one process the run is saved and left, resumable.

    Returns:
        `finished`, `stopped` or `stopped_early`.

    Raises:
        NotFiniteError: the loss, gradient, update or validation loss is not finite; nothing of the step is saved.
    """
    config = job.config
    job.model.train()
    started, elapsed_before = time.monotonic(), state.elapsed_seconds
    mark_seconds, mark_tokens = state.seconds.get("steps", 0.0), state.num_tokens
    status = _status(config, state, state.step >= job.pace.total_steps, False)
    while status == "running":
        if job.pace.revise(state):
            job.progress.length(job.pace.total_steps)
        total_steps = job.pace.total_steps
        is_last = state.step + 1 >= total_steps
        evaluates = job.evaluate is not None and (is_last or job.pace.evaluates_at(state.step + 1))
        is_logged = evaluates or is_last or is_log_step(state.step + 1, config.log_steps)
        update_stats = UpdateStats(job.model, job.sharing) if is_logged else None
        job.sharing.processes.mark("step", state.step)  # what was announced is over: whoever hangs now is found
        with state.timed("steps"):
            gradient, factor = update(job, state, update_stats)

        state.step += 1
        state.num_tokens += gradient.num_targets
        state.metrics = {**state.metrics, "loss": gradient.loss}
        evaluation = _evaluate(job, state) if job.evaluate is not None and evaluates else None
        is_best = evaluation is not None and state.best_step == state.step
        samples = job.pace.samples_at(state.step)
        if samples or is_logged:  # by the first process alone, which may take long or wait for a disk: all say so
            job.sharing.processes.mark("records")
        if job.sample is not None and samples:
            with state.timed("samples"):
                job.sample(state)
        state.elapsed_seconds = elapsed_before + time.monotonic() - started
        tokens_per_second = (state.num_tokens - mark_tokens) / max(state.seconds["steps"] - mark_seconds, 1e-9)
        if update_stats is not None:
            with state.timed("logging"):
                record = _record(job, state, gradient, factor, evaluation)
                job.log(record | _measured(job, state, update_stats, tokens_per_second))
            mark_seconds, mark_tokens = state.seconds["steps"], state.num_tokens
        job.progress.step(state, tokens_per_second)

        status = _status(config, state, is_last, job.sharing.processes.any(stop_requested()))
        if is_best or status != "running" or state.step % (config.save_steps or total_steps) == 0:
            with state.timed("saves"):
                job.save(state, status, is_best)
            state.elapsed_seconds = elapsed_before + time.monotonic() - started
    return status


def is_log_step(step: int, log_steps: int) -> bool:
    """Whether a step is logged for its number alone: every `log_steps`, and before the first of them 1, 2, 4, 8, ...

    A run shows most of what is wrong with it in its first steps, so that even a coarse log must know them.
    """
    return step % log_steps == 0 or (step < log_steps and step.bit_count() == 1)


def update(job: Job, state: TrainState, update_stats: UpdateStats | None = None) -> tuple[Gradient, float]:
    """One update of the weights: gradient, learning rate, step.

    Args:
        job, state: as in `train`; the step is not counted here.
        update_stats: reads how far the weights move.

    Returns:
        What the batch gave, and the share of the peak learning rate that was used.

    Raises:
        NotFiniteError: the loss, the gradient or the update is not finite.
    """
    begun = time.monotonic()
    micro_batches = list(job.batches.micro_batches(state.step, job.config.micro_batch_size))
    fetched = time.monotonic()
    gradient = find_gradient(job, state, micro_batches)
    for name, value in (("loss", gradient.loss), ("grad_norm", gradient.norm)):
        if not math.isfinite(value):
            culprit = first_bad_tensor(named_tensors(job.model))
            raise _not_finite(job, state, micro_batches, f"{name} is {value}", culprit)
    count_step_at_loss_scale(state)
    ready = time.monotonic()
    state.spend("data", fetched - begun)
    state.spend("forward_backward", ready - fetched)
    factor = job.pace.factor(state.step)
    if update_stats is not None:
        update_stats.begin()
    job.optimizers.step(factor)
    culprit = first_bad_after_update(job.model, job.optimizers)
    if job.sharing.processes.any(culprit is not None):
        raise _not_finite(job, state, micro_batches, "the update is not finite", culprit)
    if update_stats is not None:
        update_stats.end()
    state.spend("optimizer", time.monotonic() - ready)
    return gradient, factor


def find_gradient(job: Job, state: TrainState, micro_batches: Sequence[Batch]) -> Gradient:
    """Leave the gradient of a step in the weights' `grad`; one that overflows is computed again at half the scale."""
    config = job.config
    if config.final_dropout is not None:
        progress = job.pace.progress(state.step)
        set_dropout(job.model, config.dropout + (config.final_dropout - config.dropout) * progress)

    def compute() -> Gradient:
        return compute_gradient(
            job.model, micro_batches, state.step, config, job.hardware, job.loss_function, state.loss_scale, job.sharing
        )

    gradient = compute()
    while not math.isfinite(gradient.norm) and lower_loss_scale(state):
        job.optimizers.zero_grad()
        gradient = compute()
    return gradient


def _not_finite(
    job: Job, state: TrainState, micro_batches: Sequence[Batch], what: str, culprit: str | None
) -> NotFiniteError:
    everybodys = job.sharing.processes.gather([row for batch in micro_batches for row in batch.sample_ids.tolist()])
    examples = [int(row) for rows in everybodys for row in rows]
    return not_finite(state.step + 1, what, culprit, examples, job.run_dir)


def _evaluate(job: Job, state: TrainState) -> Evaluation:
    """Evaluate, and remember the figures; `state.best_step` is this step when it is the best so far."""
    assert job.evaluate is not None  # the caller asked
    with state.timed("evaluations"):
        evaluation = job.evaluate()
    if not math.isfinite(evaluation.score):  # the weights are finite, and what they compute is not
        figure = f"{next(iter(evaluation.figures), 'the evaluation')} is {evaluation.score}"
        raise not_finite(state.step, figure, None, [], job.run_dir)
    is_best = state.best_val_loss is None or evaluation.score < state.best_val_loss
    if is_best:
        state.best_val_loss, state.best_step = evaluation.score, state.step
    state.evaluations_without_gain = 0 if is_best else state.evaluations_without_gain + 1
    state.metrics = {**state.metrics, **evaluation.figures}
    return evaluation


def _record(
    job: Job, state: TrainState, gradient: Gradient, factor: float, evaluation: Evaluation | None
) -> dict[str, Any]:
    """One line of log.jsonl. All but the readings of clock and memory are the same in a resumed run, bit for bit."""
    muon = {"muon_learning_rate": job.config.muon_learning_rate * factor} if job.config.optimizer == "muon" else {}
    return {
        "step": state.step,
        "epoch": round(job.batches.epoch(state.step), 6),
        "num_tokens": state.num_tokens,
        "learning_rate": job.config.learning_rate * factor,
        **muon,
        "loss": gradient.loss,
        "grad_norm": gradient.norm,
        **dict(sorted(gradient.figures.items())),
        **(evaluation.figures if evaluation is not None else {}),
    }


def _measured(job: Job, state: TrainState, update_stats: UpdateStats, tokens_per_second: float) -> dict[str, Any]:
    """The rest of the line: the clock, what each part did, the loss scale of fp16, where all the time went, memory."""
    scale = {"loss_scale": state.loss_scale} if job.hardware.precision == "fp16" else {}
    seconds = {kind: round(spent, 3) for kind, spent in state.seconds.items() if kind != "steps"}
    clock = {"elapsed_seconds": round(state.elapsed_seconds, 3), "tokens_per_second": round(tokens_per_second, 1)}
    return {**clock, **update_stats.figures, **scale, "seconds": seconds, **peak_memory(job.hardware.device)}


def _status(config: TrainingConfig, state: TrainState, is_last: bool, stop_requested: bool) -> str:
    if is_last:
        return "finished"
    if config.early_stopping_patience is not None and state.evaluations_without_gain >= config.early_stopping_patience:
        return "stopped_early"
    return "stopped" if stop_requested else "running"
