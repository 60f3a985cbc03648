"""Pretraining: from a config to a run directory with checkpoints and a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from tiny_transformer.data.batches import Batch, Batches
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.loss import SplitLoss
from tiny_transformer.evaluation.validation import validation_batches, validation_loss
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.hardware import Hardware, choose_hardware
from tiny_transformer.models import build_model, load_weights
from tiny_transformer.parallel.processes import ALONE, Processes, fellow_processes
from tiny_transformer.parallel.sharing import Sharded, Sharing, check_shares, local_part, repeatable_arithmetic, share
from tiny_transformer.parallel.stop import StopSignals
from tiny_transformer.stages.launch import (
    Request,
    as_read,
    choose_run_dir,
    clear_run,
    fit_vocabulary,
    open_training_data,
    settle_data_dir,
)
from tiny_transformer.stages.minutes.calibration import take_choice
from tiny_transformer.stages.minutes.timing import measure_speed
from tiny_transformer.stages.preflight import check_disk, check_memory
from tiny_transformer.stages.resume_check import check_changes, identity_of
from tiny_transformer.stages.samples import Sampler, distinct_prompts
from tiny_transformer.stages.summary import RunResult, announce
from tiny_transformer.storage import Checkpoint, RunDirectory, StepLog, atomic_write
from tiny_transformer.storage.runs import holds_a_run, load_identity
from tiny_transformer.training import plan as planning
from tiny_transformer.training.checkpoint_writer import (
    CheckpointWriter,
    environment,
    facts_of,
    restore_links,
    write_config,
)
from tiny_transformer.training.loggers import Loggers, check_installed
from tiny_transformer.training.loop import Job, Progress, Save, train
from tiny_transformer.training.loss_scale import first_loss_scale
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.modifiers import checkpoint_gradients
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.progress import TrainingProgress
from tiny_transformer.training.state import TrainState, load_state


def pretrain(request: Request, console: Console) -> RunResult:
    """Run or resume a pretraining, together with the other processes that `torchrun` started.

    Raises:
        UserError: whatever stands in the way, found before the first step where possible.
    """
    with ExitStack() as stack:
        stack.enter_context(repeatable_arithmetic(request.config.training))
        processes = stack.enter_context(fellow_processes(request.config.training))
        if not processes.is_first:
            console = Console(quiet=True)
        return _pretrain(request, processes, console)


def _pretrain(request: Request, processes: Processes, console: Console) -> RunResult:
    """The first process alone decides about files, and writes them; the others wait for it and read."""
    training = request.config.training
    hardware = choose_hardware(training.device, training.precision)
    check_shares(training, processes, hardware)
    if processes.is_first:
        check_installed(training.loggers)  # before anything is written, or removed by `overwrite`
    run_dir = Path(processes.broadcast(str(choose_run_dir(request)) if processes.is_first else ""))
    if hardware.note:
        console.print(hardware.note, highlight=False)
    config = settle_data_dir(request, console)
    dataset = open_training_data(config, console) if processes.is_first else None
    processes.barrier()  # the data is there now
    dataset = dataset or open_training_data(config, console)
    config = as_read(config, dataset)
    begun = time.monotonic()
    if request.chooses and not request.resume:
        config = take_choice(config, dataset, hardware, processes, console)
    config = fit_vocabulary(config, dataset, console)
    if processes.world_size == 1:
        check_memory(config, hardware, console)
    run = RunDirectory(run_dir)
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(run.lock())
            if request.overwrite and holds_a_run(run_dir):
                clear_run(run_dir)
            run.clean_leftovers()
        start = Run(replace(request, config=config), run, dataset, hardware, console, processes)
        start.state.elapsed_seconds = time.monotonic() - begun  # choosing is part of the minutes
        return start.go(stack)


class Run:
    """One start of a run: from an open data set and a locked directory to the end of training."""

    def __init__(
        self,
        request: Request,
        run: RunDirectory,
        dataset: Dataset,
        hardware: Hardware,
        console: Console,
        processes: Processes = ALONE,
    ) -> None:
        self.request, self.config, self.run = request, request.config, run
        self.dataset, self.hardware, self.console = dataset, hardware, console
        self.processes, training = processes, self.config.training
        self.model, self.sharing, self.optimizers = self.build()
        self.batches = Batches(
            dataset.train,
            seq_len=self.config.data.seq_len,
            global_batch_size=training.micro_batch_size * training.grad_accum_steps,
            seed=training.seed,
            packing=self.config.data.packing,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        self.identity = identity_of(self.config, dataset.meta.fingerprint, dataset.tokenizer.fingerprint)
        self.state = TrainState(loss_scale=first_loss_scale(hardware.precision))

    def build(self) -> tuple[Any, Sharing, Optimizers]:
        """A model with its first weights, how the processes share it, and its optimizers."""
        training, device = self.config.training, str(self.hardware.device)
        is_sharded = self.processes.world_size > 1 and training.parallelism == "fsdp"
        model = build_model(
            self.config.model,
            seed=training.seed,
            dropout=training.dropout,
            device="cpu" if is_sharded else device,  # sharding moves it, block by block
            zero_residual=training.zero_residual,
        )
        if training.gradient_checkpointing:
            checkpoint_gradients(model)
        sharing = share(model, self.processes, training, self.hardware)
        return model, sharing, Optimizers(model, training)

    def go(self, stack: ExitStack) -> RunResult:
        """Resume if asked, plan, train."""
        if self.request.resume:
            self.load(self.run.newest_whole() if self.processes.is_first else (None, []))
        if self.processes.is_first:
            restore_links(self.run, self.state)
            check_disk(self.run, self.config, self.model, self.optimizers, self.identity)
        log, keep = self._records(stack) if self.processes.is_first else (None, lambda record: None)
        pace = self._pace()
        parameters = sum(p.numel() for p in self.model.parameters())
        device = self.hardware.describe() + self.processes.describe()
        announce(self.run.path, pace.plan, self.config, self.dataset, parameters, device, self.console)
        stop = stack.enter_context(StopSignals())
        with TrainingProgress(self.console, pace.total_steps, self.state.step) as progress:
            job = self.job(pace, save=self._writer(pace, log), log=keep, progress=progress)
            status = train(job, self.state, stop)
        is_first = self.processes.is_first
        return RunResult(self.run.path, status, self.state, self.dataset, self.config, self.hardware, is_first)

    def _records(self, stack: ExitStack) -> tuple[StepLog, Callable[[dict[str, Any]], None]]:
        """Write config.yaml; open log.jsonl at the step where the run stands, and give what takes a line of it."""
        settings = self.config.model_dump(mode="json")
        loggers = Loggers(self.config.training.loggers, self.run.path, settings, self.state.step)
        stack.callback(loggers.close)
        log = StepLog(self.run.path / "log.jsonl")
        stack.callback(log.close)
        log.truncate_after(self.state.step)
        write_config(self.run.path, self.config, self.request.command)

        def keep(record: dict[str, Any]) -> None:
            log.append(record)
            loggers(record)

        return log, keep

    def load(self, found: tuple[Checkpoint | None, list[UserError]]) -> None:
        """Take up a checkpoint; without one, start from the beginning. Damaged ones that were passed over are named.
        What the first process has found counts."""
        checkpoint, damaged = found
        for problem in damaged:
            self.console.print(f"skipping a damaged checkpoint: {problem.what} ({problem.where})", highlight=False)
        name = self.processes.broadcast(None if checkpoint is None else str(checkpoint.path))
        if name is None:
            self.console.print("there is no checkpoint to go on from: starting from the beginning", highlight=False)
            return
        path = Path(name)
        check_changes(load_identity(path), self.config, self.identity, path, self.console)
        load_weights(self.model, path, local_part)
        self.state = load_state(path, self.model, self.optimizers)
        if self.hardware.precision != "fp16":
            self.state.loss_scale = 1.0
        self.console.print(f"resuming from step {self.state.step:,} ({path})", highlight=False)

    def _pace(self) -> planning.Pace:
        """The plan of an earlier start, or a new one."""
        training = self.config.training
        plan = planning.read_plan(self.run.path) if self.request.resume else None
        self.processes.barrier()  # everybody has read it before the first process writes it
        if plan is not None and plan.asked != planning.Asked.by(training):
            plan = None
        speed, begun = None, time.monotonic()
        if training.max_train_minutes is not None and (plan is None or not plan.is_fixed):
            self.console.print("[dim]timing a few steps to plan the run[/]")
            speed = measure_speed(self)
            spent = self.processes.broadcast(time.monotonic() - begun)
            self.state.elapsed_seconds += spent
            self.state.spend("planning", spent)
        if plan is None and speed is not None:
            plan = planning.plan_for_minutes(training, self.config.tokens_per_step, self.state, speed)
        elif plan is None:
            plan = planning.plan_for_counts(training, self.config.tokens_per_step)
        path, is_first = self.run.path / planning.FILE, self.processes.is_first

        def write(plan: planning.Plan) -> None:
            if is_first:
                atomic_write(path, plan.to_json())

        is_counted = training.steps is not None or training.max_tokens is not None
        most = planning.plan_for_counts(training, self.config.tokens_per_step).total_steps if is_counted else math.inf
        return planning.Pace(plan, training, speed, write, self.processes.broadcast, most_steps=most)

    def job(self, pace: planning.Pace, *, save: Save, log: Callable[[dict[str, Any]], None], progress: Progress) -> Job:
        """What the loop is handed."""
        evaluates = self.config.training.eval_steps is not None
        return Job(
            model=self.compiled(self.model),
            optimizers=self.optimizers,
            pace=pace,
            batches=self.batches,
            loss_function=language_modelling_loss,
            evaluate=(lambda: self.split_loss(validation_batches(self.config, self.dataset))) if evaluates else None,
            sample=self.sampler(),
            save=save,
            log=log,
            config=self.config.training,
            hardware=self.hardware,
            progress=progress,
            sharing=self.sharing,
            run_dir=self.run.path,
        )

    def sampler(self) -> Sampler | None:
        """None when there is no prompt, or one that this tokenizer cannot write (the end of the run tells which), or
        when this process does not write, or has only parts of the model."""
        if not self.processes.is_first or isinstance(self.sharing, Sharded):
            return None
        prompts = distinct_prompts(self.config.training.sample_prompts)
        try:
            for prompt in prompts:
                encode_prompt(self.dataset.tokenizer, prompt)
        except UserError:
            return None
        return Sampler(self.model, self.dataset.tokenizer, prompts, self.run.path) if prompts else None

    def compiled(self, model: nn.Module) -> nn.Module:
        if not self.config.training.compile:
            return model
        compiled = copy(model)  # the same weights; evaluation and generation go on with the plain model
        compiled.backbone = torch.compile(compiled.backbone)  # ty: ignore[no-matching-overload]
        return compiled

    def split_loss(self, batches: Iterable[Batch]) -> SplitLoss:
        return validation_loss(self.model, batches, self.config, self.dataset, self.hardware, self.sharing)

    def _writer(self, pace: planning.Pace, log: StepLog | None) -> CheckpointWriter:
        facts = {
            "run": self.run.path.name,
            "steps_per_epoch": self.batches.steps_per_epoch,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "device": self.hardware.describe(),
            "precision": self.hardware.precision,
            "num_threads": torch.get_num_threads(),
            "num_processes": self.processes.world_size,
            "versions": environment(),
            "command": self.request.command,
            **facts_of(self.dataset),
        }
        return CheckpointWriter(
            self.run,
            log,
            self.model,
            self.optimizers,
            self.dataset.tokenizer,
            self.identity,
            lambda: {"total_steps": pace.total_steps, **facts},
            self.config.training.keep_checkpoints,
            self.sharing,
        )
