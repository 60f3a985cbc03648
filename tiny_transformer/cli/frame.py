"""The command line's frame: the application, and the options that several verbs share."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tiny_transformer import __version__
from tiny_transformer.errors import UserError

# --out-dir and --out_dir are the same option
SETTINGS: dict[str, Any] = {
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "help_option_names": ["-h", "--help"],
}
TRUTHS = ("true", "false", "yes", "no", "on", "off")  # what YAML reads as true or false
OPEN_SETTINGS = {**SETTINGS, "allow_extra_args": True, "ignore_unknown_options": True}


def _without_types(params: list[Any]) -> list[Any]:
    """A switch takes no value, so its help names no type."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class Verb(TyperCommand):
    """A command of the application."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, as help shows them."""
        return _without_types(super().get_params(ctx))


class _Verbs(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))


app = typer.Typer(
    cls=_Verbs,
    name="tiny-transformer",
    help="Read, train and own a small language model: from text to a model that writes.",
    epilog="Start with: tiny-transformer train --minutes 10",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings=SETTINGS,
    pretty_exceptions_enable=False,
)

OutDir = Annotated[
    Path | None, typer.Option("--out_dir", metavar="DIR", help="Where the run goes. Default: runs/NAME of the config.")
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--ckpt_dir",
        "--ckpt",
        "--checkpoint",
        metavar="DIR",
        help="A checkpoint or run directory, or a run's name. Default: the newest best (else last) under runs/.",
    ),
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(f"tiny-transformer {__version__}")
        raise typer.Exit


def as_overrides(options: dict[str, Any]) -> list[str]:
    """Options of ours as `key=value`, those that were given; text in quotes, so that a name such as 2024 stays one."""
    return [
        f"{key}={json.dumps(str(value) if isinstance(value, Path) else value)}"
        for key, value in options.items()
        if value is not None
    ]


def overrides_of(context: typer.Context) -> list[str]:
    """What is left on the command line as `key=value`: `--key value`, `--key=value` or `key=value`; a key that is true
    or false may stand alone."""
    from tiny_transformer.config.load import is_key, is_switch

    overrides, words = [], list(context.args)
    while words:
        word = words.pop(0)
        key = word[2:].replace("-", "_") if word.startswith("--") else ""
        if "=" in word:
            overrides.append(word.removeprefix("--"))
        elif is_switch(key):
            has_value = bool(words) and words[0].lower() in TRUTHS
            overrides.append(f"{key}={words.pop(0) if has_value else 'true'}")
        elif key and words and not words[0].startswith("--"):
            overrides.append(f"{key}={words.pop(0)}")
        elif is_key(key):
            raise UserError(f"{word} needs a value", where="command line", remedy=f"{word} VALUE")
        else:
            known = [name for option in context.command.params for name in option.opts]
            near = difflib.get_close_matches(word, known, n=1)
            raise UserError(
                f"no such option or key: {word}",
                where="command line",
                remedy=f"did you mean {near[0]}?" if near else "tiny-transformer train --help",
            )
    return overrides
