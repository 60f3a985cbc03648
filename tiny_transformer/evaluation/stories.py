"""What a model pays for each token of whole stories, each read on its own from its beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from tiny_transformer.data import stories
from tiny_transformer.data.batches import IGNORE_INDEX, TokenBatch
from tiny_transformer.data.stories import Choice
from tiny_transformer.data.token_file import TokenFile
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.evaluation.loss import token_losses
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.tokenizers import Tokenizer

FRESH_SEED = 1_000_003  # no data is prepared from this seed
_BATCH_SIZE = 16


class ToldStory(NamedTuple):
    """A story and the choices it is made of, whose costs sum to its exact -log p."""

    text: str
    choices: tuple[Choice, ...]


class TokenCosts(NamedTuple):
    """What a model pays for the tokens of one story.

    Attributes:
        nats: (n + 1,) float64, for each of the n tokens and for the end token; NaN for a token it never predicts.
        ends: (n,) int64, where each token ends in the text, in characters.
    """

    nats: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Reading:
    """How a model reads: what it was trained to see before a story, and how far back.

    Attributes:
        tokenizer: the model's own.
        seq_len: tokens it sees at once.
        predicts_first: whether it has learnt to predict the first token of a document. A model trained on packed
            documents without a begin token has not: no token stands before the first.
        hardware: where and in which precision to compute.
    """

    tokenizer: Tokenizer
    seq_len: int
    predicts_first: bool
    hardware: Hardware


def fresh_stories(count: int) -> list[ToldStory]:
    """The first `count` stories of a seed that no training uses."""
    return [ToldStory(story.text, story.choices) for story in islice(stories.documents(FRESH_SEED), count)]


def split_stories(tokens: TokenFile, tokenizer: Tokenizer, count: int) -> list[ToldStory]:
    """The first `count` documents of a split.

    Raises:
        UserError: a document that is not a story of this version's grammar.
    """
    starts = tokens.documents().tolist()
    told = []
    for start, stop in islice(zip(starts, [*starts[1:], len(tokens)], strict=True), count):
        text = tokenizer.decode(tokens.read(start, stop).tolist())
        score = stories.score(text)
        if score.failure_offset is not None:
            raise UserError(
                f"document {len(told)} is not a story that this version tells (from character {score.failure_offset})",
                where=str(tokens.path),
                remedy="prepare the stories again (--overwrite), or leave out --split to use fresh ones",
                exit_code=ExitCode.BAD_DATA,
            )
        told.append(ToldStory(text, stories.Story(text, score.log_probability).choices))
    return told


def story_costs(model: CausalLM, texts: Sequence[str], reading: Reading) -> list[TokenCosts]:
    """What the model, in evaluation mode, pays for each token of each text.

    A text longer than `seq_len` is read in windows that overlap by half, and each token is scored once: in the first
    window that holds it, so with at least half a window before it.

    Raises:
        UserError: the tokenizer does not give back a text character for character.
    """
    tokenizer = reading.tokenizer
    documents = tokenizer.encode_batch(list(texts))
    costs = document_costs(model, documents, reading)
    return [
        TokenCosts(nats, token_ends(tokenizer, ids, text))
        for nats, ids, text in zip(costs, documents, texts, strict=True)
    ]


@torch.inference_mode()
def document_costs(model: CausalLM, documents: Sequence[Sequence[int]], reading: Reading) -> list[np.ndarray]:
    """The `nats` of `TokenCosts` for documents that are tokens already."""
    ended = [np.array([*ids, reading.tokenizer.end_id]) for ids in documents]
    costs = [np.full(len(document), np.nan) for document in ended]
    windows = [window for i, document in enumerate(ended) for window in _windows(i, document, reading)]
    for first in range(0, len(windows), _BATCH_SIZE):
        rows = windows[first : first + _BATCH_SIZE]
        losses = token_losses(model, _batch(rows), reading.hardware).double().cpu().numpy()
        for row, loss in zip(rows, losses, strict=True):
            costs[row.story][row.start : row.start + row.num_targets] = loss[row.skip : row.skip + row.num_targets]
    return costs


def token_ends(tokenizer: Tokenizer, ids: list[int], text: str) -> np.ndarray:
    """Where each token ends in its text, in characters: (n,) int64.

    Raises:
        UserError: the ids do not give back the text.
    """
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(token_id) for token_id in ids]
    if "".join(pieces) != text:
        raise UserError(
            f"the {tokenizer.name} tokenizer does not give back a text character for character",
            remedy="this measurement needs one that does: bpe, byte, char, gpt2, qwen3",
        )
    return np.cumsum([len(piece) for piece in pieces])


class _Window(NamedTuple):
    """Part of a document: `tokens` are read, and the targets from place `start` of the document on are scored."""

    story: int
    tokens: np.ndarray  # inputs and, one further, targets
    start: int
    skip: int  # targets that another window has scored
    num_targets: int


def _windows(story: int, document: np.ndarray, reading: Reading) -> Iterator[_Window]:
    """Windows of `seq_len` inputs that together score each target of a document once."""
    tokenizer, length = reading.tokenizer, reading.seq_len
    before = []
    if reading.predicts_first:
        before = [tokenizer.end_id if tokenizer.begin_id is None else tokenizer.begin_id]
    tokens = np.concatenate([np.array(before, dtype=np.int64), document])
    offset = len(document) - len(tokens) + 1  # target t of `tokens` (its token t + 1) is token t + offset of `document`
    done, num_targets = 0, len(tokens) - 1
    while done < num_targets:
        start = 0 if done == 0 else done - length // 2
        stop = min(start + length, num_targets)
        yield _Window(story, tokens[start : stop + 1], done + offset, done - start, stop - done)
        done = stop


def _batch(rows: list[_Window]) -> TokenBatch:
    """Rows of different lengths, padded at their ends."""
    length = max(len(row.tokens) for row in rows) - 1
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORE_INDEX)
    for i, row in enumerate(rows):
        tokens = torch.from_numpy(row.tokens)
        input_ids[i, : len(tokens) - 1], labels[i, : len(tokens) - 1] = tokens[:-1], tokens[1:]
    num_tokens = int((labels != IGNORE_INDEX).sum())
    return TokenBatch(input_ids, labels, num_tokens, torch.tensor([row.story for row in rows]))
