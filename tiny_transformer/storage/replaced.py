"""Whose a run directory is: asked once more under the lock, and with `--overwrite` made empty without losing anything.

The run that is replaced waits in the folder `.replaced` of the same directory until the new one has saved. When the new
one ends before that, the old one is put back. When it is killed, the next start that is not to resume it does so.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiny_transformer.errors import UserError
from tiny_transformer.storage.fs import refusals
from tiny_transformer.storage.marks import MARKS, STEP_NAME
from tiny_transformer.storage.runs import (
    BAD,
    CLASSES_FILE,
    CONFIG_FILE,
    GROWTH_FILE,
    LOG_FILE,
    NOT_FINITE_FILE,
    REFERENCE_FILE,
    ROLLOUTS,
    SKILLS_FILE,
    WRITTEN_FILE,
    RunDirectory,
    already_a_run,
    holds_a_run,
)
from tiny_transformer.storage.temporary import exists, remove_tree

REPLACED = ".replaced"
_UNFINISHED = ".replacing"  # while files are being moved there, or back
# What a run writes besides checkpoints and marks. Anything else in its directory is the user's, and stays.
RUN_FILES = (
    *(CONFIG_FILE, "plan.json", LOG_FILE, "samples.json", "report.html", "loss.svg"),
    *(CLASSES_FILE, SKILLS_FILE, WRITTEN_FILE, GROWTH_FILE, NOT_FINITE_FILE, REFERENCE_FILE, ROLLOUTS),
    *("tensorboard", "wandb"),
)


@contextmanager
def claimed(run: RunDirectory, *, resume: bool, overwrite: bool) -> Generator[None]:
    """Makes a locked directory ready for a run: what a killed process left is removed or put back.

    Args:
        run: locked by this process. What was seen before may be wrong: another process may have trained here since.
        resume: the run that is there goes on.
        overwrite: the run that is there is moved aside, and put back if the block fails before the first checkpoint;
            `drop_replaced` removes it after that.

    Raises UserError: USAGE when a run is there that is neither to be resumed nor replaced, IO when the system refuses.
    """
    run.clean_leftovers()
    with refusals("use the run directory", run.path):
        _finish_moving(run.path)
    if not resume and not overwrite:
        put_back(run)
    if resume or not (holds_a_run(run.path) or exists(run.path / REPLACED)):
        yield
        return
    if not overwrite:
        raise already_a_run(run.path)
    _set_aside(run)
    try:
        yield
    except BaseException:
        with suppress(OSError, UserError):  # the reason of the end is what is to be told
            run.check_ours()
            put_back(run)
        raise


def _set_aside(run: RunDirectory) -> None:
    with refusals("replace the old run", run.path):
        if exists(run.path / REPLACED) and not run.checkpoints():
            for path in _files_of_run(run.path):  # of a new run that never saved: what it replaced still waits
                remove_tree(path)
            return
        remove_tree(run.path / REPLACED)
        _move(run.path, run.path / _UNFINISHED)
        (run.path / _UNFINISHED).rename(run.path / REPLACED)


def waits_to_be_put_back(run_dir: Path) -> bool:
    """Whether a new run has taken the place of another and has saved nothing yet."""
    return exists(run_dir / REPLACED) and not RunDirectory(run_dir).checkpoints()


def drop_replaced(run: RunDirectory) -> None:
    """Removes what the new run replaced, once that has a checkpoint; without one nothing happens."""
    if exists(run.path / REPLACED) and run.checkpoints():
        with refusals("remove the old run", run.path / REPLACED):
            remove_tree(run.path / REPLACED)


def put_back(run: RunDirectory) -> None:
    """Removes what a new run wrote that never saved, and puts the run back that it replaced, if one waits."""
    with refusals("put the old run back", run.path):
        if waits_to_be_put_back(run.path):
            for path in _files_of_run(run.path):
                remove_tree(path)
            (run.path / REPLACED).rename(run.path / _UNFINISHED)
            _finish_moving(run.path)


def _finish_moving(run_dir: Path) -> None:
    """Back to where it was, whatever was on its way when a process was killed."""
    if exists(run_dir / _UNFINISHED):
        _move(run_dir / _UNFINISHED, run_dir)
        remove_tree(run_dir / _UNFINISHED)


def _move(source: Path, target: Path) -> None:
    if not exists(target):
        target.mkdir()
    for path in _files_of_run(source):
        path.rename(target / path.name)


def _files_of_run(directory: Path) -> list[Path]:
    """Marks first, so that they never lead nowhere; then checkpoints, rejected ones too; the config, which says that a
    run is here, last."""
    names = sorted(path.name for path in directory.iterdir())
    steps = [name for name in names if STEP_NAME.fullmatch(name.removesuffix(BAD))]
    ordered = [*MARKS, *steps, *reversed(RUN_FILES)]
    return [directory / name for name in ordered if name in names]
