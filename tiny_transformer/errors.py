"""What a user can cause, and how a command ends.

`UserError` is the only exception a command shows without a traceback: three lines at most, saying what is wrong, where,
and what to do next. Any other exception that escapes a command is a bug of ours and ends with `ExitCode.INTERNAL`.
"""

from __future__ import annotations

import re
import shlex
import sys
from enum import IntEnum
from pathlib import Path

# What a terminal obeys instead of showing it: control characters, halves of surrogate pairs, and the marks that turn
# the direction of text. Names and values out of files reach messages.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LINE_BREAK = re.compile(r"[\t ]*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]\s*")  # a name may have two blanks in a row


class ExitCode(IntEnum):
    """How a command ends; the numbers follow sysexits.h where it has one."""

    OK = 0
    USAGE = 2  # a wrong option, key, value or path
    BAD_DATA = 65  # a file whose content is not what it should be
    INTERNAL = 70  # a bug of ours
    LOCKED = 73  # another process owns this run directory
    IO = 74  # the disk or the operating system refused
    STOPPED = 75  # asked to stop; resumable


class UserError(Exception):
    """A problem the user can mend.

    Args:
        what: what is wrong, naming the offending value.
        where: the file, and the key, line or offset in it.
        remedy: what is allowed, or the command to run next.
        exit_code: how the command ends.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        exit_code: ExitCode = ExitCode.USAGE,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.remedy, self.exit_code = what, where, remedy, exit_code

    def lines(self) -> list[str]:
        """The message as at most three lines, each without line breaks or anything else that a terminal obeys."""
        parts = [("error: ", self.what), ("   in: ", self.where), ("  try: ", self.remedy)]
        return [label + _UNSHOWABLE.sub("\ufffd", _LINE_BREAK.sub(" ", text.strip())) for label, text in parts if text]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def command_line(*words: str | int | Path) -> str:
    """Words of a command line as a shell takes them, to be copied from a message: quoted where that is needed. A path
    that begins with a dash gets `./`, for it would be taken for an option."""
    named = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return " ".join(shlex.quote(word) if word.isprintable() else _in_escapes(word) for word in named)


def _in_escapes(word: str) -> str:
    """A word with line breaks or control characters, on one line, as bash and zsh read it: `$'two\\nlines'`."""

    def escaped(char: str) -> str:
        if char in "'\\":
            return f"\\{char}"
        is_byte = "\udc80" <= char <= "\udcff"  # of a name that is not UTF-8
        data = char.encode(errors="surrogateescape" if is_byte else "surrogatepass")
        return char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in data)

    return f"$'{''.join(map(escaped, word))}'"


def plain(text: str | Path) -> str:
    """Text without line breaks and control characters, which would break a line or steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def in_words(error: Exception) -> str:
    """What went wrong, in one line: what the user can mend as it is told, anything else with its type."""
    return error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def out_of_memory(error: BaseException) -> UserError | None:
    """What to tell when an error means that there is not enough memory; None for any other error.

    Libraries say it in many ways: `MemoryError`, a `RuntimeError` of an allocator, an `ImportError` of a file that
    could not be mapped.
    """
    text = str(error).lower()
    words = ("memory", "bad_alloc", "failed to map segment", "can't start new thread", "cannot allocate")
    if not isinstance(error, MemoryError) and not any(word in text for word in words):
        return None
    said = f": {' '.join(str(error).split())[:160]}" if str(error) else ""
    return UserError(
        f"there is not enough memory{said}",
        remedy="in training a smaller --micro_batch_size (with more --grad_accum_steps) or --gradient_checkpointing; "
        "else a smaller model, fewer programs beside it, or a higher limit (ulimit -v)",
        exit_code=ExitCode.IO,
    )


def missing_package(error: BaseException) -> UserError | None:
    """What to tell when a package of somebody else's is not there: another Python than the one it was installed for.
    None for any other error."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name in ("", __package__):
        return None
    return UserError(
        f"the package {name} is not installed for this Python",
        where=sys.executable,
        remedy="source .venv/bin/activate, where there is one; else, in the checkout: pip install -e '.[all]'",
    )
