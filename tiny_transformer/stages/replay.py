"""Make one step of a run again: from the newest checkpoint before it, over the same batches, and look at it.

Nothing is written. It shows what the log has no room for: which examples were in the batch and how their text begins,
and the gradient of each block. After a loss that is no number it names the first tensor that went bad.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tiny_transformer.config.keys import valid_keys
from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig, sections_of
from tiny_transformer.config.secrets import last_parts
from tiny_transformer.errors import ExitCode, UserError, command_line
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.processes import ALONE
from tiny_transformer.stages.resume_check import check_data
from tiny_transformer.stages.run import Run
from tiny_transformer.stages.stage import Request, stage_class
from tiny_transformer.storage import RunDirectory, read_log
from tiny_transformer.storage.runs import CONFIG_FILE, LOG_FILE, holds_a_run, load_identity
from tiny_transformer.training import plan as planning
from tiny_transformer.training.gradient import Gradient
from tiny_transformer.training.loop import Job, find_gradient, train
from tiny_transformer.training.nonfinite import first_bad_after_update, first_bad_tensor, named_tensors
from tiny_transformer.training.progress import TrainingProgress
from tiny_transformer.training.state import TrainState

SAME = 1e-4  # relative: other threads or another processor round differently


def replay(run_dir: Path, step: int, console: Console) -> Gradient:
    """Make update number `step` (the first is 1) of a run again, and show its gradient and what it leaves behind.

    Raises:
        UserError: there is no such run or step, or what it was trained on is gone or has changed.
    """
    if not holds_a_run(run_dir):
        raise UserError("this is not a training run", where=str(run_dir), remedy="tiny-transformer runs lists the runs")
    directory = RunDirectory(run_dir)
    config = _settings_of_step(directory, step)
    plan = planning.read_plan(run_dir)
    if plan is None:
        remedy = command_line("tiny-transformer", "train", "--resume", "--out_dir", run_dir)
        raise UserError(
            "this run was never started",
            where=str(run_dir),
            remedy=remedy,
            exit_code=ExitCode.BAD_DATA,
        )
    if not 1 <= step <= plan.total_steps:
        raise UserError(
            f"--step {step:,} is not one of the run's steps",
            where=str(run_dir),
            remedy=f"--step N, from 1 to {plan.total_steps:,}",
        )
    quiet = config.training.model_copy(update={"eval_steps": None, "early_stopping_patience": None, "loggers": ()})
    hardware = choose_hardware(quiet.device, quiet.precision)
    request = Request(config, run_dir.name, asked=frozenset(), resume=True)  # `check_data` judges the data
    stage = stage_class(config).open(request, run_dir, hardware, ALONE, console)
    run = Run(request, stage, directory, hardware, console)
    check_data(directory, stage.fingerprints())
    run.load(directory.newest_whole(before=step))
    run.begin(writes=False)
    pace = planning.Pace(replace(plan, is_fixed=True), quiet, None, lambda plan: None)
    with TrainingProgress(console, step, run.state.step) as progress:
        job = run.job(pace, save=_save_nothing, log=lambda record: None, progress=progress)
        job = replace(job, config=quiet, evaluate=None, sample=None)
        if run.state.step < step - 1:
            train(job, run.state, lambda: run.state.step >= step - 1)
    job.model.train()
    micro_batches = list(job.batches.micro_batches(run.state.step, quiet.micro_batch_size))
    gradient = find_gradient(job, run.state, micro_batches)
    _compare_with_log(run_dir, step, gradient.loss, quiet.learning_rate * pace.factor(step - 1), console)
    _show(job, run.state.step, gradient, console)
    console.print(run.stage.show_batch(micro_batches))
    job.optimizers.step(job.pace.factor(run.state.step))
    if (culprit := first_bad_after_update(job.model, job.optimizers)) is not None:
        console.print(f"[bold red]not finite after the update[/]: first bad tensor {culprit}", highlight=False)
    return gradient


def _settings_of_step(run: RunDirectory, step: int) -> RunConfig:
    """What a step was made with: a resumption may have changed config.yaml since then, but the first checkpoint after
    the step holds the settings of the start that made it. Where data and device are now, config.yaml says."""
    now = load_run_config(str(run.path / CONFIG_FILE))
    after = next((checkpoint for checkpoint in run.checkpoints() if checkpoint.step >= step), None)
    if after is None:
        return now
    tree: dict[str, dict[str, Any]] = {section: {} for section in sections_of(type(now))}
    keys = valid_keys(type(now))
    for key, value in load_identity(after.path).items():
        section, _, name = key.partition(".")
        if key in keys and section in tree:
            whole = getattr(getattr(now, section), name)  # of a path a checkpoint names the last parts alone
            tree[section][name] = whole if isinstance(whole, str) and value == last_parts(whole) else value
    tree["data"] |= {"data_dir": now.data.data_dir, "source": now.data.source}
    tree["training"]["device"] = now.training.device
    return load_run_config({**tree, "stage": now.stage, "init_from": now.init_from, "out_dir": now.out_dir})


def _compare_with_log(run_dir: Path, step: int, loss: float, learning_rate: float, console: Console) -> None:
    """Say so when the log tells another story of this step: it was made with settings that no checkpoint holds."""
    told = next((row for row in read_log(run_dir / LOG_FILE) if row.get("step") == step), {})
    for name, found in (("loss", loss), ("learning_rate", learning_rate)):
        logged = told.get(name)
        if isinstance(logged, float) and not math.isclose(found, logged, rel_tol=SAME):
            console.print(
                f"[bold red]not the same step[/]: its {name} was {logged:.6g} in the log and is {found:.6g} now: it "
                "was made with other settings, on another machine, or under another plan",
                highlight=False,
            )


def _save_nothing(state: TrainState, status: str, is_best: bool) -> None:
    """A replay leaves the run as it is."""


def _show(job: Job, step: int, gradient: Gradient, console: Console) -> None:
    console.print(
        f"\nstep {step + 1:,}: loss {gradient.loss:.6g}, gradient norm {gradient.norm:.6g}, learning rate "
        f"{job.config.learning_rate * job.pace.factor(step):.3g}, {gradient.num_targets:,} targets",
        highlight=False,
    )
    if not math.isfinite(gradient.loss) or not math.isfinite(gradient.norm):
        culprit = first_bad_tensor(named_tensors(job.model))
        console.print(f"[bold red]not finite[/]: first bad tensor {culprit or 'none: only the loss'}", highlight=False)
    console.print(_gradients(job.model))


def _gradients(model: CausalLM) -> Table:
    """Norm of each block's gradient, after clipping, beside the norm of its weights."""
    table = Table(title="gradients", title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("part")
    table.add_column("weights", justify="right")
    table.add_column("gradient", justify="right")
    squares: dict[str, list[float]] = {}
    for name, parameter in model.named_parameters():
        pieces = name.split(".")
        part = ".".join(pieces[:3]) if "layers" in pieces else name
        sums = squares.setdefault(part, [0.0, 0.0])
        sums[0] += parameter.detach().double().square().sum().item()
        sums[1] += 0.0 if parameter.grad is None else parameter.grad.double().square().sum().item()
    for part, (weights, gradient) in squares.items():
        table.add_row(part, f"{math.sqrt(weights):.4g}", f"{math.sqrt(gradient):.4g}")
    return table
