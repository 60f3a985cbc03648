"""A child process that answers lines of JSON with lines of JSON, and is killed when it does not in time.

Whatever it does, the program that asks goes on: verifiers and chat templates of other people run in one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

MAX_LINE = 16 << 20  # characters of an answer


class Child:
    """A process that was started, and everything it starts.

    Args:
        words: its command line.
        environment: its environment; None: this process's own.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            list(words), stdin=pipe, stdout=pipe, encoding="utf-8", start_new_session=True, env=environment
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()

    def ask(self, value: Any, seconds: float) -> dict[str, Any] | None:
        """The answer to a value: None when none comes in time, empty when the process has ended."""
        with suppress(BrokenPipeError):  # it has died: there is no answer
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(value) + "\n")
                self._process.stdin.flush()
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """Its next line; see `ask`."""
        try:
            line = self._answers.get(timeout=seconds)
            return json.loads(line) if line else {}
        except (queue.Empty, ValueError):
            return None

    def exit_code(self) -> int:
        """How a process that has ended has ended; negative: the signal that killed it."""
        return self._process.wait()

    def close(self) -> None:
        """End the process and whatever it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    """Pass the process's lines on, and an empty one at the end; so that waiting for one can end in time."""
    with suppress(ValueError, OSError):  # the pipe was closed
        while process.stdout is not None and (line := process.stdout.readline(MAX_LINE)):
            answers.put(line)
    answers.put("")
