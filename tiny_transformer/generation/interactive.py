"""Typing with a model at a terminal: a line, an answer, and a few commands that begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Protocol

from tiny_transformer.errors import UserError
from tiny_transformer.storage import atomic_write
from tiny_transformer.storage.reading import at_home

HELP = """\
/help        this list
/reset       forget everything so far
/save FILE   write everything so far into a file (JSON)
/bye         leave; so does Ctrl-D
\"\"\"          begins and ends a text of several lines
Ctrl-C       stops the answer
"""
NO_ANSWER = "the model ended at once, without a text"
QUOTES = '"""'


class Partner(Protocol):
    """What is talked with: `chat.Conversation` or `chat.RunningText`."""

    greeting: str
    note: str

    def ask(self, text: str, /) -> Generator[str]:
        """The answer in pieces."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def saved(self) -> dict[str, Any]:
        """What `/save` writes."""
        ...


class Session:
    """Reads lines and shows answers until there are no more.

    Args:
        partner: who answers.
        read: gives the next line after showing a prompt; raises EOFError at the end, KeyboardInterrupt for Ctrl-C.
        show: shows a piece of an answer.
        tell: shows a line that is no answer.
    """

    def __init__(
        self,
        partner: Partner,
        *,
        read: Callable[[str], str] = input,
        show: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self._partner, self._read, self._show, self._tell = partner, read, show, tell

    def run(self) -> None:
        """Talk until `/bye` or the end of the input."""
        if sys.stdin.isatty():
            with suppress(ImportError):
                import readline  # noqa: F401 - arrow keys and the lines typed before, for `input`
        self._tell(f"{self._partner.greeting} /help tells more; /bye or Ctrl-D leaves.")
        while (text := self._next()) is not None:
            try:
                if text.startswith("/") and "\n" not in text:
                    if not self._obey(text):
                        return
                else:
                    self._answer(text)
            except UserError as error:
                self._tell(str(error))

    def _next(self) -> str | None:
        """The next text, of several lines between quotes; None at the end."""
        while True:
            try:
                line = self._read(">>> ")
                if not line.startswith(QUOTES):
                    return line
                lines = [line.removeprefix(QUOTES)]
                while not lines[-1].endswith(QUOTES):
                    lines.append(self._read("... "))
                return "\n".join(lines).removesuffix(QUOTES).strip("\n")
            except KeyboardInterrupt:
                self._tell("(/bye or Ctrl-D leaves)")
            except EOFError:
                return None

    def _answer(self, text: str) -> None:
        pieces, answered = self._partner.ask(text), False
        try:
            for piece in pieces:
                self._show(piece)
                answered = True
        except KeyboardInterrupt:
            self._tell("\n(stopped)")
            return
        finally:
            pieces.close()  # what was written is noted now
        self._show("\n")
        if not answered:
            self._tell(f"({NO_ANSWER})")
        if self._partner.note:
            self._tell(f"({self._partner.note})")

    def _obey(self, line: str) -> bool:
        """Do what a command says; False to leave."""
        command, _, argument = line.strip().partition(" ")
        if command in ("/bye", "/quit", "/exit"):
            return False
        if command == "/help":
            self._tell(HELP.rstrip("\n"))
        elif command == "/reset":
            self._partner.reset()
            self._tell("(all is forgotten)")
        elif command == "/save":
            self._save(argument.strip())
        else:
            self._tell(
                f"there is no command {command}; /help lists them. A text that begins so stands between {QUOTES}"
            )
        return True

    def _save(self, name: str) -> None:
        path = at_home(name)
        if not name:
            raise UserError("/save needs a file", remedy="/save talk.json")
        if path.exists():
            raise UserError(f"{path} is there already", remedy="give it another name")
        atomic_write(path, json.dumps(self._partner.saved(), indent=2, ensure_ascii=False) + "\n", makes_parents=False)
        self._tell(f"(saved in {path})")
