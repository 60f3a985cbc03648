"""Answers drawn for learning from them: several to each question, with all their tokens, the one that ends them too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from tiny_transformer.generation.rows import FinishReason, Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import TextRow
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import own_end_ids
from tiny_transformer.tokenizers import Tokenizer


class Rollout(NamedTuple):
    """One answer.

    Attributes:
        ids: its tokens; the last is an end token where the model ended it.
        text: without that.
        reason: why it ended; `end` where the model did.
    """

    ids: tuple[int, ...]
    text: str
    reason: FinishReason | None


def roll_out(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig,
    *,
    end_ids: Collection[int],
    keys: Sequence[int],
    rows_at_once: int,
) -> list[Rollout]:
    """An answer to each prompt. One that stands several times in a row is read once, if all of them fit into
    `rows_at_once`. The model is left in the mode it was in.

    Args:
        model, tokenizer: a model with its own tokenizer.
        prompts: their tokens.
        settings: how tokens are chosen, and how many at most.
        end_ids: tokens that end an answer, besides the tokenizer's own.
        keys: of the random numbers of each row; see `row_keys`.
        rows_at_once: how many are written side by side.

    Raises:
        UserError: a prompt that the model cannot read, or logits that are no numbers.
    """
    was_training = model.training
    model.train(False)
    ends = {*own_end_ids(tokenizer), *end_ids}
    rollouts: list[Rollout] = []
    try:
        for first in range(0, len(prompts), rows_at_once):
            part = prompts[first : first + rows_at_once]
            generation = Generation(
                model,
                part,
                settings,
                end_ids=ends,
                num_tokens=tokenizer.vocab_size,
                keys=keys[first : first + rows_at_once],
            )
            rows: list[list[int]] = [[] for _ in part]
            for given in generation:
                for row, token in zip(rows, given, strict=True):
                    row += [] if token is None else [token]
            ends_of = zip(part, rows, generation.finish_reasons, generation.ended_by, strict=True)
            rollouts += [_rollout(tokenizer, *row) for row in ends_of]
    finally:
        model.train(was_training)
    return rollouts


def _rollout(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: list[int], reason: FinishReason | None, ended_by: int | None
) -> Rollout:
    row = TextRow(tokenizer, prompt, ())
    text = "".join(map(row.push, ids)) + row.finish()
    return Rollout((*ids, *([] if ended_by is None else [ended_by])), text, reason)
