"""Self-consistency: several texts of one prompt, and the answer that most of them give, or that a verifier likes best.

Source: Wang et al. 2022, Self-Consistency Improves Chain of Thought Reasoning in Language Models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_transformer.errors import UserError
from tiny_transformer.generation.verifiers import Verifier

FORMS = "majority, regex:PATTERN or verifier:FILE.py:function"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Election:
    """Which text won.

    Attributes:
        winner: its index.
        answers: what each text says; None where it says nothing.
        scores: of a verifier; empty without one.
        problems: what a verifier could not judge, with the text's index.
    """

    winner: int
    answers: tuple[str | None, ...]
    scores: tuple[float, ...] = ()
    problems: tuple[tuple[int, str], ...] = ()

    @property
    def answer(self) -> str | None:
        """What the winner says."""
        return self.answers[self.winner]

    def tally(self) -> dict[str, int]:
        """How many texts give each answer, most first; those without one are not in it."""
        return dict(Counter(answer for answer in self.answers if answer is not None).most_common())

    def sentence(self) -> str:
        """The tally for a reader, the first few answers of it."""
        counts = [f"{_short(answer)} × {count}" for answer, count in list(self.tally().items())[:5]]
        more = len(self.tally()) - len(counts)
        counts += [f"{more} others"] * (more > 0) + [f"no answer × {self.answers.count(None)}"] * (None in self.answers)
        best = f"; the best score is {max(self.scores):g}" if self.scores else ""
        return f"vote of {len(self.answers)}: {', '.join(counts)}{best}; shown: text {self.winner + 1}"


def _short(answer: str) -> str:
    answer = " ".join(answer.split())
    return answer if len(answer) <= 40 else answer[:39] + "…"


@dataclass(frozen=True)
class Vote:
    """How texts are compared.

    Attributes:
        kind: `majority`, `regex` or `verifier`.
        pattern: of `regex`.
        path, function: of `verifier`.
    """

    kind: str
    pattern: re.Pattern[str] | None = None
    path: Path = Path()
    function: str = ""

    def elect(self, prompt: str, texts: Sequence[str]) -> Election:
        """The winner among the texts of a prompt; of equals the one that came first.

        Raises:
            UserError: no text has an answer, or a verifier could judge none.
        """
        if self.kind == "verifier":
            return self._by_scores(prompt, texts)
        answers = tuple(map(self.answer_of, texts))
        if not (counts := Counter(answer for answer in answers if answer is not None)):
            raise UserError(
                f"none of the {len(texts)} texts has an answer of that form",
                remedy="another --vote regex:PATTERN, more --samples, or longer texts (--max_new_tokens)",
            )
        return Election(answers.index(counts.most_common(1)[0][0]), answers)

    def answer_of(self, text: str) -> str | None:
        """What a text answers. By `regex`, its first group where the pattern is found last. Else what stands after the
        last `####`, as in GSM8K; else the last number, without commas; else the whole text."""
        if self.pattern is not None:
            found = list(self.pattern.finditer(text))
            return found[-1][1 if self.pattern.groups else 0] if found else None
        _, marked, after = text.rpartition("####")
        numbers = _NUMBER.findall(after if marked else text)
        if marked and not numbers:
            return after.strip()
        return numbers[-1].replace(",", "") if numbers else text.strip()

    def _by_scores(self, prompt: str, texts: Sequence[str]) -> Election:
        with Verifier(self.path, self.function) as verifier:
            verdicts = [verifier.score(prompt, text) for text in texts]
        problems = tuple((i, verdict.problem) for i, verdict in enumerate(verdicts) if verdict.problem)
        if len(problems) == len(texts):
            where = f"{self.path}:{self.function}"
            raise UserError(f"the verifier could judge no text: {problems[0][1]}", where=where, remedy="mend it")
        failed = {i for i, _ in problems}
        winner = max((i for i in range(len(texts)) if i not in failed), key=lambda i: verdicts[i].score)
        scores = tuple(verdict.score for verdict in verdicts)
        return Election(winner, tuple(map(self.answer_of, texts)), scores, problems)


def parse_vote(text: str) -> Vote:
    """How to vote, from the command line's word.

    Raises:
        UserError: another form, a pattern that is no regular expression, or no such file.
    """
    kind, _, rest = text.partition(":")
    if text == "majority":
        return Vote("majority")
    if kind == "regex" and rest:
        try:
            return Vote("regex", re.compile(rest))
        except re.error as error:
            remedy = r"for example regex:Answer: (\d+)"
            raise UserError(f"{rest} is no regular expression: {error}", remedy=remedy) from None
    path, _, function = rest.rpartition(":")
    if kind == "verifier" and path and function.isidentifier():
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist", remedy="--vote verifier:FILE.py:function")
        return Vote("verifier", path=Path(path), function=function)
    raise UserError(f"--vote {text} is not possible", remedy=f"--vote {FORMS}")
