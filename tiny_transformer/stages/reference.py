"""The reference of a run of alignment: what its model says before the first step, computed once and kept.

`reference.safetensors` in the run directory holds log-probabilities, and some answers that the reference wrote; its
header names the base and the data. A run that is resumed reads it; if it is gone, it is computed again from the base,
and a base that has changed since is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tiny_transformer.data.chat.pairs import EncodedPair
from tiny_transformer.data.preferences import AnswerRows, answer_rows
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.evaluation.preferences import Written, logps_of, write_answers
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.safetensors_file import encode, open_checked, reading
from tiny_transformer.stages.resume_check import BASE_BACK
from tiny_transformer.stages.stage import Request
from tiny_transformer.storage import atomic_write
from tiny_transformer.storage.manifest import digest
from tiny_transformer.storage.runs import REFERENCE_FILE

BASE, PAIRS = "base", "pairs"  # what the header of the file names, by their hashes


@dataclass(frozen=True)
class Asked:
    """What is asked of a reference.

    Attributes:
        train: pairs it judges for the loss; empty where the loss needs none.
        val: pairs it judges for evaluations.
        questions: tokens that it answers.
        settings: how long an answer may grow, and the seed.
        end_id: ends an answer.
        num_tokens: of the tokenizer.
        rows_at_once: as a training step has, at most: the second model has the room of gradients and of the optimizer,
            and no more than that.
    """

    train: Sequence[EncodedPair]
    val: Sequence[EncodedPair]
    questions: Sequence[Sequence[int]]
    settings: SamplingConfig
    end_id: int
    num_tokens: int
    rows_at_once: int


@dataclass(frozen=True)
class Reference:
    """What the reference says.

    Attributes:
        train: (N, 2) float32, log-probabilities of chosen and rejected answers in nats; None where they were not asked.
        val: (M, 2), the same of the held-out pairs.
        written: its own answers; None where there was nothing to ask.
    """

    train: Tensor | None
    val: Tensor
    written: Written | None


def compute_reference(model: CausalLM, asked: Asked, hardware: Hardware, beat: Callable[[], None]) -> dict[str, Tensor]:
    """Ask a model, which is left in evaluation mode; the tensors of the file."""
    model.eval()
    found: dict[str, Tensor] = {}
    for name, pairs in (("train", asked.train), ("val", asked.val)):
        rows = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
        found[name] = logps_of(model, rows, hardware, beat, asked.rows_at_once, trains=name == "train").view(-1, 2)
    answers = write_answers(model, asked.questions, asked.settings, asked.end_id, asked.num_tokens)
    if answers:
        rows = answer_rows(answers)
        found |= {"written.ids": rows.ids, "written.is_answer": rows.is_answer, "written.is_text": rows.is_text}
        found["written.logps"] = logps_of(model, answers, hardware, beat, asked.rows_at_once)
    return found


def reference_of(tensors: dict[str, Tensor], asked: Asked) -> Reference:
    """The tensors of the file, understood."""
    written = None
    if "written.ids" in tensors:
        rows = AnswerRows(*(tensors[f"written.{name}"] for name in ("ids", "is_answer", "is_text")))
        logps = tensors["written.logps"]
        written = Written(asked.questions, rows, logps, asked.settings, asked.end_id, asked.num_tokens)
    return Reference(tensors["train"] if len(asked.train) else None, tensors["val"], written)


def keep_reference(tensors: dict[str, Tensor], run_dir: Path, identity: dict[str, str]) -> None:
    """Write the file."""
    content = b"".join(bytes(part) for part in encode(tensors, identity))
    atomic_write(run_dir / REFERENCE_FILE, content, makes_parents=False)


def kept_reference(run_dir: Path, identity: dict[str, str]) -> dict[str, Tensor] | None:
    """What is kept of this base and these pairs, or nothing."""
    path = run_dir / REFERENCE_FILE
    try:
        with open_checked(path) as opened, reading(path):
            if opened.metadata() != identity:
                return None
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except UserError:  # not there, or damaged: it can be computed again
        return None


def base_hash(request: Request, run_dir: Path) -> str:
    """SHA-256 of the weights a run starts from; of a base that is gone, what the run remembers.

    Raises:
        UserError: a run is resumed whose base has changed since, or is gone without having left its reference.
    """
    base, remembered = request.config.init_from, _remembered(run_dir) if request.resume else None
    if base is None or not base.is_dir():
        if remembered is None:
            raise UserError(
                f"{base}, which this run starts from, no longer exists, and {REFERENCE_FILE} with what it said is gone",
                where="init_from",
                remedy="put the base back where it was",
                exit_code=ExitCode.BAD_DATA,
            )
        return remembered
    now = weights_hash(base)
    if remembered not in (None, now):
        raise UserError(
            f"{base} has changed since this run began, which measures its answers by what the base said then",
            where="init_from",
            remedy=BASE_BACK,
            exit_code=ExitCode.BAD_DATA,
        )
    return now


def weights_hash(directory: Path) -> str:
    """SHA-256 of the weight files of a model directory."""
    files = sorted(directory.glob("*.safetensors"))
    return hashlib.sha256(repr([(file.name, digest(file).sha256) for file in files]).encode()).hexdigest()


def _remembered(run_dir: Path) -> str | None:
    path = run_dir / REFERENCE_FILE
    try:
        with open_checked(path) as opened, reading(path):
            return (opened.metadata() or {}).get(BASE)
    except UserError:
        return None
