"""What `tiny-transformer train` does: read the config, train, show the result."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tiny_transformer.config.load import config_name, load_run_config
from tiny_transformer.errors import UserError

if TYPE_CHECKING:
    from tiny_transformer.stages.launch import Request

CHOSEN = "auto"  # what a run is called whose config nobody wrote


def run_training(
    config: str | None,
    overrides: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
    console: Console,
    minutes: float | None = None,
    go_on: bool = False,
    explain: bool = False,
) -> str:
    """Train as a config and overrides say.

    Args:
        config: a file or preset; None takes the defaults, or with `resume` the run's own config.
        overrides: `section.key=value` strings, stronger than the file.
        resume: continue a run.
        overwrite: replace a run.
        console: where progress and results are shown.
        minutes: choose whatever config and overrides leave open to make the most of this time; a resumed run keeps
            what was chosen at its start.
        go_on: resume the newest run of this config if it was interrupted; otherwise make a new one beside it.
        explain: show the arithmetic behind what `minutes` chooses.

    Returns:
        `finished`, `stopped_early` or `stopped`.

    Raises:
        UserError: a wrong config (before torch is even imported), or anything that stands in the way of the run.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other", where="command line", remedy="give one of them")
    if go_on and (resume or overwrite):
        raise UserError(
            "--continue decides by itself between resuming and a new run",
            where="command line",
            remedy="leave out --resume and --overwrite",
        )
    if go_on and (run_dir := _interrupted(config, overrides, console)):
        config, overrides, minutes, resume = None, [f"out_dir={run_dir}"], None, True
    if minutes is not None:
        overrides = [*overrides, f"training.max_train_minutes={minutes}"]
    source = config
    with one_voice():
        if resume and (config is None or minutes is not None):
            source = _own_config(load_run_config(None, overrides).out_dir) or config
        checked = load_run_config(source, overrides)

    from tiny_transformer.hardware import keep_freed_memory
    from tiny_transformer.stages.launch import Request, choose_run_dir
    from tiny_transformer.stages.run import pretrain
    from tiny_transformer.stages.summary import finish

    keep_freed_memory()
    name = CHOSEN if minutes is not None and config is None else config_name(config)
    request = Request(checked, name, resume=resume, overwrite=overwrite, chooses=minutes is not None, explain=explain)
    if resume and minutes is not None and checked.out_dir is None:
        run_dir = choose_run_dir(request)
        own = load_run_config(_own_config(run_dir), overrides)
        request = replace(request, config=own.model_copy(update={"out_dir": run_dir}))
    outcome = pretrain(_with_data_dir(request), console)
    if outcome.is_first:
        finish(outcome, console)
    return outcome.status


def _with_data_dir(request: Request) -> Request:
    """Where nobody wrote a config, the data is called after its source."""
    data = request.config.data
    if request.name != CHOSEN or data.data_dir is not None:
        return request
    word = re.sub(r"[^A-Za-z0-9]+", "-", Path(data.source).stem).strip("-") or CHOSEN
    data = data.model_copy(update={"data_dir": Path("data") / word, "source": data.source})
    return replace(request, config=request.config.model_copy(update={"data": data}))


@contextmanager
def one_voice() -> Generator[None]:
    """Several processes of a machine find the same mistake in the same config: the first of them tells it."""
    try:
        yield
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        raise SystemExit(error.exit_code) from None


def _interrupted(config: str | None, overrides: Sequence[str], console: Console) -> Path | None:
    """The newest run of a config, when it was interrupted; says what becomes of it."""
    from tiny_transformer.reports.runs_table import list_runs

    asked = load_run_config(config, overrides).out_dir
    if config is None and asked is None:
        raise UserError("--continue must know which run", where="command line", remedy="name its --config or --out_dir")
    base = asked or Path("runs") / config_name(config)
    found = list_runs(base, *([] if asked else base.parent.glob(f"{base.name}-[0-9]*")))
    newest = max(found, key=lambda run: _begun(run.path), default=None)
    if newest is not None and newest.state in ("stopped", "running"):
        new = "a new run instead: --out_dir another"
        console.print(f"{newest.path} was interrupted: going on with it as it was planned ({new})", highlight=False)
        return newest.path
    if newest is not None and asked is None:
        words = f"{newest.path} is {newest.state} and stays as it is: this is a new run beside it"
        console.print(words, highlight=False)
    return None


def _begun(run_dir: Path) -> float:
    """When a run was last begun or taken up."""
    saved = run_dir / "config.yaml"
    return saved.stat().st_mtime if saved.exists() else 0.0


def _own_config(out_dir: Path | None) -> str | None:
    """The config saved with the run that is to be resumed."""
    if out_dir is None:
        return None
    saved = out_dir / "config.yaml"
    if not saved.exists():
        raise UserError(f"there is nothing to resume in {out_dir}", remedy="tiny-transformer runs lists the runs")
    return str(saved)
