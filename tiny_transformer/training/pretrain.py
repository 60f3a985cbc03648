"""Pretraining: from a config to a run directory with checkpoints and a log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.batches import Batch, Batches, evaluation_batches
from tiny_transformer.data.shards import Dataset, unigram_nats
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.loss import SplitLoss, evaluate_split
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.hardware import Hardware, choose_hardware
from tiny_transformer.models import build_model, load_weights
from tiny_transformer.storage import Checkpoint, RunDirectory, StepLog, atomic_write
from tiny_transformer.training import plan as planning
from tiny_transformer.training.loggers import Loggers
from tiny_transformer.training.loop import Job, Save, Watcher, compute_gradient, train
from tiny_transformer.training.loss_scale import first_loss_scale
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.modifiers import checkpoint_gradients
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.progress import TrainingProgress
from tiny_transformer.training.run_files import (
    CheckpointWriter,
    environment,
    holds_a_run,
    restore_links,
    write_config,
)
from tiny_transformer.training.same_run import check_changes, identity_of
from tiny_transformer.training.setup import (
    Request,
    choose_run_dir,
    clear_run,
    fit_vocabulary,
    open_training_data,
    settle_data_dir,
)
from tiny_transformer.training.state import TrainState, load_identity, load_state
from tiny_transformer.training.stop import StopSignals
from tiny_transformer.training.through_time import Sampler, prompts_through_time


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run_dir: where it is.
        status: `finished`, `stopped` or `stopped_early`.
        state: its counters and last figures.
        dataset: what it was trained on.
        config: the resolved config.
        hardware: where.
    """

    run_dir: Path
    status: str
    state: TrainState
    dataset: Dataset
    config: RunConfig
    hardware: Hardware


def pretrain(request: Request, console: Console) -> Outcome:
    """Run or resume a pretraining.

    Raises:
        UserError: whatever stands in the way, found before the first step where possible.
    """
    run_dir = choose_run_dir(request)
    hardware = choose_hardware(request.config.training.device, request.config.training.precision)
    if hardware.note:
        console.print(hardware.note, highlight=False)
    config = settle_data_dir(request)
    dataset = open_training_data(config, console)
    config = fit_vocabulary(config, dataset, console)
    run = RunDirectory(run_dir)
    with ExitStack() as stack:
        stack.enter_context(run.lock())
        if request.overwrite and holds_a_run(run_dir):
            clear_run(run_dir)
        run.clean_leftovers()
        start = Start(replace(request, config=config), run, dataset, hardware, console)
        return start.go(stack)


class Start:
    """One start of a run: from an open data set and a locked directory to the end of training."""

    def __init__(
        self, request: Request, run: RunDirectory, dataset: Dataset, hardware: Hardware, console: Console
    ) -> None:
        self.request, self.config, self.run = request, request.config, run
        self.dataset, self.hardware, self.console = dataset, hardware, console
        training = self.config.training
        torch.manual_seed(training.seed)  # dropout draws from the global generator; the weights from their own
        self.model = build_model(
            self.config.model,
            seed=training.seed,
            dropout=training.dropout,
            device=str(hardware.device),
            zero_residual=training.zero_residual,
        )
        if training.gradient_checkpointing:
            checkpoint_gradients(self.model)
        self.optimizers = Optimizers(self.model, training)
        self.batches = Batches(
            dataset.train,
            seq_len=self.config.data.seq_len,
            global_batch_size=training.micro_batch_size * training.grad_accum_steps,
            seed=training.seed,
            packing=self.config.data.packing,
        )
        self.identity = identity_of(self.config, dataset.meta.fingerprint, dataset.tokenizer.fingerprint)
        self.state = TrainState(loss_scale=first_loss_scale(hardware.precision))

    def go(self, stack: ExitStack) -> Outcome:
        """Resume if asked, plan, train."""
        if self.request.resume:
            self.load(self.run.newest_whole())
            restore_links(self.run, self.state)
        log = StepLog(self.run.path / "log.jsonl")
        stack.callback(log.close)
        log.truncate_after(self.state.step)
        write_config(self.run.path, self.config, self.request.command)
        settings = self.config.model_dump(mode="json")
        loggers = Loggers(self.config.training.loggers, self.run.path, settings, self.state.step)
        stack.callback(loggers.close)

        def keep(record: dict[str, Any]) -> None:
            log.append(record)
            loggers(record)

        pace = self._pace()
        self._announce(pace.plan)
        progress = TrainingProgress(self.console, pace.total_steps, self.state.step)
        stop = stack.enter_context(StopSignals())
        with progress:
            job = self.job(pace, save=self._writer(pace, log), log=keep, watcher=progress)
            status = train(job, self.state, stop)
        return Outcome(self.run.path, status, self.state, self.dataset, self.config, self.hardware)

    def load(self, found: tuple[Checkpoint | None, list[UserError]]) -> None:
        """Take up a checkpoint; without one, start from the beginning. Damaged ones that were passed over are named."""
        checkpoint, damaged = found
        for problem in damaged:
            self.console.print(f"skipping a damaged checkpoint: {problem.what} ({problem.where})", highlight=False)
        if checkpoint is None:
            self.console.print("no checkpoint had been saved yet: starting from the beginning", highlight=False)
            return
        check_changes(load_identity(checkpoint.path), self.config, self.identity, checkpoint.path, self.console)
        load_weights(self.model, checkpoint.path)
        self.state = load_state(checkpoint.path, self.model, self.optimizers)
        if self.hardware.precision != "fp16":
            self.state.loss_scale = 1.0
        self.console.print(f"resuming from step {self.state.step:,} ({checkpoint.path})", highlight=False)

    # --- the plan
    # --------------------------------------------------------------------------------------------------------

    def _pace(self) -> planning.Pace:
        """The plan of an earlier start, or a new one."""
        training = self.config.training
        plan = planning.read_plan(self.run.path) if self.request.resume else None
        if plan is not None and plan.asked != planning.Asked.by(training):
            plan = None
        speed = None
        if training.max_train_minutes is not None and (plan is None or not plan.is_fixed):
            self.console.print("[dim]timing a few steps to plan the run[/]")
            speed = planning.Speed(
                self._step_seconds(), self._eval_seconds(), planning.SAVE_SECONDS, self._sampling_seconds()
            )
        if plan is None and speed is not None:
            plan = planning.plan_for_minutes(training, self._tokens_per_step, self.state, speed)
        elif plan is None:
            plan = planning.plan_for_counts(training, self._tokens_per_step)
        path = self.run.path / planning.FILE
        return planning.Pace(plan, training, speed, lambda plan: atomic_write(path, plan.to_json()))

    @property
    def _tokens_per_step(self) -> int:
        training = self.config.training
        return training.micro_batch_size * training.grad_accum_steps * self.config.data.seq_len

    def _step_seconds(self) -> float:
        def work(model: nn.Module) -> Callable[[], None]:
            optimizers = Optimizers(model, self.config.training)
            compiled = self._compiled(model)

            def one_step() -> None:
                compute_gradient(
                    compiled, self.batches, 0, self.config.training, self.hardware, language_modelling_loss
                )
                optimizers.step(0.0)

            return one_step

        return planning.measure_on_copy(self.model, work)

    def _eval_seconds(self) -> float:
        if self.config.training.eval_steps is None:
            return 0.0
        batches = list(self._validation_batches())
        few = batches[:2]
        seconds = planning.measure_seconds(lambda: self._split_loss(few), at_least_seconds=0.5, warm_up=1)
        return seconds * len(batches) / len(few)

    def _sampling_seconds(self) -> float:
        sampler = self._sampler()
        return planning.measure_seconds(sampler.texts, at_least_seconds=0.1, warm_up=1) if sampler else 0.0

    # --- the parts of the job
    # --------------------------------------------------------------------------------------------

    def job(self, pace: planning.Pace, *, save: Save, log: Callable[[dict[str, Any]], None], watcher: Watcher) -> Job:
        """What the loop is handed."""
        evaluates = self.config.training.eval_steps is not None
        return Job(
            model=self._compiled(self.model),
            optimizers=self.optimizers,
            pace=pace,
            batches=self.batches,
            loss_function=language_modelling_loss,
            evaluate=(lambda: self._split_loss(self._validation_batches())) if evaluates else None,
            sample=self._sampler(),
            save=save,
            log=log,
            config=self.config.training,
            hardware=self.hardware,
            watcher=watcher,
        )

    def _sampler(self) -> Sampler | None:
        """None when there is no prompt, or one that this tokenizer cannot write: the end of the run tells which."""
        prompts = prompts_through_time(self.config.training.sample_prompts)
        try:
            for prompt in prompts:
                encode_prompt(self.dataset.tokenizer, prompt)
        except UserError:
            return None
        return Sampler(self.model, self.dataset.tokenizer, prompts, self.run.path) if prompts else None

    def _compiled(self, model: nn.Module) -> nn.Module:
        if not self.config.training.compile:
            return model
        compiled = copy(model)  # the same weights; evaluation and generation go on with the plain model
        compiled.backbone = torch.compile(compiled.backbone)  # ty: ignore[no-matching-overload]
        return compiled

    def _validation_batches(self) -> Iterator[Batch]:
        data, training = self.config.data, self.config.training
        return evaluation_batches(
            self.dataset.val, seq_len=data.seq_len, batch_size=training.micro_batch_size, packing=data.packing
        )

    def _split_loss(self, batches: Iterable[Batch]) -> SplitLoss:
        return evaluate_split(self.model, batches, num_bytes=self.dataset.meta.val.num_bytes, hardware=self.hardware)

    def _writer(self, pace: planning.Pace, log: StepLog) -> CheckpointWriter:
        meta, tokenizer = self.dataset.meta, self.dataset.tokenizer
        facts = {
            "run": self.run.path.name,
            "steps_per_epoch": self.batches.steps_per_epoch,
            "floor": meta.val.floor,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "device": self.hardware.describe(),
            "precision": self.hardware.precision,
            "num_threads": torch.get_num_threads(),
            "versions": environment(),
            "command": self.request.command,
            "tokenizer": {
                "name": tokenizer.name,
                "vocab_size": tokenizer.vocab_size,
                "fingerprint": tokenizer.fingerprint,
            },
            "data": {
                "source": meta.source,
                "train_tokens": meta.train.num_tokens,
                "val_tokens": meta.val.num_tokens,
                "val_documents": meta.val.num_documents,
                "unigram_nats": round(unigram_nats(self.dataset.train), 4),
            },
        }
        return CheckpointWriter(
            self.run,
            log,
            self.model,
            self.optimizers,
            tokenizer,
            self.identity,
            lambda: {"total_steps": pace.total_steps, **facts},
            self.config.training.keep_checkpoints,
        )

    def _announce(self, plan: planning.Plan) -> None:
        """Say what is about to happen."""
        model, training, meta = self.config.model, self.config.training, self.dataset.meta
        parameters = sum(p.numel() for p in self.model.parameters())
        tokens = self._tokens_per_step
        seen = plan.total_steps * tokens / meta.train.num_tokens
        rows = {
            "model": f"{model.model_type}, {parameters / 1e6:.2f} M parameters: {model.num_hidden_layers} layers of "
            f"{model.hidden_size}, {_heads(model)}",
            "data": f"{meta.source}, {meta.train.num_tokens:,} tokens ({self.dataset.tokenizer.name}, "
            f"{self.dataset.tokenizer.vocab_size:,} words); this run sees {seen:.2f} times that",
            "plan": f"{plan.reason}; {tokens:,} tokens a step",
            "rate": f"{training.optimizer}, {plan.warmup_steps} steps warm-up, {training.schedule} decay",
            "device": self.hardware.describe(),
            "run": str(self.run.path),
        }
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for name, text in rows.items():
            table.add_row(name, Text(text))
        self.console.print(table)


def _heads(model: Any) -> str:
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    if heads == groups:
        return f"{heads} heads of {model.head_dim}"
    return f"{heads} query heads share {groups} key/value heads of {model.head_dim}"
