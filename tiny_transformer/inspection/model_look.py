"""What a page on a model shows: one text read once, and what each head and each block is good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tiny_transformer.errors import UserError
from tiny_transformer.inspection.observe import (
    Observation,
    copying_score,
    first_token_score,
    logit_lens,
    logits_without,
    observe,
    previous_token_score,
)
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers import Tokenizer

MAX_TOKENS = 256  # a page of six blocks with eight heads is then about nine megabytes
NUM_GUESSES = 8
MAX_ABLATIONS = 512  # forward passes; of a model with more heads only whole blocks are left out
COPY_LENGTH, COPY_SEED = 24, 0


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
        scores: by name, (L, H), NaN where there is no such head: how much each head looks at the token before, copies,
            looks at the first token, and what the text costs without it (nats a token).
        without_block: (L,) what the text costs without each block, nats a token more.
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
    without_block: Tensor
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
    scores, without_block = head_scores(model, seen, tokenizer)

    def text_of(token: int) -> str:
        return tokenizer.decode([token], skip_special_tokens=False)

    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    texts = [text_of(token) for token in ids]
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
        without_block,
        text_of,
    )


def head_scores(model: CausalLM, seen: Observation, tokenizer: Tokenizer) -> tuple[dict[str, Tensor], Tensor]:
    """`scores` and `without_block` of `ModelLook`. Copying is scored on random tokens that are written twice: there is
    nothing else to go by."""
    num_heads = max((len(weights) for weights in seen.attention.values()), default=0)
    num_blocks = len(seen.hidden)
    names = ("token before", "copying", "first token", "cost without it")
    scores = {name: torch.full((num_blocks, num_heads), torch.nan) for name in names}
    base, num_tokens = mean_loss(seen.logits, seen.ids), seen.logits.shape[-1]
    ordinary = [token for token in range(num_tokens) if not tokenizer.is_special(token)]
    copied = observe(model, copying_text(ordinary, model.config.max_position_embeddings))

    def cost(block: int, head: int | None) -> float:
        return mean_loss(logits_without(model, seen.ids, block, head)[:, :num_tokens], seen.ids) - base

    has_heads = num_heads * len(seen.attention) <= MAX_ABLATIONS
    for block, weights in seen.attention.items():
        own = slice(len(weights))
        scores["token before"][block, own] = previous_token_score(weights).float().cpu()
        scores["first token"][block, own] = first_token_score(weights).float().cpu()
        scores["copying"][block, own] = copying_score(copied.attention[block], len(copied.ids) // 2).float().cpu()
        if has_heads and len(seen.ids) > 1:
            scores["cost without it"][block, own] = torch.tensor([cost(block, head) for head in range(len(weights))])
    costs = [cost(block, None) if len(seen.ids) > 1 else float("nan") for block in range(num_blocks)]
    return scores, torch.tensor(costs)


def copying_text(tokens: Sequence[int], longest: int) -> list[int]:
    """Some of `tokens`, all different, in a random order, written twice."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(COPY_SEED)).tolist()
    return [tokens[i] for i in order[: min(COPY_LENGTH, longest // 2)]] * 2


def mean_loss(logits: Tensor, ids: Sequence[int]) -> float:
    """Nats a token, over all tokens but the first."""
    if len(ids) < 2:
        return float("nan")
    return functional.cross_entropy(logits[:-1].cpu(), torch.tensor(list(ids[1:]))).item()
