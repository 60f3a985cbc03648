"""From a request to a running stage: which directory, which data, which vocabulary, which processes, the lock."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.meta import META_FILE, not_prepared, read_meta
from tiny_transformer.data.openings import openings
from tiny_transformer.data.prepare.command import is_prepared, prepare_with_progress
from tiny_transformer.data.prepare.request import differences, prepare_command, recorded
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.data.token_file import Dataset, open_dataset
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.parallel.processes import Processes, fellow_processes
from tiny_transformer.parallel.sharing import check_shares, repeatable_arithmetic
from tiny_transformer.stages.first_weights import check_tokenizer, take_over
from tiny_transformer.stages.preflight import check_memory
from tiny_transformer.stages.run import Run
from tiny_transformer.stages.stage import Request, RunResult, stage_class
from tiny_transformer.stages.summary import tell_not_finite
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.replaced import claimed
from tiny_transformer.storage.runs import CONFIG_FILE, holds_a_run
from tiny_transformer.training.loggers import check_installed
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
    request = take_over(request, console)
    stage = stage_class(request.config.stage).open(request, run_dir, hardware, processes, console)
    check_tokenizer(request, stage)
    begun = time.monotonic()
    if processes.world_size == 1:
        check_memory(stage.config, hardware, console)
    directory = RunDirectory(run_dir)
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(directory.lock())
            stack.enter_context(claimed(directory, resume=request.resume, overwrite=request.overwrite))
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


def settle_data_dir(request: Request, console: Console) -> RunConfig:
    """The config with `data.data_dir` filled in, so that the saved one leads back to the data from any start.

    Without a directory of its own a run takes `data/NAME`, or the first of `data/NAME-2`, ... that holds what the
    config asks for or nothing yet. A resumed run takes the data that it has learnt from.

    Raises:
        UserError: the directory that was named holds other data than was asked for, or none and nobody said which; a
            resumed run's data is not there.
    """
    data = request.config.data
    if data.data_dir is None:
        data_dir = _own_data_dir(request) if request.resume else _free_data_dir(request, console)
    else:
        data_dir = data.data_dir
        if is_prepared(data_dir):
            _compare(request, data_dir, console)
        elif request.resume:
            raise _gone(data_dir)
        elif "source" not in data.model_fields_set:
            raise not_prepared(data_dir)
    return request.config.model_copy(update={"data": data.model_copy(update={"data_dir": data_dir})})


def _free_data_dir(request: Request, console: Console) -> Path:
    """`data/NAME`, or the first of its followers that holds what is asked for or nothing."""
    data = request.config.data
    first = data_dir = Path("data") / (request.data_name or request.name)
    number, reason = 1, ""
    while is_prepared(data_dir) and (found := differences(data, read_meta(data_dir))):
        reason = reason or "; ".join(found)
        number += 1
        data_dir = first.with_name(f"{first.name}-{number}")
    if reason:
        verb = "reading" if is_prepared(data_dir) else "using"
        console.print(f"{verb} {data_dir}: {first} holds other data ({reason})", markup=False, highlight=False)
    return data_dir


def _own_data_dir(request: Request) -> Path:
    """The data that the run to be resumed was trained on."""
    saved = load_run_config(choose_run_dir(request) / CONFIG_FILE).data.data_dir
    data_dir = saved or Path("data") / (request.data_name or request.name)
    if not is_prepared(data_dir):
        raise _gone(data_dir)
    return data_dir


def _gone(data_dir: Path) -> UserError:
    return UserError(
        f"the data of this run is not in {data_dir}",
        where=str(data_dir.absolute()),
        remedy="say where it is now with --data_dir, or resume from the directory that the run was started in",
    )


def _compare(request: Request, data_dir: Path, console: Console) -> None:
    """Refuse data that differs in what was asked for; say where it differs from the rest of the config."""
    data, meta = request.config.data, read_meta(data_dir)
    asked = data.model_fields_set if request.asked is None else request.asked
    if found := differences(data, meta, asked):
        resumed = "leave that out: a run goes on with the data that it has learnt from"
        kept = {key: value for key, value in recorded(meta).items() if key not in asked}
        command = prepare_command(data.model_copy(update=kept), data_dir)
        raise UserError(
            f"{data_dir} holds other data than asked for ({'; '.join(found)})",
            where=str(data_dir / META_FILE),
            remedy=resumed if request.resume else f"{command}; or another --data_dir",
        )
    others = data.model_fields_set - asked
    if not request.resume and (found := differences(data, meta, others)):
        console.print(
            f"{data_dir} is read as it is, not as the config would make it ({'; '.join(found)})",
            markup=False,
            highlight=False,
        )


def open_training_data(config: RunConfig, console: Console) -> Dataset:
    """The prepared token files; made from `data.source` when they are missing."""
    data, data_dir = config.data, config.data.data_dir
    assert data_dir is not None  # settle_data_dir filled it in
    if not is_prepared(data_dir):
        console.print(f"preparing [bold]{escape(data.source)}[/] in {escape(str(data_dir))}", highlight=False)
        prepare_with_progress(data, data_dir, console)
    return open_dataset(data_dir)


def as_read(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The config with what follows from the data: what it was really made from, so that no source is named that was not
    read; its epochs in tokens; prompts that begin as its documents do, where none were asked for."""
    meta, training = dataset.meta, config.training
    if training.epochs is not None:
        tokens = math.ceil(training.epochs * meta.train.num_tokens)
        training = training.model_copy(update={"max_tokens": min(tokens, training.max_tokens or tokens)})
    if "sample_prompts" not in training.model_fields_set and meta.source != STORIES:
        training = training.model_copy(update={"sample_prompts": openings(dataset) or training.sample_prompts})
    data = config.data.model_copy(update=recorded(meta))
    return config.model_copy(update={"data": data, "training": training})


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
