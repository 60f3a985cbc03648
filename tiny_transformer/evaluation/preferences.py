"""How a model in alignment does on held-out pairs, and how far it has gone from its reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_transformer.data.preferences import AnswerRows, PairBatch, answer_rows
from tiny_transformer.generation.rows import continue_ids
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.sharing import NOT_SHARED, Sharing
from tiny_transformer.tokenizers.chat import Encoded

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class Written:
    """Answers that the reference wrote at temperature 1.

    Attributes:
        questions: the tokens they were asked for with.
        rows: questions and answers.
        logps: (K,) float32 of the answers under the reference, in nats.
        settings: how long an answer may grow, and the seed.
        end_id: ends one.
        num_tokens: of the tokenizer.
    """

    questions: Sequence[Sequence[int]]
    rows: AnswerRows
    logps: Tensor
    settings: SamplingConfig
    end_id: int
    num_tokens: int

    @property
    def mean_length(self) -> float:
        """Tokens of an answer, its end included."""
        return self.rows.is_answer.sum().item() / max(1, len(self.rows.ids))


def token_logps(model: CausalLM, rows: AnswerRows) -> tuple[Tensor, Tensor]:
    """The log-probability of each token but the first, (B, T) float32 in nats, and the model's auxiliary loss."""
    doc_ids = None
    if getattr(model.config, "num_experts", 0):  # experts are counted over the texts alone
        doc_ids = torch.where(rows.is_text[:, :-1], 0, -1)
    hidden, auxiliary, _ = model.backbone(rows.ids[:, :-1], None, doc_ids)
    logits = model.lm_head(hidden).float()
    losses = F.cross_entropy(logits.flatten(0, 1), rows.ids[:, 1:].flatten(), reduction="none")
    return -losses.view(len(rows.ids), -1), auxiliary


def answer_logps(model: CausalLM, rows: AnswerRows) -> Tensor:
    """The log-probability of each answer, (B,) float32 in nats."""
    return (token_logps(model, rows)[0] * rows.is_answer[:, 1:]).sum(-1)


def write_answers(
    model: CausalLM, questions: Sequence[Sequence[int]], settings: SamplingConfig, end_id: int, num_tokens: int
) -> list[Encoded]:
    """What a model answers, as tokens with the answer marked."""
    answers = continue_ids(model, questions, settings, end_ids=(end_id,), num_tokens=num_tokens)
    room = [min(settings.max_new_tokens, model.config.max_position_embeddings - len(q) + 1) for q in questions]
    ended = [ids + [end_id] * (len(ids) < most) for ids, most in zip(answers, room, strict=True)]
    return [
        Encoded([*question, *ids], [False] * len(question) + [True] * len(ids))
        for question, ids in zip(questions, ended, strict=True)
    ]


@torch.no_grad()
def evaluate_pairs(
    model: CausalLM,
    batches: Iterable[PairBatch],
    loss: Callable[[CausalLM, Any], tuple[Tensor, dict[str, float]]],
    *,
    hardware: Hardware,
    sharing: Sharing = NOT_SHARED,
) -> tuple[dict[str, float], int]:
    """The means of loss and figures over all pairs, as `val_...`, and how many there were; each process reads all of
    them, so that all know the same. The model's mode is put back."""
    was_training, sums, count = model.training, defaultdict[str, float](float), 0
    model.eval()
    for batch in batches:
        moved = batch.to(hardware.device)
        with hardware.autocast():
            total, figures = sharing.run(lambda batch=moved: loss(model, batch), "evaluation")
        for name, value in {"loss": total.item(), **figures}.items():
            sums[f"val_{name}"] += value
        count += batch.num_targets
    model.train(was_training)
    return {name: value / max(1, count) for name, value in sums.items()}, count


def logps_of(
    model: CausalLM,
    rows: Sequence[Encoded],
    hardware: Hardware,
    beat: Callable[[], None],
    rows_at_once: int = ROWS_AT_ONCE,
    *,
    trains: bool = False,
) -> Tensor:
    """The log-probability of each answer, (B,) float32 on the CPU.

    Args:
        model: in evaluation mode.
        rows: the answers.
        hardware: where and in which precision to compute.
        beat: called now and then.
        rows_at_once: rows in one forward pass, `ROWS_AT_ONCE` at most.
        trains: compute as a training step does, whose attention may round otherwise than that of an evaluation.
    """
    found, size = [], min(rows_at_once, ROWS_AT_ONCE)
    for first in range(0, len(rows), size):
        batch = answer_rows(rows[first : first + size]).to(hardware.device)
        with torch.set_grad_enabled(trains), hardware.autocast():
            found.append(answer_logps(model, batch).detach().cpu())
        beat()
    return torch.cat(found) if found else torch.empty(0)


@torch.no_grad()
def distance(
    model: CausalLM, written: Written, *, writes: bool, hardware: Hardware, sharing: Sharing = NOT_SHARED
) -> dict[str, float]:
    """How far a model is from the reference: `val_kl`, the divergence KL(reference || model) in nats per token of what
    the reference wrote, and, if it `writes`, `val_length_ratio`, how long its answers to the same questions are beside
    the reference's."""
    was_training = model.training
    model.eval()
    rows = written.rows.to(hardware.device)
    with hardware.autocast():
        now = sharing.run(lambda: answer_logps(model, rows), "evaluation").cpu()
    figures = {"val_kl": ((written.logps - now).sum() / rows.is_answer.sum().cpu()).item()}
    if writes:
        answers = write_answers(model, written.questions, written.settings, written.end_id, written.num_tokens)
        mean = sum(sum(answer.is_trained) for answer in answers) / len(answers)
        figures["val_length_ratio"] = mean / written.mean_length
    model.train(was_training)
    return figures
