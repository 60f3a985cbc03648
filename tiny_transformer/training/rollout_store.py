"""Answers that a model in training wrote, with their rewards, kept in the run directory before they are learnt from.

A round is one file, `rollouts/step-00000012.jsonl`: a line that says what wrote it, and a line for each answer. A
killed run takes it up again, so that no answer is written, or judged, twice; a verifier need not say the same again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tiny_transformer.errors import UserError
from tiny_transformer.storage import atomic_write
from tiny_transformer.storage.reading import read_regular
from tiny_transformer.storage.runs import ROLLOUTS, RunDirectory
from tiny_transformer.storage.temporary import LEFTOVER_PREFIX

KEPT = 3  # of the newest rounds, besides those since the newest checkpoint
MOST_BYTES = 256_000_000  # of all rounds together; the oldest go first
_NAME = re.compile(r"step-(\d{8})\.jsonl")


class Answer(NamedTuple):
    """One answer and what it is worth.

    Attributes:
        question: the number of the question.
        prompt: its tokens.
        ids: of the answer, the token that ended it included.
        text: without that.
        reason: why it ended.
        reward: of the verifier.
        problem: why it could not be judged; "" otherwise.
        old: log-probability of each token when it was written.
        reference: under the reference; empty without one.
    """

    question: int
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    reason: str
    reward: float
    problem: str
    old: tuple[float, ...]
    reference: tuple[float, ...]


def encode(answers: Sequence[Answer]) -> str:
    """Lines of JSON; a log-probability is a float32, and its digits give the same float32 back."""

    def short(values: tuple[float, ...]) -> list[float]:
        return [float(str(np.float32(value))) for value in values]

    rows = [one._replace(old=short(one.old), reference=short(one.reference))._asdict() for one in answers]  # ty: ignore[invalid-argument-type]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def decode(lines: str) -> list[Answer]:
    """What `encode` wrote."""
    answers = [Answer(**json.loads(line)) for line in lines.split("\n") if line]
    return [
        one._replace(prompt=tuple(one.prompt), ids=tuple(one.ids), old=tuple(one.old), reference=tuple(one.reference))
        for one in answers
    ]


@dataclass(frozen=True)
class RolloutStore:
    """The rounds of one run.

    Attributes:
        run_dir: of the run.
        writes: whether anything is written; a replay only reads.
        patiently: does work that writes, and waits while the disk is full.
    """

    run_dir: Path
    writes: bool
    patiently: Callable[[Callable[[], None]], None]

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.run_dir / ROLLOUTS

    def read(self, step: int, author: dict[str, Any]) -> str | None:
        """The lines of the round that began at a step; None where there is none, or another author wrote it.

        Args:
            step: updates made before the round.
            author: what wrote it: the hash of the weights, and whatever else decides what they write. A key of which
                the value is None is not compared.
        """
        with suppress(OSError, UserError, ValueError, KeyError):
            head, _, lines = read_regular(self._path(step)).decode("utf-8").partition("\n")
            told = json.loads(head)
            is_same = all(told[key] == value for key, value in author.items() if value is not None)
            if is_same and told["sha256"] == hashlib.sha256(lines.encode()).hexdigest():
                return lines
        return None

    def keep(self, step: int, author: dict[str, Any], lines: str) -> None:
        """Write a round, then remove those that no resumption asks for.

        Raises:
            UserError: the system refuses.
        """
        if not self.writes:
            return
        head = json.dumps({"step": step, **author, "sha256": hashlib.sha256(lines.encode()).hexdigest()})
        self.patiently(lambda: self._write(step, f"{head}\n{lines}"))
        self._prune(step)

    def _write(self, step: int, text: str) -> None:
        if self.run_dir.is_dir():  # one that was removed meanwhile must not come back with one file in it
            self.folder.mkdir(exist_ok=True)
        atomic_write(self._path(step), text, makes_parents=False)

    def _prune(self, step: int) -> None:
        saved = RunDirectory(self.run_dir).checkpoints()
        since = saved[-1].step if saved else 0
        found = sorted((int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)))
        older = [(at, path) for at, path in found if at < step]
        num_bytes = self._path(step).stat().st_size
        for place, (at, path) in enumerate(reversed(older), start=1):
            num_bytes += path.stat().st_size
            if (place >= KEPT and at < since) or num_bytes > MOST_BYTES:
                path.unlink()
        for leftover in self.folder.glob(f"{LEFTOVER_PREFIX}*"):  # of a start that was killed while it wrote
            leftover.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.jsonl"
