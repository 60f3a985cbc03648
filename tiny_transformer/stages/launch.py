"""From a request to a running stage: which directory, which data, which vocabulary, which processes, the lock."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.prepare.command import is_prepared, prepare_with_progress
from tiny_transformer.data.token_file import Dataset, open_dataset
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.parallel.processes import Processes, fellow_processes
from tiny_transformer.parallel.sharing import check_shares, repeatable_arithmetic
from tiny_transformer.stages.preflight import check_memory
from tiny_transformer.stages.run import Run
from tiny_transformer.stages.stage import Request, RunResult, stage_class
from tiny_transformer.stages.summary import tell_not_finite
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.runs import CONFIG_FILE, NOT_FINITE_FILE, holds_a_run
from tiny_transformer.training.loggers import check_installed
from tiny_transformer.training.nonfinite import NotFiniteError
from tiny_transformer.training.plan import FILE as PLAN_FILE


def launch(request: Request, console: Console) -> RunResult:
    """Start or resume a run of the config's stage, together with the other processes that `torchrun` started.

    Raises:
        UserError: whatever stands in the way, found before the first step where possible.
        NotFiniteError: the run diverged; its report is written.
    """
    with ExitStack() as stack:
        stack.enter_context(repeatable_arithmetic(request.config.training))
        processes = stack.enter_context(fellow_processes(request.config.training))
        try:
            return _launch(request, processes, console if processes.is_first else Console(quiet=True))
        except NotFiniteError as error:
            if processes.is_first:
                tell_not_finite(error, console)
            raise


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
    stage = stage_class(request.config.stage).open(request, hardware, processes, console)
    begun = time.monotonic()
    if processes.world_size == 1:
        check_memory(stage.config, hardware, console)
    directory = RunDirectory(run_dir)
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(directory.lock())
            if request.overwrite and holds_a_run(run_dir):
                clear_run(run_dir)
            directory.clean_leftovers()
        run = Run(request, stage, directory, hardware, console, processes)
        run.state.elapsed_seconds = stage.spent_seconds + time.monotonic() - begun
        return run.execute(stack)


def choose_run_dir(request: Request) -> Path:
    """The directory of this run: the one asked for, else `runs/NAME`, `runs/NAME-2`, ... (the newest of them to
    resume).

    Raises:
        UserError: a run is already there, or there is nothing to resume.
    """
    asked = request.config.out_dir
    base = asked or Path("runs") / request.name
    if base.exists() and not base.is_dir():
        raise UserError(f"{base} is a file, and a run is a directory", where=str(base), remedy="another --out_dir")
    if request.resume:
        candidates = [base] if asked else [p for p in (base, *base.parent.glob(f"{base.name}-*")) if holds_a_run(p)]
        newest = max(
            candidates,
            key=lambda path: (path / CONFIG_FILE).stat().st_mtime if holds_a_run(path) else 0.0,
            default=base,
        )
        if not holds_a_run(newest):
            raise UserError(
                f"there is nothing to resume in {newest}",
                remedy="start it without --resume, or name the run with --out_dir (tiny-transformer runs lists them)",
            )
        return newest
    if not holds_a_run(base) or request.overwrite:
        return base
    if asked:
        raise UserError(
            f"{base} already holds a run",
            remedy="--resume continues it, --overwrite replaces it, another --out_dir leaves it alone",
        )
    number = 2
    while holds_a_run(base.with_name(f"{base.name}-{number}")):
        number += 1
    return base.with_name(f"{base.name}-{number}")


def settle_data_dir(request: Request) -> RunConfig:
    """The config with `data.data_dir` filled in, so that the saved one leads back to the data from any start.

    Raises:
        UserError: a directory without prepared data was named, and no source: nobody asked for stories there.
    """
    data = request.config.data
    if data.data_dir is not None and "source" not in data.model_fields_set and not is_prepared(data.data_dir):
        raise UserError(
            f"{data.data_dir} holds no prepared data, and no data.source says what to prepare there",
            where=str(data.data_dir),
            remedy=f"tiny-transformer prepare --source TEXT --out_dir {data.data_dir}, or train with --source stories",
        )
    data = data.model_copy(update={"data_dir": data.data_dir or Path("data") / request.name})
    return request.config.model_copy(update={"data": data})


def open_training_data(config: RunConfig, console: Console) -> Dataset:
    """The prepared token files; made from `data.source` when they are missing."""
    data, data_dir = config.data, config.data.data_dir
    assert data_dir is not None  # settle_data_dir filled it in
    if not is_prepared(data_dir):
        console.print(f"preparing [bold]{data.source}[/] in {data_dir}", highlight=False)
        prepare_with_progress(
            data.source,
            console=console,
            out_dir=data_dir,
            tokenizer=data.tokenizer,
            vocab_size=data.vocab_size,
            seq_len=data.seq_len,
            max_bytes=data.max_bytes,
            val_fraction=data.val_fraction,
            text_field=data.text_field,
        )
    return open_dataset(data_dir)


def fit_vocabulary(config: RunConfig, dataset: Dataset, console: Console) -> RunConfig:
    """The config with `model.vocab_size` taken from the tokenizer, or raised to it when it is too small."""
    needed, asked = dataset.tokenizer.vocab_size, config.model.vocab_size
    if asked is not None and asked >= needed:
        return config
    if asked is not None:
        console.print(
            f"model.vocab_size {asked} is too small for this tokenizer's ids: using {needed}", highlight=False
        )
    model = config.model.model_copy(update={"vocab_size": needed})
    return config.model_copy(update={"model": model})


def clear_run(run_dir: Path) -> None:
    """Remove a run that is being replaced: links first, so that they never lead nowhere."""
    for name in ("last", "best"):
        (run_dir / name).unlink(missing_ok=True)
    for path in run_dir.glob("step-*"):
        shutil.rmtree(path)
    for name in ("log.jsonl", "samples.json", "report.html", "loss.svg", NOT_FINITE_FILE, PLAN_FILE, CONFIG_FILE):
        (run_dir / name).unlink(missing_ok=True)
