"""What the outside does to a run: asks it to stop, or takes its terminal away.

Asked to stop (Ctrl+C, SIGTERM, a closed terminal): finish the step, save, leave. Asked twice: leave now. A terminal or
a pipe that is gone is no reason to stop at all: `steady_output`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any, Self

from rich.console import Console

from tiny_transformer.errors import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While entered, turns the first stop signal into a flag that the training loop asks for; the second ends the
    process at once.

    Ending at once loses nothing that was announced as saved: a checkpoint appears whole or not at all. A signal that
    was ignored when the process started (`nohup`, a job in the background) stays ignored.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(ExitCode.STOPPED)
        self.requested = True


class SteadyFile:
    """A text file that shows progress, whose loss costs nothing: what cannot be written is dropped.

    Attributes:
        note: why and that the output ended, in words; None while it goes on.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.note: str | None = None

    def write(self, text: str) -> int:
        """Write, with a replacement for each character that the output's encoding does not have."""
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._file.write(shown))
        return len(text)

    def flush(self) -> None:
        """As of any file."""
        self._try(self._file.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _try(self, work: Any) -> None:
        if self.note is not None:
            return
        try:
            work()
        except OSError as error:
            self.note = f"the output ended here ({error.strerror}); the training went on"
            self._turn_away()

    def _turn_away(self) -> None:
        """Let what is still in the buffer, and what others write to the same place, go nowhere instead of failing."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            if sys.stderr.isatty():  # a terminal is lost for both
                os.dup2(nowhere, sys.stderr.fileno())
            os.close(nowhere)


@contextmanager
def steady_output(console: Console) -> Generator[None]:
    """While entered, nothing that is wrong with the console's output ends the process; `output_note` tells of it."""
    before = console.file
    console.file = SteadyFile(before)  # ty: ignore[invalid-assignment]
    try:
        yield
        console.file.flush()
    finally:
        console.file = before


def output_note(console: Console) -> str | None:
    """What happened to the output of a console in `steady_output`; None when it goes on."""
    return console.file.note if isinstance(console.file, SteadyFile) else None
