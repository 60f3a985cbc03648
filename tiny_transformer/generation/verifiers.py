"""Scores of texts by a Python function of the user's, in a child process with a time limit.

    def function(prompt: str, text: str) -> float | bool: ...
    def function(prompt: str, text: str, answer: str | None) -> float | bool: ...  # where answers are known

The child is started once and asked again and again; one that does not answer in time is killed with everything it has
started, and the next text gets a new one. It may do what the user may: a verifier is a program of the user's own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.child import Child

PROGRAM = Path(__file__).with_name("verifier_process.py")
START_SECONDS = 60.0  # for the imports of the file


class Verdict(NamedTuple):
    """A text's score, higher is better; 0 where there was a problem, which is told."""

    score: float
    problem: str = ""


class Verifier:
    """A function that scores texts.

    Args:
        path: the Python file.
        function: its name there: `function(prompt, text)` gives a number, or true or false. One that takes three gets
            the known answer too.
        timeout_seconds: for one text.

    Raises:
        UserError: no such file.
    """

    def __init__(self, path: Path, function: str, *, timeout_seconds: float = 10.0) -> None:
        if not path.is_file():
            raise UserError(f"{path} does not exist", remedy="name a function in a Python file: FILE.py:function")
        self._path, self._function, self._timeout = path, function, timeout_seconds
        self._child: Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the child, if there is none.

        Raises:
            UserError: the file cannot be loaded, or has no such function.
        """
        self._started()

    def score(self, prompt: str, text: str, answer: str | None = None) -> Verdict:
        """The function's score of a text; errors as for `start`."""
        child = self._started()
        said = child.ask([prompt, text, answer], self._timeout)
        if said is None:
            self.close()
            return Verdict(0.0, f"no answer within {self._timeout:g} s")
        if not said:
            code = child.exit_code()
            self.close()
            return Verdict(0.0, f"the process of the verifier ended with {code}")
        return Verdict(said.get("score", 0.0), said.get("problem", ""))

    def close(self) -> None:
        """End the child and whatever it has started."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _started(self) -> Child:
        if self._child is not None:
            return self._child
        child = self._child = Child([sys.executable, "-P", str(PROGRAM), str(self._path), self._function])
        first = child.answer(START_SECONDS)
        if not first or "problem" in first:
            self.close()
            raise UserError(
                f"the verifier cannot be loaded: {(first or {}).get('problem', 'it does not answer')}",
                where=f"{self._path}:{self._function}",
                remedy=f"def {self._function}(prompt: str, text: str) -> float",
                exit_code=ExitCode.BAD_DATA,
            )
        return child
