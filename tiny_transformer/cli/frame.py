"""The command line's frame: the application, and the options that several verbs share."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import update_wrapper
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from tiny_transformer import __version__
from tiny_transformer.cli.guesses import option_meant, word_meant
from tiny_transformer.config.secrets import WHERE_THEY_GO, is_secret
from tiny_transformer.errors import UserError
from tiny_transformer.storage.reading import at_home

# --out-dir and --out_dir are the same option
SETTINGS: dict[str, Any] = {
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "help_option_names": ["-h", "--help"],
}
TRUTHS = ("true", "false", "yes", "no", "on", "off")  # what YAML reads as true or false
NOTHING = ("null", "none", "~")
PATHS = ("config", "named")  # options of text that are paths, or names
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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the words of the command line: an option that holds one value is given once, and `~` is the home
        directory wherever a path is meant (no shell expands it in `--out_dir=~/x`)."""
        values, _, given = self.make_parser(ctx).parse_args(args=list(args))
        single = [param for param in given if isinstance(param, TyperOption) and not param.multiple]
        if twice := [param for param in single if not param.is_flag and single.count(param) > 1]:
            name = max(twice[0].opts, key=len)
            raise UserError(f"{name} is given twice", where="command line", remedy=f"give {name} once")
        rest = super().parse_args(ctx, args)
        for param in self.params:
            name, value = param.name or "", ctx.params.get(param.name)
            is_path = isinstance(value, Path) or (isinstance(value, str) and name in PATHS)
            if is_path or (isinstance(value, list) and isinstance(next(iter(value), None), Path)):
                _refuse_empty(param, values.get(name))
            if is_path:
                ctx.params[name] = type(value)(at_home(value))
            elif isinstance(value, list):
                ctx.params[name] = [at_home(item) if isinstance(item, Path) else item for item in value]
        return rest


def _refuse_empty(param: Any, given: Any) -> None:
    """An empty path, as a shell makes of a variable that is not set, would be the current directory."""
    if "" in (given if isinstance(given, list | tuple) else [given]):
        name = max(param.opts, key=len) if isinstance(param, TyperOption) else str(param.metavar).strip("[].")
        remedy = "name a path, or leave it out; . is this directory"
        raise UserError(f"{name} is empty", where="command line", remedy=remedy)


def takes(*kinds: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb whose options are the fields of one dataclass or several: `verb(context, options, ...)`.

    Typer reads options off the parameters of a function; this gives it one with a parameter for each field.
    """
    given = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for kind in kinds
        for hints in [get_type_hints(kind, include_extras=True)]
        for field in fields(kind)
    ]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)

    def with_options(verb: Callable[..., None]) -> Callable[..., None]:
        def call(context: typer.Context, **words: Any) -> None:
            verb(context, *(kind(**{field.name: words[field.name] for field in fields(kind)}) for kind in kinds))

        update_wrapper(call, verb)
        call.__signature__ = inspect.Signature([context, *given])  # ty: ignore[missing-attribute]
        return call

    return with_options


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_given(context: typer.Context, why: str, names: Iterable[str]) -> None:
    """Refuse options that would be passed over, with the reason, such as `says nothing about a model`."""
    if given := [name for name in names if is_given(context, name)]:
        raise UserError(f"--{given[0]} {why}", where="command line", remedy=f"leave --{given[0]} out")


def whole_or_null(text: str) -> str:
    """A whole number, or `null` for none, as a config has it."""
    return _checked(text, int, "a whole number")


def whole_or_word(text: str) -> str:
    """As `whole_or_null`, or `auto`."""
    return "auto" if text.lower() == "auto" else _checked(text, int, "a whole number, auto")


def number_or_null(text: str) -> str:
    """A number, or `null` for none, as a config has it."""
    return _checked(text, float, "a number")


def _checked(text: str, kind: type[int] | type[float], what: str) -> str:
    if text.lower() in NOTHING:
        return "null"
    try:
        return str(kind(text))
    except ValueError:
        raise typer.BadParameter(f"{text} is not {what} or null") from None


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
    Path | None,
    typer.Option("--out_dir", metavar="DIR", help="Directory of the run. Default: runs/NAME, after the config."),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--ckpt_dir",
        "--ckpt",
        "--checkpoint",
        metavar="DIR",
        help="A checkpoint or run directory, or a run's name. Default: the newest best (or last) under runs/.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
CheckpointArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CKPT]",
        help="A checkpoint or run directory, or a run's name; as --ckpt too. Default: the newest best (else last) "
        "under runs/.",
    ),
]
CheckpointToo = Annotated[
    Path | None, typer.Option("--ckpt_dir", "--ckpt", "--checkpoint", metavar="DIR", hidden=True)
]  # beside a `CheckpointArgument`


def one_checkpoint(checkpoint: Path | None, named: Path | None) -> Path | None:
    """The checkpoint that is meant, where it may stand alone or behind --ckpt."""
    if checkpoint is not None and named is not None:
        raise UserError(f"two checkpoints: {checkpoint} and {named}", where="command line", remedy="give one")
    return named if checkpoint is None else checkpoint


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"tiny-transformer {__version__}")
        raise typer.Exit


def as_overrides(options: dict[str, Any]) -> list[str]:
    """Options of ours as `key=value`, those that were given; names and paths in quotes, so that 2024 stays a name."""
    written = {
        key: str(value)
        if key.startswith("training.")
        else json.dumps(value if isinstance(value, (int, float)) else str(value))
        for key, value in options.items()
        if value is not None
    }
    return [f"{key}={value}" for key, value in written.items()]


def options_of(command: Any) -> list[str]:
    """How the options of a verb are written."""
    return [name for param in command.params for name in param.opts if name.startswith("-")]


def _refuse_guess(name: str, context: typer.Context) -> None:
    """Refuse an option that is called otherwise here, with what it is called."""
    if meant := option_meant(name, context.args, options_of(context.command)):
        raise UserError(f"no such option or key: {name}", where="command line", remedy=meant)


def overrides_of(context: typer.Context, words: list[str] | None = None) -> list[str]:
    """What is left on the command line as `key=value`: `--key value`, `--key=value` or `key=value`; a key that is true
    or false may stand alone. Words that are none of these are added to `words`, or refused without it."""
    from tiny_transformer.config.keys import is_key, is_switch

    overrides, left = [], list(context.args)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        key = name[2:].replace("-", "_") if name.startswith("--") else ""
        if name.startswith("-") and not is_key(key):
            _refuse_guess(name, context)
        if equals:
            overrides.append(f"{key or name}={value}")
        elif is_switch(key):
            has_value = bool(left) and left[0].lower() in TRUTHS
            overrides.append(f"{key}={left.pop(0) if has_value else 'true'}")
        elif key and left and not left[0].startswith("--"):
            overrides.append(f"{key}={left.pop(0)}")
        elif is_key(key):
            raise UserError(f"{word} needs a value", where="command line", remedy=f"{word} VALUE")
        elif words is not None and not word.startswith("-"):
            words.append(word)
        else:
            near = difflib.get_close_matches(word, options_of(context.command), n=1)
            remedy = f"did you mean {near[0]}?" if near else f"{context.command_path} --help"
            remedy = remedy if word.startswith("-") else word_meant(word)
            raise UserError(
                f"no such option or key: {word}",
                where="command line",
                remedy=WHERE_THEY_GO if is_secret(word) else remedy,
            )
    return overrides
