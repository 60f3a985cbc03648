"""What one kind of training brings to the engine: its data, batches, loss, evaluation, facts and files.

`Run` does the rest for every stage alike: resume, minutes, several processes, log, checkpoints, replay. A stage is a
class here below `stages/`, a config class in `config.stages.CONFIGS`, and a line in `HOMES`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import build_model, load_weights, save_model
from tiny_transformer.models.adapter_base import Base, find_base
from tiny_transformer.models.adapter_files import save_adapter
from tiny_transformer.models.adapters import adapt
from tiny_transformer.models.checkpoint import write_generation_config
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.vocabulary import load_base_weights
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.parallel.sharing import Sharing, local_part
from tiny_transformer.storage import Staging
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.training.contract import Batch, BatchSource, Evaluation
from tiny_transformer.training.state import TrainState

B = TypeVar("B", bound=Batch)
# `home` of a config -> its class: a name in the module that is called so, or the class of one that lives elsewhere.
HOMES: dict[str, str | type[Stage]] = {
    "pretrain": "Pretraining",
    "finetune": "Finetuning",
    "classify": "Classifying",
    "align": "Aligning",
    "grpo": "Rewarding",
}


@dataclass(frozen=True)
class Request:
    """What the user asked for, besides the config.

    Attributes:
        config: the checked config.
        name: what to call the run when no directory is given.
        data_name: what to call its data when no directory is given; by default as the run.
        asked: the keys of the section `data` that were asked for in so many words, and not by the file whose data
            directory another one replaces; by default those that the config sets.
        resume: continue the run in `out_dir` (or the newest of that name).
        overwrite: replace a run that is already there.
        chooses: fill in what the config leaves open so that it makes the most of `max_train_minutes`.
        explain: show the arithmetic behind that.
        command: the command line, for the record.
    """

    config: RunConfig
    name: str
    data_name: str | None = None
    asked: frozenset[str] | None = None
    resume: bool = False
    overwrite: bool = False
    chooses: bool = False
    explain: bool = False
    command: list[str] = field(default_factory=lambda: list(sys.argv))


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_dir: where it is.
        status: `finished`, `stopped` or `stopped_early`.
        state: its counters and last figures.
        stage: what it trained, and on what.
        hardware: where.
        is_first: whether this process shows and writes the results.
    """

    run_dir: Path
    status: str
    state: TrainState
    stage: Stage
    hardware: Hardware
    is_first: bool


@dataclass(frozen=True)
class Beginning:
    """What a stage can be told only when the run is about to begin.

    Attributes:
        model: with the weights that training goes on from.
        run_dir: where it is.
        hardware, processes: where, and with whom.
        writes: whether files may be written there; a replay leaves the run as it is.
        patiently: does work that writes, and waits while the disk is full.
    """

    model: CausalLM
    run_dir: Path
    hardware: Hardware
    processes: Processes
    writes: bool
    patiently: Callable[[Callable[[], None]], None]


class Stage(ABC, Generic[B]):
    """One kind of training, on batches of one kind: `class Pretraining(Stage[TokenBatch])`.

    Args:
        config: the resolved config.
        tokenizer: saved with each checkpoint.

    Attributes:
        checks: names of the diagnosis's checks that apply; None for all.
        target: what its loss is a mean over, in one word; reports say so.
        example: what a batch is made of, in one word, where that is not what its loss is a mean over.
        rows_per_example: rows of tokens that an example of a batch has.
        steps_per_round: steps that share what is made for the first of them, so that they do not take equally long.
        adds_tokens: whether its tokenizer may know more than that of the checkpoint it starts from.
        new_tokens: ids that the checkpoint it starts from knows nothing of.
        adapters: what low-rank adapters train, in words; "" without them.
        stands_on: the base of adapters, once weights were loaded; None without adapters.
        spent_seconds: what `open` has spent of the run's minutes: choosing a model counts, preparing data does not.
    """

    checks: ClassVar[tuple[str, ...] | None] = None
    rows_per_example: ClassVar[int] = 1
    steps_per_round: int = 1
    adds_tokens: ClassVar[bool] = False
    target: ClassVar[str] = "token"
    example: ClassVar[str] = ""
    new_tokens: tuple[int, ...] = ()
    adapters: str = ""
    stands_on: Base | None = None
    spent_seconds: float = 0.0

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer

    @classmethod
    @abstractmethod
    def open(cls, request: Request, run_dir: Path, hardware: Hardware, processes: Processes, console: Console) -> Self:
        """Open the data, made by the first process where it is missing (never on a resume), and complete the config.

        Raises:
            UserError: the data is not there, or does not fit the model.
        """

    def begin(self, beginning: Beginning) -> None:
        """Called once, before the first batch is asked for: what the model itself is needed for."""
        return

    @abstractmethod
    def batches(self, rank: int, world_size: int) -> BatchSource:
        """The training batches of one process."""

    @abstractmethod
    def loss(self, model: CausalLM, batch: B) -> tuple[Tensor, dict[str, float]]:
        """See `training.contract.LossFunction`."""

    @abstractmethod
    def evaluation_batches(self) -> Iterable[B]:
        """What an evaluation reads."""

    @abstractmethod
    def evaluate(self, model: CausalLM, batches: Iterable[B], hardware: Hardware, sharing: Sharing) -> Evaluation:
        """How good a model is on these batches, all processes together."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must agree with besides its settings: data and tokenizer by content."""

    def facts(self) -> dict[str, Any]:
        """What run_info.json says of the tokenizer; a stage adds what it reads, as `data`."""
        own = self.tokenizer
        return {"tokenizer": {"name": own.name, "vocab_size": own.vocab_size, "fingerprint": own.fingerprint}}

    @abstractmethod
    def describe_data(self, total_steps: int) -> str:
        """For the terminal: what a run of so many steps reads."""

    @abstractmethod
    def show_figures(self, result: RunResult, console: Console) -> None:
        """What a finished run came to."""

    @abstractmethod
    def show_batch(self, micro_batches: Sequence[B]) -> Table:
        """For `replay`: the examples of a step, one a row."""

    def chances(self, model: CausalLM, hardware: Hardware) -> dict[str, float]:
        """How far each skill of a model is, 0 to 1, where that can be told of what it learns; read at a few points of
        the run, so within the time of a few steps and without drawing a random number."""
        return {}

    def show_knowledge(self, result: RunResult, console: Console) -> None:
        """What the finished model knows and does not know yet, where that can be told."""
        return

    def build_model(self, device: torch.device | str) -> CausalLM:
        """A model with fresh weights, frozen or with other layers where the stage wants that."""
        training, lora = self.config.training, self.config.lora
        model = build_model(
            self.config.model,
            seed=training.seed,
            dropout=training.dropout,
            device=device,
            zero_residual=training.zero_residual,
            previous_token_init=training.previous_token_init,
        )
        if lora.enabled:
            self.adapters = adapt(model, lora, seed=training.seed, new_ids=self.new_tokens)
        return model

    def load_first_weights(self, model: CausalLM) -> None:
        """Put the weights of `init_from` into a model, or this process's parts of them; without one, nothing."""
        start = self.config.init_from
        if start is not None and not start.is_dir():
            raise UserError(
                f"{start}, which this run starts from, no longer exists",
                where="init_from",
                remedy="put it back, or name another with --init_from",
            )
        if start is not None and self.config.lora.enabled:
            self.stands_on = load_base_weights(model, start, self.config.lora, local_part)
        elif start is not None:
            load_weights(model, start, local_part)

    def load_saved_weights(self, model: CausalLM, checkpoint: Path) -> None:
        """Put the weights of one of the run's own checkpoints into a model, or this process's parts of them; those of
        adapters stand on their base, which is found and checked again.

        Raises:
            UserError: see `load_weights`.
        """
        load_weights(model, checkpoint, local_part)
        if self.config.lora.enabled:
            self.stands_on = find_base(checkpoint)

    def save(self, model: CausalLM, directory: Staging, weights: dict[str, Tensor]) -> None:
        """Write what a checkpoint holds besides the trainer's state: a model directory, tokenizer included."""
        self.save_model(model, directory, weights, (self.tokenizer.end_id,))

    def save_model(
        self, model: CausalLM, directory: Staging, weights: dict[str, Tensor], end_ids: tuple[int, ...]
    ) -> None:
        """Write model and tokenizer, or adapters in PEFT's form in the model's place; programs stop at any of
        `end_ids`."""
        ends = list(end_ids) if len(end_ids) > 1 else end_ids[0]
        if self.stands_on is not None:
            save_adapter(model, directory, weights, lora=self.config.lora, base=self.stands_on, eos_token_id=ends)
            write_generation_config(directory, eos_token_id=ends)
        else:
            save_model(model, directory, weights, eos_token_id=ends)
        self.tokenizer.save(directory, max_length=model.config.max_position_embeddings, end_ids=end_ids)


def stage_class(config: RunConfig) -> type[Stage]:
    """The class of the stage that a config names, imported when it is first asked for.

    Raises:
        UserError: there is no such stage.
    """
    name = config.home
    if name not in HOMES:
        raise UserError(f"there is no stage {name!r}", where="stage", remedy=f"one of {', '.join(HOMES)}")
    home = HOMES[name]
    return getattr(import_module(f"tiny_transformer.stages.{name}"), home) if isinstance(home, str) else home
