"""Multiple choice by likelihood: HellaSwag, ARC, PIQA, OpenBookQA, WinoGrande, BLiMP, LAMBADA and files of their form.

A model that only continues text answers a question by how likely it finds each answer. A row of a task file becomes an
`Item`: pairs of a context and a continuation, of which one is right. The words around a question, where context and
continuation are cut into tokens, and what is divided by what follow EleutherAI's lm-evaluation-harness, so that a score
can be laid beside its scores on the same rows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiny_transformer.data.prepare.unpack import bad, open_text
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.layers.norm import at_least_float32
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.tokenizers import Tokenizer

BATCH_TOKENS = 4096
FORMS = (
    "query, choices, gold (ARC, PIQA, OpenBookQA); ctx_a, ctx_b, activity_label, endings, label (HellaSwag); "
    "context_options, continuation, gold (WinoGrande); sentence_good, sentence_bad (BLiMP); "
    "context, continuation (LAMBADA)"
)


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        pairs: (context, continuation) each; an empty context stands for the beginning of a text.
        gold: the index of the right pair; None for a single pair, which is right when greedy decoding writes it.
        lengths: characters of each answer, by which its log-likelihood is divided for the normalised accuracy.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int | None
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class PairScore:
    """Of one continuation: its log-likelihood in nats, and whether each of its tokens is the likeliest one."""

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class TaskResult:
    """What a model scores on a task.

    Attributes:
        name: of the task.
        num_items: how many questions.
        accuracy: share whose right answer is the likeliest; for LAMBADA, the share greedy decoding writes.
        standard_error: of that share.
        normalised: the share when log-likelihoods are divided by the answer's characters; None where all answers of an
            item are one continuation, or there is one.
        chance: the share that guessing gets.
        perplexity: exp of the mean loss of a continuation, for LAMBADA; else None.
        num_cut: questions longer than the model reads, whose beginning was left out.
    """

    name: str
    num_items: int
    accuracy: float
    standard_error: float
    normalised: float | None
    chance: float
    perplexity: float | None
    num_cut: int


# --- rows
# ------------------------------------------------------------------------------------------------------------


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """The questions of a JSON Lines file, packed or not.

    Args:
        path: `.jsonl`, also with .gz, .bz2, .xz or .zst behind.
        limit: only so many of the first.

    Raises:
        UserError: a line that is not JSON or of none of the `FORMS`, naming it; a file without questions.
    """
    items: list[Item] = []
    with open_text(path, whole_lines=True) as lines:
        for number, line in enumerate(lines, start=1):
            if len(items) == limit:
                break
            if line.strip():
                items.append(_item(line, path, number))
    if len({item.gold is None for item in items}) == 2:
        raise bad("some questions have several answers and some have one", path, remedy="a file for each kind")
    if not items:
        raise bad("there is no question in it", path, remedy=f"one JSON object a line, with {FORMS}")
    return items


def _item(line: str, path: Path, number: int) -> Item:
    try:
        row = json.loads(line)
        for keys, make in _FORMS.items():
            if isinstance(row, dict) and row.keys() >= set(keys):
                item = make(row)
                break
        else:
            raise ValueError("none of the forms that are read")
        if item.gold is not None and not 0 <= item.gold < len(item.pairs):
            raise ValueError(f"the right answer is number {item.gold}, of {len(item.pairs)} counted from 0")
        if not all(continuation.strip() for _, continuation in item.pairs):
            raise ValueError("an answer is empty")
    except (ValueError, RecursionError) as error:
        what = f"not a question ({error})"
        raise bad(what, path, line=number, remedy=f"one JSON object a line, with {FORMS}") from None
    return item


def _text(row: dict[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise ValueError(f"{key} is not a text")
    return row[key]


def _texts(row: dict[str, Any], key: str) -> list[str]:
    values = row[key]
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"{key} is not a list of texts")
    return values


def _gold(row: dict[str, Any], key: str) -> int:
    value = row[key]  # HellaSwag's is an integer in the original files and a text at the hub
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value.isdecimal())):
        raise ValueError(f"{key} is not the number of an answer")
    return int(value)


def _choices(row: dict[str, Any]) -> Item:
    query = _text(row, "query").rstrip()
    query += "\nAnswer:" if query.startswith("Question:") and not query.endswith("Answer:") else ""
    return _answers(query, _texts(row, "choices"), _gold(row, "gold"))


def _hellaswag(row: dict[str, Any]) -> Item:
    query = f"{_text(row, 'activity_label')}: {_text(row, 'ctx_a')} {_text(row, 'ctx_b').capitalize()}"
    return _answers(_plain(query), [_plain(ending) for ending in _texts(row, "endings")], _gold(row, "label"))


def _plain(text: str) -> str:
    """HellaSwag's part from WikiHow has its headings marked and remarks in brackets, which are no text."""
    without_marks = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return without_marks.replace("  ", " ")


def _answers(query: str, choices: Sequence[str], gold: int) -> Item:
    return Item(tuple((query, f" {choice}") for choice in choices), gold, tuple(len(choice) for choice in choices))


def _winogrande(row: dict[str, Any]) -> Item:
    continuation = f" {_text(row, 'continuation')}"
    pairs = tuple((context, continuation) for context in _texts(row, "context_options"))
    return Item(pairs, _gold(row, "gold"), (1,) * len(pairs))


def _blimp(row: dict[str, Any]) -> Item:
    sentences = [_text(row, "sentence_good"), _text(row, "sentence_bad")]
    return _answers("", sentences, 0)  # with a blank in front, as the harness has it


def _lambada(row: dict[str, Any]) -> Item:
    return Item(((_text(row, "context"), f" {_text(row, 'continuation')}"),), None, (1,))


_FORMS: dict[tuple[str, ...], Callable[[dict[str, Any]], Item]] = {
    ("query", "choices", "gold"): _choices,
    ("activity_label", "ctx_a", "ctx_b", "endings", "label"): _hellaswag,
    ("context_options", "continuation", "gold"): _winogrande,
    ("sentence_good", "sentence_bad"): _blimp,
    ("context", "continuation"): _lambada,
}


# --- scores
# ----------------------------------------------------------------------------------------------------------


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of both parts: cut where the context alone would end, its trailing blanks counted to the continuation.

    An empty context is the token that a text begins with, or else the one that ended the text before.
    """
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    if not context:
        return begin or [tokenizer.end_id], tokenizer.encode(continuation)
    before = tokenizer.encode(context)
    return begin + before, tokenizer.encode(context + continuation)[len(before) :]


def score_pairs(model: CausalLM, pairs: Sequence[tuple[list[int], list[int]]], hardware: Hardware) -> list[PairScore]:
    """The log-likelihood of each continuation after its context, several rows at once.

    Args:
        model: in evaluation mode.
        pairs: ids of context and continuation; of a pair longer than the model reads, the last tokens count.
        hardware: where and in which precision to compute.
    """
    longest = model.config.max_position_embeddings
    rows = [(context + continuation)[-longest - 1 :] for context, continuation in pairs]
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    scores: dict[int, PairScore] = {}
    while order:
        batch = order[: max(1, BATCH_TOKENS // len(rows[order[0]]))]
        order = order[len(batch) :]
        num_targets = [min(len(pairs[i][1]), len(rows[i]) - 1) for i in batch]
        scores |= zip(batch, _score_batch(model, [rows[i] for i in batch], num_targets, hardware), strict=True)
    return [scores[i] for i in range(len(rows))]


@torch.inference_mode()
def _score_batch(
    model: CausalLM, rows: Sequence[Sequence[int]], num_targets: Sequence[int], hardware: Hardware
) -> list[PairScore]:
    """The same for rows of one batch, of which the last `num_targets` tokens are to be predicted."""
    width = max(map(len, rows)) - 1
    input_ids = torch.tensor([[*row[:-1], *[0] * (width + 1 - len(row))] for row in rows], device=hardware.device)
    with hardware.autocast():
        # (B, T, C). What fills a row stands behind it, and nobody looks ahead.
        hidden = model.backbone(input_ids).hidden
        asked = torch.cat([hidden[i, len(row) - 1 - n : len(row) - 1] for i, (row, n) in _each(rows, num_targets)])
        logits: Tensor = model.lm_head(asked)  # (N, V): the head is applied where a continuation stands, and only there
    targets = torch.tensor([i for row, n in zip(rows, num_targets, strict=True) for i in row[-n:]]).to(asked.device)
    log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)
    chosen = log_probs.gather(-1, targets[:, None])[:, 0].cpu()
    likeliest = (logits.argmax(-1) == targets).cpu()
    return [
        PairScore(part.double().sum().item(), bool(greedy.all()))
        for part, greedy in zip(chosen.split(list(num_targets)), likeliest.split(list(num_targets)), strict=True)
    ]


def _each(rows: Sequence[Sequence[int]], counts: Sequence[int]) -> enumerate[tuple[Sequence[int], int]]:
    return enumerate(zip(rows, counts, strict=True))


def run_task(name: str, items: Sequence[Item], model: CausalLM, tokenizer: Tokenizer, hardware: Hardware) -> TaskResult:
    """What a model scores on the items of a task.

    Raises:
        UserError: see `score_items`.
    """
    return summarize(name, items, *score_items(name, items, model, tokenizer, hardware))


def score_items(
    name: str, items: Sequence[Item], model: CausalLM, tokenizer: Tokenizer, hardware: Hardware
) -> tuple[list[list[PairScore]], int]:
    """The scores of each item's pairs, and how many items are longer than the model reads.

    Raises:
        UserError: a text that the tokenizer cannot encode, or logits that are no numbers.
    """
    texts = [pair for item in items for pair in item.pairs]
    pairs = [encode_pair(tokenizer, *pair) for pair in texts]
    for text, (_, continuation) in zip(texts, pairs, strict=True):
        if not continuation:
            raise UserError(
                f"the answer {text[1]!r} melts into the question: it has no token of its own",
                where=name,
                remedy="leave out that question",
            )
    scores = score_pairs(model, pairs, hardware)
    if not all(math.isfinite(score.log_likelihood) for score in scores):
        raise UserError("the model computed not-a-number", where=name, remedy="use another checkpoint")
    longest, num_cut, start = model.config.max_position_embeddings, 0, 0
    of_items = []
    for item in items:
        end = start + len(item.pairs)
        of_items.append(scores[start:end])
        num_cut += any(len(context) + len(continuation) - 1 > longest for context, continuation in pairs[start:end])
        start = end
    return of_items, num_cut


def summarize(name: str, items: Sequence[Item], scores: Sequence[Sequence[PairScore]], num_cut: int) -> TaskResult:
    """Shares and their error from the scores of each item's pairs. Of equally likely answers the first is taken."""
    n = len(items)
    if items[0].gold is None:
        accuracy, normalised, chance = sum(pair.is_greedy for (pair,) in scores) / n, None, 0.0
        nats = -sum(pair.log_likelihood for (pair,) in scores) / n
        perplexity: float | None = math.exp(min(nats, 700.0))
    else:
        plain = [[score.log_likelihood for score in of_item] for of_item in scores]
        by_length = [
            [value / length for value, length in zip(values, item.lengths, strict=True)]
            for values, item in zip(plain, items, strict=True)
        ]
        accuracy = _share_right(items, plain)
        has_lengths = any(len(set(item.lengths)) > 1 for item in items)
        normalised = _share_right(items, by_length) if has_lengths else None
        chance, perplexity = sum(1 / len(item.pairs) for item in items) / n, None
    error = math.sqrt(accuracy * (1 - accuracy) / max(n - 1, 1))
    return TaskResult(name, n, accuracy, error, normalised, chance, perplexity, num_cut)


def _share_right(items: Sequence[Item], values: Sequence[Sequence[float]]) -> float:
    right = [row.index(max(row)) == item.gold for item, row in zip(items, values, strict=True)]
    return sum(right) / len(right)
