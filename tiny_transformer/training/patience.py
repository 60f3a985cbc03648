"""A full disk is no reason to lose a run: it waits, says so, and goes on when there is room again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.fs import is_full

T = TypeVar("T")
WAIT_SECONDS = 5.0  # between two tries
_LOOK_SECONDS = 0.1  # between two looks at whether a stop was asked for


def at_once(work: Callable[[], T]) -> T:
    """Without patience: what fails, fails."""
    return work()


class Patience:
    """Does work that writes; while the disk is full, again and again.

    Args:
        stop_requested: asked while waiting.
        say: shows a line.
    """

    def __init__(self, stop_requested: Callable[[], bool], say: Callable[[str], Any]) -> None:
        self._stop_requested, self._say = stop_requested, say

    def __call__(self, work: Callable[[], T]) -> T:
        """What `work` gives; it may be done several times, so what a refused try has done must not count.

        Raises:
            UserError: STOPPED, a stop was asked for while there was no room; anything else that `work` raises.
        """
        waited = False
        while True:
            try:
                result = work()
            except UserError as error:
                if not is_full(error):
                    raise
                if not waited:
                    self._say(
                        f"the disk is full ({error.where}): training is paused until there is space. Ctrl+C stops it; "
                        "what was saved is safe"
                    )
                waited = True
                self._wait(error)
            else:
                if waited:
                    self._say("there is space again: training continues")
                return result

    def _wait(self, error: UserError) -> None:
        begun = time.monotonic()
        while True:
            if self._stop_requested():
                raise UserError(
                    "stopped while the disk was full; everything saved before is intact",
                    where=error.where,
                    remedy="free space on this disk, then continue with --resume",
                    exit_code=ExitCode.STOPPED,
                ) from error
            if time.monotonic() - begun >= WAIT_SECONDS:
                return
            time.sleep(min(_LOOK_SECONDS, WAIT_SECONDS))
