"""Rendering a chat template that came with a checkpoint, in a child process with limits.

A template is a program of whoever made the checkpoint. The child has a second of processor time for each conversation,
256 MB of memory and a megabyte of output; it is killed when it takes more, and the next conversation gets a new one.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.child import Child

PROGRAM = Path(__file__).with_name("template_process.py")
SECONDS = 60.0  # by the clock, for a machine that has no time: the child's own limit is of processor time


class ForeignTemplate:
    """A template as Jinja text, and the process that renders it; `with` ends the process.

    Args:
        text: the template.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._child: Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def render(self, values: Mapping[str, Any]) -> str:
        """What the template makes of its values.

        Raises:
            UserError: it refuses, fails, or takes more than it may.
        """
        if self._child is None:
            self._child = Child([sys.executable, "-I", str(PROGRAM)], environment={})
        answer = self._child.ask({"template": self.text, "values": values}, SECONDS)
        if answer and "text" in answer:
            return answer["text"]
        problem = (answer or {}).get("problem")
        if problem is None:
            code = -signal.SIGKILL if answer is None else self._child.exit_code()
            self.close()
            is_late = code in (-signal.SIGKILL, -signal.SIGPROF)
            problem = "it takes more than a second of processor time" if is_late else f"its process ended with {code}"
        raise UserError(
            f"the chat template refuses this conversation: {problem}",
            remedy="another --system, or none; or generate, which continues text",
            exit_code=ExitCode.BAD_DATA,
        )
