"""The command `tiny-transformer`: one verb per job. A verb parses, calls a library function and prints; it holds no
logic.

Nothing heavy is imported here: torch comes in inside the verbs that compute.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Any

import typer
from typer.exceptions import TyperException

# Each of these modules adds its verbs to the application; `--help` lists them in this order.
# isort: off
from tiny_transformer.cli import training, tuning, writing, using, looking, exchange  # noqa: F401

# isort: on
from tiny_transformer.cli.frame import Verb, app, options_of
from tiny_transformer.cli.guesses import option_meant, verb_meant
from tiny_transformer.config.secrets import WHERE_THEY_GO, is_secret
from tiny_transformer.errors import ExitCode, UserError, missing_package, out_of_memory

__all__ = ["app", "main", "run"]

NO_MEMORY = b"error: there is not enough memory\n  try: a higher limit (ulimit -v), or fewer programs beside this one\n"

for verb in app.registered_commands:
    verb.cls = Verb


def main(
    arguments: list[str] | None = None,
    prog: str = "tiny-transformer",
    *,
    verb: str | None = None,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Run a command line and end the process with one of `ExitCode`; see `run`."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot show a character shows another
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]  # a terminal of unknown width, on which nothing at all would be shown
    code = run(sys.argv[1:] if arguments is None else arguments, prog, verb=verb, defaults=defaults)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # One of several processes. The threads of torch.distributed live on until the process ends; one that lets go
        # of a tensor while the interpreter is being taken down aborts the process, after a run that went well.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _open_what_is_closed() -> None:
    """A program that was started without standard output, or errors (`>&-`), says nothing, as with /dev/null; and none
    of its files takes that number, for libraries would write their warnings into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def run(
    arguments: list[str],
    prog: str = "tiny-transformer",
    *,
    verb: str | None = None,
    defaults: dict[str, Any] | None = None,
) -> int:
    """Run a command line; the exit code.

    Args:
        arguments: its words.
        prog: what the user has typed before them, for usage and remedies.
        verb: the verb, where `prog` stands for one.
        defaults: of that verb's options, where they are others than its own.
    """
    group = typer.main.get_command(app)
    command = group if verb is None else group.commands[verb]  # ty: ignore[missing-attribute]
    try:
        words = arguments or ["--help"] * (verb is None)
        code = command.main(words, prog_name=prog, standalone_mode=False, default_map=defaults)
        sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.OK
    except UserError as error:
        typer.echo(str(error), err=True)
        return error.exit_code
    except typer.Exit as ended:
        return ended.exit_code
    except TyperException as error:
        what, remedy = error.format_message(), _remedy(error, arguments, prog, verb, group)
        if is_secret(name := getattr(error, "option_name", "")):
            what, remedy = f"No such option: {name}", WHERE_THEY_GO
        typer.echo(f"error: {what}\n  try: {remedy}", err=True)
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader of our output left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except OSError as error:
        where = f"\n   in: {error.filename}" if error.filename else ""
        remedy = "\n  try: check the disk and permissions, then run the command again"
        typer.echo(f"error: {error.strerror or error}{where}{remedy}", err=True)
        return ExitCode.IO
    except Exception as error:
        if isinstance(error, MemoryError | ImportError | RuntimeError):
            try:
                if told := missing_package(error) or out_of_memory(error):
                    typer.echo(str(told), err=True)
                    return told.exit_code
            except MemoryError:  # not enough to put it in words, nor for what Python does at its end
                os.write(2, NO_MEMORY)
                os._exit(ExitCode.IO)
        traceback.print_exc()
        typer.echo(
            "\nThis is a bug in tiny-transformer, not in your input. Please report it with the lines above.", err=True
        )
        return ExitCode.INTERNAL


def _remedy(error: TyperException, arguments: list[str], prog: str, verb: str | None, group: Any) -> str:
    """What to type instead of words that the command line does not know."""
    named = arguments[0] if verb is None and arguments[:1] and arguments[0] in _verbs() else verb
    if named is None:
        meant = verb_meant(arguments, options_of(group.commands["train"])) if arguments else None
        return f"{prog} {meant or '--help'}"
    meant, name = None, getattr(error, "option_name", "")
    if name:
        meant = option_meant(name, arguments, options_of(group.commands[named]))
    return meant or f"{' '.join([prog, *([named] if verb is None else [])])} --help"


def _verbs() -> set[str]:
    return {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
