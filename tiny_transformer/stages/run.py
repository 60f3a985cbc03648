"""One start of a run: build or load, resume, plan, train, save. It knows no stage by name.

What is particular to pretraining, fine-tuning or alignment stands in a `Stage`; here is what they share.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from tiny_transformer.config.secrets import last_parts, without_secrets
from tiny_transformer.errors import UserError
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.processes import ALONE, Processes
from tiny_transformer.parallel.sharing import Sharded, Sharing, share
from tiny_transformer.parallel.stop import StopSignals, output_note
from tiny_transformer.stages.preflight import check_disk
from tiny_transformer.stages.resume_check import check_changes, identity_of
from tiny_transformer.stages.samples import Sampler, distinct_prompts
from tiny_transformer.stages.stage import Beginning, Request, RunResult, Stage
from tiny_transformer.stages.summary import announce
from tiny_transformer.storage import Checkpoint, RunDirectory, StepLog, atomic_write
from tiny_transformer.storage.runs import LOG_FILE, NOT_FINITE_FILE, load_identity
from tiny_transformer.storage.temporary import LEFTOVER_PREFIX
from tiny_transformer.training import plan as planning
from tiny_transformer.training.checkpoint_writer import (
    CheckpointWriter,
    environment,
    restore_links,
    write_config,
)
from tiny_transformer.training.contract import Evaluation
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.loggers import Loggers
from tiny_transformer.training.loop import Job, Progress, Save, train
from tiny_transformer.training.loss_scale import first_loss_scale
from tiny_transformer.training.modifiers import checkpoint_gradients, compile_backbone, use_blocked_attention
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.patience import Patience, at_once
from tiny_transformer.training.progress import TrainingProgress
from tiny_transformer.training.resuming import note_on_log, take_up
from tiny_transformer.training.speed import Speed, measure_seconds
from tiny_transformer.training.state import TrainState, load_state

TIMED_SAVE = LEFTOVER_PREFIX + "timed-save"  # what a killed start leaves of it, the next one removes


class Run:
    """One start of a run: from an opened stage and a locked directory to the end of training.

    Attributes:
        config, batches, model, optimizers, sharing, state: what is trained, on what, how far.
        identity: what a resumed run is compared with, see `resume_check`.
    """

    def __init__(
        self,
        request: Request,
        stage: Stage,
        directory: RunDirectory,
        hardware: Hardware,
        console: Console,
        processes: Processes = ALONE,
    ) -> None:
        self.request, self.stage, self.config, self.directory = request, stage, stage.config, directory
        self.hardware, self.console, self.processes = hardware, console, processes
        self.model, self.sharing, self.optimizers = self.build()
        self.batches = stage.batches(processes.rank, processes.world_size)
        self.identity = identity_of(self.config, stage.fingerprints())
        self.state = TrainState(loss_scale=first_loss_scale(hardware.precision))
        self.patient: Callable[[Callable[[], None]], None] = at_once

    def build(self) -> tuple[CausalLM, Sharing, Optimizers]:
        """A model, how the processes share it, and its optimizers."""
        training, device = self.config.training, str(self.hardware.device)
        is_sharded = self.processes.world_size > 1 and training.parallelism == "fsdp"
        model = self.stage.build_model("cpu" if is_sharded else device)  # sharding moves it, block by block
        if training.gradient_checkpointing:
            checkpoint_gradients(model)
        if training.attention == "blocks":
            use_blocked_attention(model)
        sharing = share(cast(nn.Module, model), self.processes, training, self.hardware)
        return model, sharing, Optimizers(model, training, self.hardware.update_dtype)

    def execute(self, stack: ExitStack) -> RunResult:
        """Resume if asked, plan, train."""
        if self.request.resume:
            self.load(self.directory.newest_whole() if self.processes.is_first else (None, []))
        else:
            self.stage.load_first_weights(self.model)
        if self.processes.is_first:
            restore_links(self.directory, self.state)
            check_disk(self.directory, self.config, self.model, self.optimizers, self.identity, self.stage.tokenizer)
        log, keep = self._records(stack) if self.processes.is_first else (None, lambda record: None)
        self.begin(writes=True)
        pace = self._pace()
        parameters = sum(p.numel() for p in self.model.parameters())
        device = self.hardware.describe() + self.processes.describe()
        data = "; ".join(filter(None, [self.stage.describe_data(pace.total_steps), self.stage.adapters]))
        told = (data, parameters, device, self.console, self.stage.example or self.stage.target)
        announce(self.directory.path, pace.plan, self.config, *told)
        stop = stack.enter_context(StopSignals())
        self.patient = Patience(stop, partial(self.console.print, highlight=False, markup=False))
        is_asked = pace.plan.asked != planning.Asked(None, None, None)
        asked = {"is_asked": is_asked, "target": self.stage.target}
        with TrainingProgress(self.console, pace.total_steps, self.state.step, **asked) as progress:
            job = self.job(pace, save=self._writer(pace, log), log=keep, progress=progress)
            status = train(job, self.state, stop)
        return RunResult(self.directory.path, status, self.state, self.stage, self.hardware, self.processes.is_first)

    def load(self, found: tuple[Checkpoint | None, list[UserError]]) -> None:
        """Take up a checkpoint; without one, start from the beginning. Damaged ones that were passed over are named.
        What the first process has found counts."""
        say = partial(self.console.print, highlight=False, markup=False)
        path = take_up(self.directory, found, self.processes, self._load_from, say)
        if path is None:
            where = "from the beginning" if self.config.init_from is None else f"from {self.config.init_from} again"
            say(f"there is no checkpoint to resume from: starting {where}")
            self.stage.load_first_weights(self.model)
            return
        if problem := note_on_log(path, self.directory.path / LOG_FILE):
            say(f"{problem}: the log before step {self.state.step:,} is not as it was; the weights are")
        say(f"resuming from step {self.state.step:,} ({path})")

    def _load_from(self, path: Path) -> None:
        check_changes(load_identity(path), self.config, self.identity, path, self.console)
        self.stage.load_saved_weights(self.model, path)
        self.state = load_state(path, self.model, self.optimizers)
        if self.hardware.precision != "fp16":
            self.state.loss_scale = 1.0

    def begin(self, *, writes: bool) -> None:
        """Tell the stage that its model has its weights now."""
        own = self.model, self.directory.path, self.hardware, self.processes
        self.stage.begin(Beginning(*own, writes, lambda do: self.patient(do)))

    def job(self, pace: planning.Pace, *, save: Save, log: Callable[[dict[str, Any]], None], progress: Progress) -> Job:
        """What the loop is handed."""
        evaluates = self.config.training.eval_steps is not None
        return Job(
            model=self.compiled(self.model),
            optimizers=self.optimizers,
            pace=pace,
            batches=self.batches,
            loss_function=self.stage.loss,
            evaluate=self.evaluate if evaluates else None,
            sample=self.sampler(),
            save=save,
            log=log,
            config=self.config.training,
            hardware=self.hardware,
            progress=progress,
            sharing=self.sharing,
            run_dir=self.directory.path,
        )

    def evaluate(self) -> Evaluation:
        """How good the model is as it stands."""
        return self.stage.evaluate(self.model, self.stage.evaluation_batches(), self.hardware, self.sharing)

    def sampler(self) -> Sampler | None:
        """None when there is no prompt, or one that this tokenizer cannot write (the end of the run tells which), or
        when this process does not write, or has only parts of the model."""
        if not self.processes.is_first or isinstance(self.sharing, Sharded):
            return None
        prompts = distinct_prompts(self.config.training.sample_prompts)
        try:
            for prompt in prompts:
                encode_prompt(self.stage.tokenizer, prompt)
        except UserError:
            return None
        if not prompts:
            return None
        chances = partial(self.stage.chances, self.model, self.hardware)
        return Sampler(self.model, self.stage.tokenizer, prompts, self.directory.path, chances, self.patient)

    def compiled(self, model: CausalLM) -> CausalLM:
        """The same weights, for training; evaluation and generation go on with the plain model."""
        return compile_backbone(model) if self.config.training.compile else model

    def _records(self, stack: ExitStack) -> tuple[StepLog, Callable[[dict[str, Any]], None]]:
        """Write config.yaml; open log.jsonl at the step where the run stands, and give what takes a line of it."""
        settings, path = self.config.model_dump(mode="json"), self.directory.path
        names, tell = self.config.training.loggers, self.console.print
        loggers = Loggers(names, path, settings, self.state.step, tell=tell)
        stack.callback(loggers.close)
        log = StepLog(path / LOG_FILE, after=self.state.step)
        stack.callback(log.close)
        write_config(path, self.config, self.request.command)
        (path / NOT_FINITE_FILE).unlink(missing_ok=True)

        def keep(record: dict[str, Any]) -> None:
            self.patient(lambda: log.append(record))
            loggers(record)

        return log, keep

    def _pace(self) -> planning.Pace:
        """The plan of an earlier start, or a new one."""
        training, tokens = self.config.training, self.config.tokens_per_step
        plan = planning.read_plan(self.directory.path) if self.request.resume else None
        self.processes.barrier()  # everybody has read it before the first process writes it
        if plan is not None and plan.asked != planning.Asked.by(training):
            plan = None
        speed, begun = None, time.monotonic()
        if training.max_train_minutes is not None and (plan is None or not plan.is_fixed):
            self.console.print("[dim]timing a few steps to plan the run[/]")
            speed = self.measure_speed()
            spent = self.processes.broadcast(time.monotonic() - begun)
            self.state.elapsed_seconds += spent
            self.state.spend("planning", spent)
        if plan is None and speed is not None:
            plan = planning.plan_for_minutes(training, tokens, self.state, speed)
        elif plan is None:
            plan = planning.plan_for_counts(training, tokens)
        path, is_first = self.directory.path / planning.FILE, self.processes.is_first

        def write(plan: planning.Plan) -> None:
            self.processes.mark("records")  # as in the loop
            if is_first:
                self.patient(lambda: atomic_write(path, plan.to_json(), makes_parents=False))

        counted = planning.counted_plan(training, tokens)
        most_steps = math.inf if counted is None else counted.total_steps
        limits = {"most_steps": most_steps, "period": self.stage.steps_per_round}
        return planning.Pace(plan, training, speed, write, self.processes.broadcast, **limits)

    def measure_speed(self) -> Speed:
        """Time what the run will do, on a second model, so that its own does not learn from it; every process takes
        part, and the first one's clock counts."""
        training, agree = self.config.training, self.processes.broadcast
        model, sharing, optimizers = self.build()
        compiled = self.compiled(model)
        begun = time.monotonic()
        micro_batches = list(self.batches.micro_batches(self.state.step, training.micro_batch_size))
        fetch_seconds = agree(time.monotonic() - begun) / self.stage.steps_per_round

        def step() -> None:
            loss, hardware = self.stage.loss, self.hardware
            compute_gradient(compiled, micro_batches, 0, training, hardware, loss, sharing=sharing)
            optimizers.step(0.0)

        def save() -> None:
            with ExitStack() as stack:
                directory, log = RunDirectory(self.directory.path / TIMED_SAVE), None
                if self.processes.is_first:
                    stack.callback(shutil.rmtree, directory.path, ignore_errors=True)
                    stack.enter_context(directory.lock())
                    log = StepLog(directory.path / LOG_FILE)
                    stack.callback(log.close)
                facts = {"steps_per_epoch": self.batches.steps_per_epoch}
                writer = CheckpointWriter(
                    directory, log, model, optimizers, self.stage.save, self.identity, lambda: facts, 1, sharing
                )
                writer(TrainState(step=1), "running", is_best=False)

        budget = 60 * (training.max_train_minutes or 0.0)
        step_seconds = fetch_seconds + measure_seconds(step, agree, at_least_seconds=min(2.0, 0.01 * budget))
        save_seconds = measure_seconds(save, agree, at_least_seconds=0.0, warm_up=0, least=1)
        return Speed(step_seconds, self._evaluation_seconds(), save_seconds, self._sampling_seconds())

    def _evaluation_seconds(self) -> float:
        if self.config.training.eval_steps is None:
            return 0.0
        batches = list(self.stage.evaluation_batches())
        few, world_size = batches[:2], self.processes.world_size

        def evaluate() -> None:
            self.stage.evaluate(self.model, few, self.hardware, self.sharing)

        seconds = measure_seconds(evaluate, self.processes.broadcast, at_least_seconds=0.5, warm_up=1)
        return seconds * -(-len(batches) // world_size) / -(-len(few) // world_size)

    def _sampling_seconds(self) -> float:
        sampler = self.sampler()
        seconds = measure_seconds(sampler.rehearse, at_least_seconds=0.1, warm_up=1) if sampler else 0.0
        return self.processes.broadcast(seconds)

    def _writer(self, pace: planning.Pace, log: StepLog | None) -> CheckpointWriter:
        facts = {
            "run": self.directory.path.name,
            "steps_per_epoch": self.batches.steps_per_epoch,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "device": self.hardware.describe(),
            "precision": self.hardware.precision,
            "num_threads": torch.get_num_threads(),
            "num_processes": self.processes.world_size,
            "versions": environment(),
            "command": without_secrets(self.request.command),
            **({} if self.config.init_from is None else {"init_from": last_parts(str(self.config.init_from))}),
            **({} if self.stage.target == "token" else {"target": self.stage.target}),
            **({} if self.stage.checks is None else {"checks": list(self.stage.checks)}),
            **self.stage.facts(),
        }
        return CheckpointWriter(
            self.directory,
            log,
            self.model,
            self.optimizers,
            self.stage.save,
            self.identity,
            lambda: {"total_steps": pace.total_steps, "output": output_note(self.console), **facts},
            self.config.training.keep_checkpoints,
            self.sharing,
            lambda: pace.plan.to_dict(),
            self.patient,
        )
