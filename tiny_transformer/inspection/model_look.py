"""What a page on a model shows: one text read once, and what each head and each block is good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiny_transformer.errors import UserError
from tiny_transformer.inspection.head_scores import (
    Copier,
    Repeats,
    WithoutParts,
    find_copier,
    find_repeats,
    losses,
    score_heads,
    without_parts,
)
from tiny_transformer.inspection.observe import Observation, logit_lens, observe
from tiny_transformer.models.open import OpenCheckpoint

MAX_TOKENS = 256  # a page of six blocks with eight heads is then about nine megabytes
NUM_GUESSES = 8


@dataclass(frozen=True)
class ModelLook:
    """What was seen.

    Attributes:
        name: of the checkpoint.
        sentence: how it was chosen.
        num_parameters: of the model.
        texts: of the T tokens.
        seen: the forward pass.
        guesses: (T, NUM_GUESSES) probabilities after each token, and their ids.
        lens: (L, T) the likeliest id after each block, and its probability.
        scores: what each head does, see `head_scores.score_heads`.
        without: what each token costs without each head and block.
        repeats: what comes again in the text.
        copier: the head that copies it most.
        text_of: an id as text.
    """

    name: str
    sentence: str
    num_parameters: int
    texts: list[str]
    seen: Observation
    guesses: tuple[Tensor, Tensor]
    lens: tuple[Tensor, Tensor]
    scores: dict[str, Tensor]
    without: WithoutParts
    repeats: Repeats
    copier: Copier | None
    text_of: Callable[[int], str]


def look(opened: OpenCheckpoint, prompt: str) -> ModelLook:
    """Read a text once, and again without each part.

    Raises:
        UserError: no text, one that is too long for the page or the model, or a model that computes no numbers.
    """
    model, tokenizer = opened.model, opened.tokenizer
    begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    ids = begin + tokenizer.encode(prompt)
    limit = min(MAX_TOKENS, model.config.max_position_embeddings)
    if not ids:
        raise UserError("there is no text to read", remedy='--prompt "some words"')
    if len(ids) > limit:
        raise UserError(f"the text has {len(ids):,} tokens, the page shows at most {limit}", remedy="shorten it")
    num_tokens = min(tokenizer.vocab_size, model.config.known_vocab_size)
    seen = observe(model, ids, num_tokens)
    if not seen.logits.isfinite().all():
        raise UserError("the model computed not-a-number", where=str(opened.path), remedy="use another checkpoint")
    probabilities = torch.softmax(seen.logits, -1)
    lens = logit_lens(model, seen).exp().max(-1)

    def text_of(token: int) -> str:
        return tokenizer.decode([token], skip_special_tokens=False)

    texts = [text_of(token) for token in ids]
    without, repeats = without_parts(model, seen), find_repeats(ids, texts)
    scores = score_heads(model, seen, without, repeats, tokenizer)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    guesses = probabilities.topk(min(NUM_GUESSES, num_tokens))
    return ModelLook(
        str(opened.path),
        opened.sentence,
        num_parameters,
        texts,
        seen,
        (guesses.values, guesses.indices),
        (lens.values, lens.indices),
        scores,
        without,
        repeats,
        find_copier(seen, scores, without, repeats),
        text_of,
    )


def mean_loss(logits: Tensor, ids: Sequence[int]) -> float:
    """Nats a token, over all tokens but the first."""
    return losses(logits, ids).mean().item()
