"""Which checkpoint a run goes on from: the newest one that loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.storage import Checkpoint, RunDirectory
from tiny_transformer.storage.reading import read_regular
from tiny_transformer.storage.step_log import log_problem


def take_up(
    run: RunDirectory,
    found: tuple[Checkpoint | None, list[UserError]],
    processes: Processes,
    load: Callable[[Path], None],
    say: Callable[[str], None],
) -> Path | None:
    """Load a checkpoint; where one is whole but cannot be loaded, the next older one. What the first process finds
    counts, and what one process cannot load none of them takes.

    Args:
        run: one that this process has locked is rid of checkpoints that cannot be loaded: they get the suffix `.bad`.
        found: as `RunDirectory.newest_whole` gives it: where to begin.
        processes: all of them call this.
        load: loads one; raises UserError (BAD_DATA) when it cannot be.
        say: shows a line.

    Returns:
        The one that was loaded; None when there is none at all.

    Raises:
        UserError: what `load` raises for another reason; or there are checkpoints and none can be loaded: a run that
            has learnt something never silently begins again.
    """
    checkpoint, damaged = found
    refused: UserError | None = None
    while True:
        for problem in damaged:
            say(f"skipping a damaged checkpoint: {problem.what} ({problem.where})")
            refused = refused or problem
        name = processes.broadcast(None if checkpoint is None else str(checkpoint.path))
        if name is None:
            if refused is not None:
                raise UserError(
                    f"no checkpoint of this run can be loaded; the newest: {refused.what}",
                    where=refused.where,
                    remedy="put a sound copy of a checkpoint back, or start afresh with --overwrite",
                    exit_code=ExitCode.BAD_DATA,
                )
            return None
        error = None
        try:
            load(Path(name))
        except UserError as problem:
            if problem.exit_code is not ExitCode.BAD_DATA:
                raise
            error = problem
        if not processes.any(error is not None):
            return Path(name)
        damaged = [error or UserError(f"another process cannot load {name}", exit_code=ExitCode.BAD_DATA)]
        if checkpoint is not None:
            if run.lock().held:
                run.reject(checkpoint.step)
            checkpoint, more = run.newest_whole(before=checkpoint.step)
            damaged += more


def note_on_log(checkpoint: Path, log: Path) -> str | None:
    """What is wrong with a run's log up to a checkpoint, in words; None when it is as it was then."""
    try:
        mark = json.loads(read_regular(checkpoint / "run_info.json")).get("log")
    except (OSError, ValueError, AttributeError, RecursionError, UserError):
        return None
    return log_problem(log, mark)
