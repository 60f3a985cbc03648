"""From a request to a running stage: which directory, which processes, the lock."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tiny_transformer.errors import UserError
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.parallel.processes import Processes, fellow_processes
from tiny_transformer.parallel.sharing import check_shares, repeatable_arithmetic
from tiny_transformer.stages.attention import settle_attention
from tiny_transformer.stages.first_weights import check_tokenizer, take_over
from tiny_transformer.stages.preflight import check_memory
from tiny_transformer.stages.run import Run
from tiny_transformer.stages.stage import Request, RunResult, stage_class
from tiny_transformer.stages.summary import tell_not_finite
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.replaced import claimed
from tiny_transformer.storage.runs import already_a_run, holds_a_run, newest_run, nothing_to_resume
from tiny_transformer.training.loggers import check_installed
from tiny_transformer.training.modifiers import compile_failure
from tiny_transformer.training.nonfinite import NotFiniteError


def launch(request: Request, console: Console) -> RunResult:
    """Start or resume a run of the config's stage, together with the other processes that `torchrun` started.

    Raises:
        UserError: whatever stands in the way, found before the first step where possible.
        NotFiniteError: the run diverged; its report is written.
    """
    with ExitStack() as stack:
        stack.enter_context(repeatable_arithmetic(request.config.training))
        processes = stack.enter_context(fellow_processes(request.config.training))
        return _launch(request, processes, console if processes.is_first else Console(quiet=True))


def _launch(request: Request, processes: Processes, console: Console) -> RunResult:
    """The first process alone decides about files, and writes them; the others wait for it and read."""
    training = request.config.training
    hardware = choose_hardware(training.device, training.precision)
    check_shares(training, processes, hardware)
    if processes.is_first:
        check_installed(training.loggers)  # before anything is written, or removed by `overwrite`
    run_dir = Path(processes.broadcast(str(choose_run_dir(request)) if processes.is_first else ""))
    if hardware.note:
        console.print(hardware.note, highlight=False)
    request = take_over(request, run_dir, console)
    stage = stage_class(request.config).open(request, run_dir, hardware, processes, console)
    check_tokenizer(request, stage)
    begun = time.monotonic()
    stage.config = settle_attention(stage.config, run_dir, hardware, processes, console, resume=request.resume)
    if processes.world_size == 1:
        check_memory(stage.config, hardware, console, stage.rows_per_example)
    directory = RunDirectory(run_dir)
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(directory.lock())
            stack.enter_context(claimed(directory, resume=request.resume, overwrite=request.overwrite))
        run = Run(request, stage, directory, hardware, console, processes)
        run.state.elapsed_seconds = stage.spent_seconds + time.monotonic() - begun
        try:
            return run.execute(stack)
        except NotFiniteError as error:
            processes.mark("report")
            if processes.is_first:  # while the lock is held: nobody else has begun here yet
                tell_not_finite(error, console)
            processes.barrier()  # all have found it; whoever ends first would end the one that is still writing
            raise
        except RuntimeError as error:
            if training.compile and (told := compile_failure(error)):
                raise told from error
            raise


def choose_run_dir(request: Request) -> Path:
    """The directory of this run: the one asked for, else `runs/NAME`, `runs/NAME-2`, ... (the newest of them to
    resume).

    Raises:
        UserError: a run is already there, or there is nothing to resume.
    """
    asked = request.config.out_dir
    base = asked or Path("runs") / request.name
    if base.exists() and not base.is_dir():
        raise UserError(
            f"{base} is a file, but a run needs a directory", where=str(base), remedy="choose another --out_dir"
        )
    if request.resume:
        newest = asked or newest_run(base) or base
        if not holds_a_run(newest):
            raise nothing_to_resume(newest)
        return newest
    if not holds_a_run(base) or request.overwrite:
        return base
    if asked:
        raise already_a_run(base)
    number = 2
    while holds_a_run(base.with_name(f"{base.name}-{number}")):
        number += 1
    return base.with_name(f"{base.name}-{number}")
