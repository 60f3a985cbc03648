"""Asked to stop (Ctrl+C, SIGTERM, a closed terminal): finish the step, save, leave. Asked twice: leave now."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Self

from tiny_transformer.errors import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While entered, turns the first stop signal into a flag that the training loop asks for; the second ends the
    process at once.

    Ending at once loses nothing that was announced as saved: a checkpoint appears whole or not at all.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
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
