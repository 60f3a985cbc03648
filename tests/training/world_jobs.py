"""What the processes of a test's world do: each function is run by every one of them."""

from __future__ import annotations

import functools
import io
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import tiny_request
from safetensors.torch import save_file

import tiny_transformer.cli.training
import tiny_transformer.stages.command
import tiny_transformer.stages.summary  # noqa: F401
from tiny_transformer.cli import run as run_command_line
from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.data.batches import IGNORE_INDEX, TokenBatch
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import build_model, save_model
from tiny_transformer.parallel import sharing
from tiny_transformer.parallel.processes import Processes, fellow_processes
from tiny_transformer.parallel.sharing import share, whole
from tiny_transformer.stages import summary
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.pretrain import Pretraining
from tiny_transformer.stages.run import Run
from tiny_transformer.stages.stage import Request
from tiny_transformer.stages.training_data import fit_vocabulary
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training import gradient
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.modifiers import checkpoint_gradients

CPU = Hardware(torch.device("cpu"), None)


def talk() -> dict[str, Any]:
    """Each of the few things that processes tell each other."""
    with fellow_processes(TrainingConfig(device="cpu")) as processes:
        rank = processes.rank
        return {
            "total": processes.total(10 + rank),
            "any": [processes.any(rank == 1), processes.any(False)],
            "gather": processes.gather([rank + 0.1, float("inf")]),
            "first": processes.broadcast({"rank": rank, "text": "é" * (5 - rank)}),
        }


class Ragged:
    """A batch of rows with unequal numbers of targets, of which a process makes its part."""

    def __init__(self, processes: Processes, num_rows: int = 32) -> None:
        share = num_rows // processes.world_size
        self._rows = slice(processes.rank * share, (processes.rank + 1) * share)
        self._num_rows = num_rows

    def micro_batches(self, step: int, micro_batch_size: int) -> list[TokenBatch]:
        ids = torch.randint(0, 257, (self._num_rows, 16), generator=torch.Generator().manual_seed(step))
        lengths = 1 + torch.arange(self._num_rows) * 7 % 15
        lengths[:8] = 1  # one process has far fewer targets than the others
        labels = torch.where(torch.arange(16) < lengths[:, None], ids.roll(-1, 1), IGNORE_INDEX)
        pieces = zip(ids[self._rows].split(micro_batch_size), labels[self._rows].split(micro_batch_size), strict=True)
        return [TokenBatch(i, lab, int((lab != IGNORE_INDEX).sum()), torch.arange(len(i))) for i, lab in pieces]

    def epoch(self, step: int) -> float:
        return 0.0


def gradients(shape: dict[str, Any], ways: list[dict[str, Any]], spoil: bool = False) -> list[dict[str, Any]]:
    """The gradient of the ragged batch, in float64, for several ways of sharing; the first process gives it.

    `spoil` averages means of micro-batches, as many programs do.
    """
    if spoil:
        spoil_the_sum()
    found = []
    with fellow_processes(TrainingConfig(device="cpu")) as processes:
        for way in ways:
            config = TrainingConfig(device="cpu", grad_clip=None, **way)
            model = build_model(Qwen3Config(**shape), seed=1, dtype=torch.float64)
            if config.gradient_checkpointing:
                checkpoint_gradients(model)
            shared = share(model, processes, config, CPU)
            pieces = Ragged(processes).micro_batches(3, config.micro_batch_size)
            outcome = compute_gradient(model, pieces, 3, config, CPU, language_modelling_loss, sharing=shared)
            grads = {name: whole(p.grad).flatten().tolist() for name, p in model.named_parameters()}
            numbers = {"loss": outcome.loss, "norm": outcome.norm, "num_tokens": outcome.num_targets}
            found.append({**numbers, "gradients": grads if processes.is_first else None})
    return found


def spoil_the_sum() -> None:
    """Count targets per process instead of altogether."""
    Processes.total = lambda self, value: value


def train(data_dir: str, out_dir: str, **options: Any) -> dict[str, Any]:
    """One tiny run. `patch` changes the product first, see `PATCHES`; `model` and `data` are keys of those sections."""
    PATCHES[options.pop("patch", "nothing")]()
    sections = {name: options.pop(name, {}) for name in ("model", "data")}
    request = tiny_request(Path(data_dir), Path(out_dir), **options)
    given = request.config.model_dump(mode="json", exclude_unset=True)
    config = load_run_config({**given, **{name: {**given[name], **keys} for name, keys in sections.items()}})
    outcome = launch(replace(request, config=config), Console(file=io.StringIO()))
    return {"status": outcome.status, "step": outcome.state.step, "metrics": outcome.state.metrics}


def toy(tree: dict[str, Any]) -> str:
    """One run of the stage that is only known to the tests."""
    from toy_stage import register

    register(pytest.MonkeyPatch())
    request = Request(load_run_config(tree), "toy", command=["test"])
    return launch(request, Console(file=io.StringIO())).status


def load_and_save(data_dir: str, pairs: list[tuple[str, str]], **options: Any) -> None:
    """Take up the last checkpoint of runs, and write weights and optimizer state to other places."""
    dataset, console = open_dataset(Path(data_dir)), Console(file=io.StringIO())
    with fellow_processes(TrainingConfig(device="cpu")) as processes:
        for run_dir, target in pairs:
            request = tiny_request(Path(data_dir), Path(run_dir), resume=True, **options)
            run, config = RunDirectory(run_dir), fit_vocabulary(request.config, dataset, console)
            start = Run(request, Pretraining(config, dataset), run, CPU, console, processes)
            start.load(run.newest_whole())
            weights = start.sharing.collect(start.model.state_dict())
            memories = start.sharing.collect(start.optimizers.state())
            if processes.is_first:
                Path(target, "trainer_state").mkdir(parents=True)
                save_model(start.model, Path(target), weights)
                save_file(memories, Path(target, "trainer_state/optimizer.safetensors"))


def in_reverse() -> None:
    """Ranks add up their subtrees in another order than the tree says."""
    sharing.tree_sum = lambda items, value_of, add: functools.reduce(add, (value_of(item) for item in items))


def compile_quickly() -> None:
    """`torch.compile` without a compiler: the same graphs, run operator by operator."""
    torch.compile = functools.partial(torch.compile, backend="aot_eager")


def own_random_numbers() -> None:
    """Each process draws dropout from a generator of its own, as it went on so far."""
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    gradient.draw_random_numbers_for = lambda seed, step, row: None


def add_as_they_come() -> None:
    """Evaluation adds what each process has summed, not batch by batch."""
    gather = Processes.gather

    def summed(processes: Processes, values: list[float]) -> list[list[float]]:
        everybodys = gather(processes, values)
        return [[sum(mine)] + [0.0] * (len(mine) - 1) for mine in everybodys]

    Processes.gather = summed


def report_slowly() -> None:
    """Writing the report takes longer than the processes take to hear of a failed one."""
    write = summary.write_report
    summary.write_report = lambda *arguments: time.sleep(3) or write(*arguments)


PATCHES = {
    "report slowly": report_slowly,
    "nothing": lambda: None,
    "in reverse": in_reverse,
    "compile quickly": compile_quickly,
    "own random numbers": own_random_numbers,
    "add as they come": add_as_they_come,
}


def command(arguments: list[str], fault: str | None = None, at_step: int = 3, rank: int = 1) -> int:
    """The command line, in which one process meets a fault in a step."""
    if fault is not None and int(os.environ["RANK"]) == rank:
        inner, left = gradient.draw_random_numbers_for, [FAULTS[fault]]

        def meet(seed: int, step: int, row: int) -> None:
            if step == at_step and left:
                left.pop()()
            inner(seed, step, row)

        gradient.draw_random_numbers_for = meet
    code = run_command_line(arguments)
    os._exit(code)


def close_sockets() -> None:
    """Every connection of this process is cut."""
    for path in list(Path("/proc/self/fd").iterdir()):
        try:
            copy = socket.socket(fileno=os.dup(int(path.name)))
            copy.getpeername()  # listening sockets have no other end
            copy.shutdown(socket.SHUT_RDWR)
            copy.close()
        except OSError:
            continue


def refuse_to_save() -> None:
    """The disk is full from now on."""

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("cannot save: no space left", where="the disk", exit_code=ExitCode.IO)

    RunDirectory.publish_step = refuse


def have_a_bug() -> None:
    """Something that is nobody's fault but ours."""
    raise ValueError("a bug in one process")


FAULTS = {
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "full disk": refuse_to_save,
    "bug": have_a_bug,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "SIGSTOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(10_000),
    "closed socket": close_sockets,
}
