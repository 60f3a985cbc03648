"""What `tiny-transformer train` does: read the config, train, show the result."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from tiny_transformer.config.load import config_name, load_run_config
from tiny_transformer.errors import UserError


def run_training(
    config: str | None, overrides: Sequence[str], *, resume: bool, overwrite: bool, console: Console
) -> str:
    """Train as a config and overrides say.

    Args:
        config: a file or preset; None takes the defaults, or with `resume` the run's own config.
        overrides: `section.key=value` strings, stronger than the file.
        resume: continue a run.
        overwrite: replace a run.
        console: where progress and results are shown.

    Returns:
        `finished`, `stopped_early` or `stopped`.

    Raises:
        UserError: a wrong config (before torch is even imported), or anything that stands in the way of the run.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other", where="command line", remedy="give one of them")
    source = config
    if config is None and resume:
        source = _own_config(load_run_config(None, overrides).out_dir)
    with _one_voice():
        checked = load_run_config(source, overrides)

    from tiny_transformer.hardware import keep_freed_memory
    from tiny_transformer.training.finish import finish
    from tiny_transformer.training.pretrain import pretrain
    from tiny_transformer.training.setup import Request

    keep_freed_memory()
    name = config_name(config)
    outcome = pretrain(Request(checked, name, resume=resume, overwrite=overwrite), console)
    if outcome.is_first:
        finish(outcome, console)
    return outcome.status


@contextmanager
def _one_voice() -> Generator[None]:
    """Several processes of a machine find the same mistake in the same config: the first of them tells it."""
    try:
        yield
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        raise SystemExit(error.exit_code) from None


def _own_config(out_dir: Path | None) -> str | None:
    """The config saved with the run that is to be resumed."""
    if out_dir is None:
        return None
    saved = out_dir / "config.yaml"
    if not saved.exists():
        raise UserError(f"there is nothing to resume in {out_dir}", remedy="tiny-transformer runs lists the runs")
    return str(saved)
