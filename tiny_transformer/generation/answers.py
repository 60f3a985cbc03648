"""Answers to questions: a template's prompt is fed, and the model writes until it ends its turn or runs out of room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tiny_transformer.generation.rows import FinishReason, Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import own_end_ids
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.tokenizers.chat import ChatTemplate, Message

ROWS_AT_ONCE = 32


class Answer(NamedTuple):
    """A text, and why it ended: `end` where the model ended its turn itself."""

    text: str
    reason: FinishReason | None


def answer(
    model: CausalLM,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    questions: Sequence[Sequence[Message]],
    settings: SamplingConfig,
) -> list[Answer]:
    """What a model answers to conversations that end with a question. It is left in the mode it was in.

    Raises:
        UserError: a conversation is longer than the model's context.
    """
    was_training = model.training
    model.train(False)
    ends = {template.end_id(tokenizer), *own_end_ids(tokenizer)}
    answers: list[Answer] = []
    try:
        for first in range(0, len(questions), ROWS_AT_ONCE):
            prompts = [template.prompt_ids(tokenizer, question) for question in questions[first : first + ROWS_AT_ONCE]]
            generation = Generation(model, prompts, settings, end_ids=ends, num_tokens=tokenizer.vocab_size)
            written: list[list[int]] = [[] for _ in prompts]
            for ids in generation:
                for row, token in zip(written, ids, strict=True):
                    row += [] if token is None else [token]
            texts = map(tokenizer.decode, written)
            answers += [Answer(text, reason) for text, reason in zip(texts, generation.finish_reasons, strict=True)]
    finally:
        model.train(was_training)
    return answers
