"""What `tiny-transformer train` does: read the config, train, show the result."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tiny_transformer.config.load import SUFFIXES, config_name, keys_of, load_run_config
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.errors import UserError

if TYPE_CHECKING:
    from tiny_transformer.config.schema import RunConfig

LENGTHS = ("steps", "max_tokens", "epochs")


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
    _refuse_contradictions(overrides, resume=resume, overwrite=overwrite, go_on=go_on)
    if go_on and (run_dir := _interrupted(config, overrides, console)):
        config, overrides, minutes, resume = None, [f"out_dir={run_dir}"], None, True
    if minutes is not None:
        overrides = [*overrides, f"training.max_train_minutes={minutes}"]
    with one_voice():
        source, ours = config, keys_of(overrides)
        if resume and (config is None or minutes is not None):
            source = _own_config(load_run_config(None, overrides).out_dir) or config
        checked = _load(source, overrides, console)
        text = _text_name(checked, ours)

    from tiny_transformer.hardware import keep_freed_memory
    from tiny_transformer.parallel.stop import steady_output
    from tiny_transformer.stages.launch import choose_run_dir, launch
    from tiny_transformer.stages.stage import Request
    from tiny_transformer.stages.summary import finish

    keep_freed_memory()
    request = Request(
        checked,
        name=text if config is None else config_name(config),
        data_name=text if config is None or "data.source" in ours else config_name(config),
        asked=_asked(checked, ours, from_file=source is not None and source == config),
        resume=resume,
        overwrite=overwrite,
        chooses=minutes is not None,
        explain=explain,
    )
    if resume and config is None and checked.out_dir is None:
        run_dir = choose_run_dir(request)
        own = _load(_own_config(run_dir), overrides, console)
        request = replace(request, config=own.model_copy(update={"out_dir": run_dir}))
    with steady_output(console):
        outcome = launch(request, console)
        if outcome.is_first:
            finish(outcome, console)
    return outcome.status


def _refuse_contradictions(overrides: Sequence[str], *, resume: bool, overwrite: bool, go_on: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other", where="command line", remedy="give one of them")
    if go_on and (resume or overwrite):
        raise UserError(
            "--continue decides by itself between resuming and a new run",
            where="command line",
            remedy="leave out --resume and --overwrite",
        )
    if resume and "init_from" in keys_of(overrides):
        raise UserError(
            "--resume and --init_from exclude each other",
            where="command line",
            remedy="a resumed run goes on from its own checkpoint: leave out --init_from",
        )


def meaning_of(word: str) -> str:
    """What a word without an option says: `config`, `data.data_dir`, or `data.source`, a text.

    Raises:
        UserError: it is a run.
    """
    path = Path(word).expanduser()
    if word in PRESETS or (path.suffix in SUFFIXES and _is_config(path)):
        return "config"
    if (path / "config.yaml").is_file():
        raise UserError(f"{word} is a run", where="command line", remedy=f"to go on with it: --resume --out_dir {word}")
    return "data.data_dir" if (path / "meta.json").is_file() else "data.source"


def _is_config(path: Path) -> bool:
    """Whether a file that can be one is no text in JSON."""
    if path.suffix != ".json" or not path.is_file():
        return True
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(2**16)
    return any(f'"{key}"' in head for key in ("model", "training", "d_model"))


def _load(source: str | None, overrides: Sequence[str], console: Console) -> RunConfig:
    """The checked config; a length that the overrides ask for takes out of it what would end the run before."""
    config, ours = load_run_config(source, overrides), keys_of(overrides)

    def value(name: str) -> float | None:
        return getattr(config.training, name)

    asked = [name for name in LENGTHS if f"training.{name}" in ours and value(name) is not None]
    others = (name for name in (*LENGTHS, "max_train_minutes") if f"training.{name}" not in ours)
    weaker = [name for name in others if asked and value(name) is not None]
    for name in weaker:
        sentence = f"{asked[0]} {value(asked[0]):,} as asked for here, not {name} {value(name):,} of the config"
        if _is_first():
            console.print(sentence, highlight=False)
    return load_run_config(source, [*overrides, *(f"training.{name}=null" for name in weaker)]) if weaker else config


def _text_name(config: RunConfig, ours: set[str]) -> str:
    """What to call a run after its text."""
    from tiny_transformer.data.meta import META_FILE, read_meta
    from tiny_transformer.data.prepare.files import name_of

    data = config.data
    if "data.source" not in ours and data.data_dir is not None and (data.data_dir / META_FILE).is_file():
        return name_of(read_meta(data.data_dir).source)
    return name_of(data.source)


def _asked(config: RunConfig, ours: set[str], *, from_file: bool) -> frozenset[str]:
    """The keys of `data` that prepared data must agree with: those of the command line, and those of the config file
    unless the command line names another directory than it."""
    here = {key.removeprefix("data.") for key in ours if key.startswith("data.")}
    if from_file and "data_dir" not in here:
        here |= config.data.model_fields_set
    return frozenset(here)


@contextmanager
def one_voice() -> Generator[None]:
    """Several processes of a machine find the same mistake in the same config: the first of them tells it."""
    try:
        yield
    except UserError as error:
        if _is_first():
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
        console.print(
            f"{newest.path} was interrupted: going on with it as it was planned ({new})", highlight=False, markup=False
        )
        return newest.path
    if newest is not None and asked is None:
        words = f"{newest.path} is {newest.state} and stays as it is: this is a new run beside it"
        console.print(words, highlight=False, markup=False)
    return None


def _begun(run_dir: Path) -> float:
    """When a run was last begun or taken up."""
    saved = run_dir / "config.yaml"
    return saved.stat().st_mtime if saved.exists() else 0.0


def _is_first() -> bool:
    """Whether this is the process of this machine that speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _own_config(out_dir: Path | None) -> str | None:
    """The config saved with the run that is to be resumed."""
    if out_dir is None:
        return None
    saved = out_dir / "config.yaml"
    if not saved.exists():
        raise UserError(f"there is nothing to resume in {out_dir}", remedy="tiny-transformer runs lists the runs")
    return str(saved)
