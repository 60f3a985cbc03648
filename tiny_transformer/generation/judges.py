"""Rewards of answers: an exact comparison, a pattern whose find is compared, or a function of the user's.

exact               what a text answers, as a vote reads it, equals the known answer: 1, else 0
regex:PATTERN       what the pattern finds last (its first group, if it has one) equals the known answer: 1, else 0
FILE.py:function    what `function(prompt, text, answer)` returns, in a child process with a time limit
"""

from __future__ import annotations

import weakref
from decimal import Decimal, InvalidOperation
from pathlib import Path

from tiny_transformer.errors import UserError
from tiny_transformer.generation.verifiers import Verdict, Verifier
from tiny_transformer.generation.voting import Vote, parse_vote

FORMS = "exact, regex:PATTERN or FILE.py:function"
MARK = "####"  # before the final answer, as in GSM8K


class Judge:
    """What an answer is worth.

    Args:
        form: one of the three above.
        timeout_seconds: for one answer, of a function.

    Attributes:
        needs_answers: whether each question must bring its answer.

    Raises:
        UserError: another form, a pattern that is no regular expression, no such file.
    """

    def __init__(self, form: str, *, timeout_seconds: float = 10.0) -> None:
        self._vote, self._verifier = _parse(form, timeout_seconds)
        self.needs_answers = self._verifier is None
        if self._verifier is not None:
            weakref.finalize(self, self._verifier.close)  # a child must not outlive the run

    def start(self) -> None:
        """Load the function now, so that a file that cannot be used is told before anything is trained.

        Raises:
            UserError: the file cannot be loaded, or has no such function.
        """
        if self._verifier is not None:
            self._verifier.start()

    def __call__(self, prompt: str, text: str, answer: str | None) -> Verdict:
        """The reward of one text; with a problem where a function raised, hung or gave no number."""
        if self._verifier is not None:
            return self._verifier.score(prompt, text, answer)
        found = None if self._vote is None else self._vote.answer_of(text)
        return Verdict(float(found is not None and answer is not None and is_same(found, final_answer(answer))))


def final_answer(answer: str) -> str:
    """What stands behind the last `####`, where there is one: the lines before it are a solution's."""
    return answer.rpartition(MARK)[2].strip()


def is_same(found: str, answer: str) -> bool:
    """Whether two answers are the same text, or the same number: `1,204` and `1204.0` are."""
    found, answer = found.strip(), answer.strip()
    return found == answer or (_number(found) is not None and _number(found) == _number(answer))


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text.replace(",", "").removeprefix("$").removesuffix("."))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _parse(form: str, timeout_seconds: float) -> tuple[Vote | None, Verifier | None]:
    if form == "exact":
        return parse_vote("majority"), None
    if form.startswith("regex:") and form != "regex:":
        return parse_vote(form), None
    path, _, function = form.rpartition(":")
    if not path or not function.isidentifier():
        raise UserError(f"the verifier {form!r} is not possible", where="grpo.verifier", remedy=f"--verifier {FORMS}")
    return None, Verifier(Path(path).expanduser(), function, timeout_seconds=timeout_seconds)
