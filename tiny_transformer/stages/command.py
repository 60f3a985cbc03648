"""What `tiny-transformer train` does: read the config, train, show the result."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from tiny_transformer.config.load import SUFFIXES, config_name, keys_of, load_run_config
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.config.schema import RunConfig, sections_of
from tiny_transformer.data.prepare.request import KEYS
from tiny_transformer.errors import UserError, command_line
from tiny_transformer.storage.reading import at_home
from tiny_transformer.storage.runs import CONFIG_FILE, holds_a_run, newest_run, nothing_to_resume

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
    with one_voice():
        _refuse_contradictions(overrides, resume=resume, overwrite=overwrite, go_on=go_on)
        if go_on and (run_dir := _interrupted(config, overrides, console)):
            config, overrides, minutes, resume = None, [f"out_dir={json.dumps(str(run_dir))}"], None, True
        if minutes is not None:
            overrides = [*overrides, f"training.max_train_minutes={minutes}"]
        takes_own = resume and (config is None or minutes is not None)
        wish = (_wish_of_run if takes_own else _wish)(config, overrides, console)

    from tiny_transformer.hardware import keep_freed_memory
    from tiny_transformer.parallel.stop import steady_output
    from tiny_transformer.stages.launch import launch
    from tiny_transformer.stages.stage import Request
    from tiny_transformer.stages.summary import finish

    keep_freed_memory()
    chooses = minutes is not None
    request = Request(*wish, resume=resume, overwrite=overwrite, chooses=chooses, explain=explain)
    with steady_output(console):
        outcome = launch(request, console)
        if outcome.is_first:
            finish(outcome, console)
    return outcome.status


class _Wish(NamedTuple):
    """What config and command line ask for; the first fields of `stage.Request`."""

    config: RunConfig
    name: str
    data_name: str
    asked: frozenset[str]


def _wish(config: str | None, overrides: Sequence[str], console: Console) -> _Wish:
    """What is asked for in so many words."""
    checked, ours = _load(config, overrides, console), keys_of(overrides)
    text = _text_name(checked, ours)
    name = text if config is None else config_name(config)
    return _Wish(checked, name, text if "data.source" in ours else name, _asked(checked, ours, config))


def _wish_of_run(config: str | None, overrides: Sequence[str], console: Console) -> _Wish:
    """What is asked for of a run that is to be resumed with its own config, which has what `--minutes` chose; a given
    config names the run, and must agree with it.

    Raises:
        UserError: there is no such run, or the given config says something else than its own.
    """
    given, ours = load_run_config(config, overrides), keys_of(overrides)
    name = _text_name(given, ours) if config is None else config_name(config)
    base = Path("runs") / name
    run_dir = given.out_dir or newest_run(base) or base
    saved = run_dir / CONFIG_FILE
    if not saved.exists():
        raise nothing_to_resume(run_dir)
    own = _load(str(saved), overrides, console)
    asked = _asked(own, ours, None)
    if config is not None:
        file = load_run_config(config)
        _refuse_other_settings(file, own, ours, config, run_dir)
        told = {key: getattr(file.data, key) for key in file.data.model_fields_set & set(KEYS) - asked}
        own, asked = own.model_copy(update={"data": own.data.model_copy(update=told)}), asked | told.keys()
    return _Wish(own.model_copy(update={"out_dir": run_dir}), name, name, asked)


def _refuse_other_settings(file: RunConfig, own: RunConfig, ours: set[str], config: str, run_dir: Path) -> None:
    """A run that goes on with its own config would leave out what the given one says; how long to train, the command
    line says, and the data is compared with what was prepared."""
    left_out = {"data.data_dir", "model.vocab_size", *(f"data.{key}" for key in KEYS), *ours}
    left_out |= {f"training.{name}" for name in (*LENGTHS, "max_train_minutes")}
    for section in sections_of(type(file)):
        wanted, there = getattr(file, section), getattr(own, section, None)
        for key in sorted(wanted.model_fields_set):
            wish, value = getattr(wanted, key), getattr(there, key, None)
            if f"{section}.{key}" not in left_out and wish is not None and wish != value:
                raise UserError(
                    f"{section}.{key} is {wish!r} in {config} and {value!r} in the run that is to be resumed",
                    where=str(run_dir / CONFIG_FILE),
                    remedy="resume with the run's own settings (--out_dir instead of --config), or start a new run in "
                    "another --out_dir",
                )


def _refuse_contradictions(overrides: Sequence[str], *, resume: bool, overwrite: bool, go_on: bool) -> None:
    if resume and overwrite:
        raise UserError(
            "--resume and --overwrite cannot be combined", where="command line", remedy="give only one of them"
        )
    if go_on and (resume or overwrite):
        raise UserError(
            "--continue already decides whether to resume a run or to start a new one",
            where="command line",
            remedy="leave out --resume and --overwrite",
        )
    if resume and "init_from" in keys_of(overrides):
        raise UserError(
            "--resume and --init_from cannot be combined",
            where="command line",
            remedy="a resumed run continues from its own checkpoint: leave out --init_from",
        )


def meaning_of(word: str) -> str:
    """What a word without an option says: `config`, `data.data_dir`, or `data.source`, a text.

    Raises:
        UserError: it is a run.
    """
    path = at_home(word)
    if word in PRESETS or (path.suffix in SUFFIXES and _is_config(path)):
        return "config"
    if (path / CONFIG_FILE).is_file():
        go_on = command_line("tiny-transformer", "train", "--resume", "--out_dir", path)
        raise UserError(f"{word} is a run", where="command line", remedy=f"to continue it: {go_on}")
    return "data.data_dir" if (path / "meta.json").is_file() else "data.source"


def _is_config(path: Path) -> bool:
    """Whether a file that can be one is no text in JSON: an array, or an object a line."""
    if path.suffix != ".json" or not path.is_file():
        return True
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(2**16).lstrip()
    first, _, rest = head.partition("\n")
    is_rows = head.startswith("[") or (rest.lstrip().startswith("{") and first.rstrip().endswith("}"))
    return not is_rows and any(f'"{key}"' in head for key in ("model", "training", "d_model"))


def _load(source: str | None, overrides: Sequence[str], console: Console) -> RunConfig:
    """The checked config; a length that the overrides ask for takes out of it what would end the run before."""
    config, ours = load_run_config(source, overrides), keys_of(overrides)

    def value(name: str) -> float | None:
        return getattr(config.training, name)

    asked = [name for name in LENGTHS if f"training.{name}" in ours and value(name) is not None]
    others = (name for name in (*LENGTHS, "max_train_minutes") if f"training.{name}" not in ours)
    weaker = [name for name in others if asked and value(name) is not None]
    for name in weaker:
        sentence = f"{asked[0]} {value(asked[0]):,} as given here overrides {name} {value(name):,} of the config"
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


def _asked(config: RunConfig, ours: set[str], file: str | None) -> frozenset[str]:
    """The keys of `data` that prepared data must agree with: those of the command line, and those of the config file
    unless the command line names another directory than it."""
    here = {key.removeprefix("data.") for key in ours if key.startswith("data.")}
    if file is not None and "data_dir" not in here:
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
        raise UserError(
            "--continue needs to know which run", where="command line", remedy="give its --config or --out_dir"
        )
    path = asked or newest_run(Path("runs") / config_name(config))
    newest = list_runs(path)[0] if path is not None and holds_a_run(path) else None
    words = ""
    if newest is not None and newest.state in ("stopped", "running"):
        words = f"{path} was interrupted: resuming it as planned (for a new run instead, give another --out_dir)"
    elif newest is not None and asked is None:
        words = f"{path} is {newest.state} and is left as it is: starting a new run beside it"
    if words and _is_first():
        console.print(words, highlight=False, markup=False)
    return path if "interrupted" in words else None


def _is_first() -> bool:
    """Whether this is the process of this machine that speaks. Who is alone speaks, whatever a variable left over from
    another program says; numbers that make no sense are refused by `Place.told_by`."""
    rank = os.environ.get("LOCAL_RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    return not rank.isdecimal() or int(rank) == 0
