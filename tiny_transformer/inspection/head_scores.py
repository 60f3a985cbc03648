"""What an attention head does, in a number each: where it looks, and what the text costs without it.

Copying is scored twice. On random tokens that are written twice there is nothing else to go by; but a model of stories
has never read such a text, and a head that copies names may do nothing there. So it is scored in the text itself too:
how much a head looks at places where the name that comes next stands already.

Shapes: T tokens, V vocabulary, H heads, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tiny_transformer.inspection.observe import Observation, logits_without, observe
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.tokenizers import Tokenizer

MAX_ABLATIONS = 512  # forward passes; of a model with more heads only whole blocks are left out
COPY_LENGTH, COPY_SEED = 24, 0
LOOKS_AT_NEXT, COST_OF_REPEATS, COST = "copying", "cost of copied tokens", "cost without it"
TOKEN_BEFORE, COPYING, FIRST_TOKEN = "token before", "copying random tokens", "first token"
# What is copied, the first kind of which a text has any: a name is told by its capital letter.
KINDS: dict[str, Callable[[str], bool]] = {
    "name": lambda text: any(character.isupper() for character in text),
    "word": lambda text: any(character.isalpha() for character in text),
    "token": lambda text: True,
}


class WithoutParts(NamedTuple):
    """What each token but the first costs more without a part of the model, in nats.

    Attributes:
        heads: by block, (H, T - 1), when a head gives zeros; empty for a model with too many heads.
        blocks: (L, T - 1), when a block gives on what it gets.
    """

    heads: dict[int, Tensor]
    blocks: Tensor


class Repeats(NamedTuple):
    """Where a text repeats itself.

    Attributes:
        kind: of what comes again: `name`, `word` or `token`.
        places: (T, T) bool: where the token that comes after the row's stands already, if it is of that kind.
    """

    kind: str
    places: Tensor

    @property
    def rows(self) -> Tensor:
        """(T,) bool: the tokens after which one comes again."""
        return self.places.any(1)


class Copier(NamedTuple):
    """The head that looks most at places where what comes next stands already.

    Attributes:
        block, head: which.
        share: of its attention that is there, on average over what comes again.
        by_chance: the share of a head that looks at every token equally.
        cost: nats a token more without it, for what comes again; NaN where the head was not left out.
        token: after which it is missed most; where it was not left out, from which it looks there most.
    """

    block: int
    head: int
    share: float
    by_chance: float
    cost: float
    token: int


def losses(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """(T - 1,) nats for each token but the first, from logits (T, V)."""
    return functional.cross_entropy(logits[:-1].cpu(), torch.tensor(list(ids[1:]), dtype=torch.long), reduction="none")


def without_parts(model: CausalLM, seen: Observation) -> WithoutParts:
    """Read the text again without each head and each block."""
    base, num_tokens = losses(seen.logits, seen.ids), seen.logits.shape[-1]

    def more(block: int, head: int | None) -> Tensor:
        return losses(logits_without(model, seen.ids, block, head)[:, :num_tokens], seen.ids) - base

    is_small = sum(map(len, seen.attention.values())) <= MAX_ABLATIONS and len(seen.ids) > 1
    heads = {
        block: torch.stack([more(block, head) for head in range(len(weights))])
        for block, weights in seen.attention.items()
        if is_small
    }
    num_blocks = len(seen.hidden)
    blocks = [more(block, None) for block in range(num_blocks)] if len(seen.ids) > 1 else [base] * num_blocks
    return WithoutParts(heads, torch.stack(blocks))


def score_heads(
    model: CausalLM, seen: Observation, without: WithoutParts, repeats: Repeats, tokenizer: Tokenizer
) -> dict[str, Tensor]:
    """By name, (L, H): NaN where there is no such head, or nothing to score it by."""
    num_heads = max((len(weights) for weights in seen.attention.values()), default=0)
    names = (LOOKS_AT_NEXT, COST_OF_REPEATS, COST, TOKEN_BEFORE, COPYING, FIRST_TOKEN)
    scores = {name: torch.full((len(seen.hidden), num_heads), torch.nan) for name in names}
    ordinary = [token for token in range(seen.logits.shape[-1]) if not tokenizer.is_special(token)]
    copied = observe(model, copying_text(ordinary, model.config.max_position_embeddings))
    for block, weights in seen.attention.items():
        own, weights = slice(len(weights)), weights.float().cpu()
        scores[LOOKS_AT_NEXT][block, own] = looks_at_next_score(weights, repeats.places)
        scores[TOKEN_BEFORE][block, own] = previous_token_score(weights)
        scores[FIRST_TOKEN][block, own] = first_token_score(weights)
        scores[COPYING][block, own] = copying_score(copied.attention[block].float().cpu(), len(copied.ids) // 2)
        if block in without.heads:
            scores[COST][block, own] = without.heads[block].mean(1)
            scores[COST_OF_REPEATS][block, own] = without.heads[block][:, repeats.rows[:-1]].mean(1)
    return scores


def find_repeats(ids: Sequence[int], texts: Sequence[str]) -> Repeats:
    """Where the names of a text come again; else its words, else any of its tokens."""
    tokens = torch.tensor(list(ids))
    following = torch.cat([tokens[1:], torch.tensor([-1])])
    places = (following[:, None] == tokens[None]).tril()
    for kind, is_of_it in KINDS.items():
        chosen = places & torch.tensor([*map(is_of_it, texts[1:]), False])[:, None]
        if chosen.any():
            return Repeats(kind, chosen)
    return Repeats("token", places)


def find_copier(seen: Observation, scores: dict[str, Tensor], without: WithoutParts, repeats: Repeats) -> Copier | None:
    """The head that copies most in this text; None where nothing comes again, or no block has heads."""
    shares, rows = scores[LOOKS_AT_NEXT], repeats.rows
    if not rows.any() or not seen.attention:
        return None
    block, head = divmod(int(shares.nan_to_num(-1).argmax()), shares.shape[1])
    by_chance = repeats.places.sum(1) / torch.arange(1, len(rows) + 1)
    looks = (seen.attention[block][head].float().cpu() * repeats.places).sum(1)
    missed = without.heads[block][head] if block in without.heads else looks[:-1]
    token = int(missed.masked_fill(~rows[:-1], -torch.inf).argmax())
    cost = scores[COST_OF_REPEATS][block, head].item()
    return Copier(block, head, shares[block, head].item(), by_chance[rows].mean().item(), cost, token)


def looks_at_next_score(weights: Tensor, places: Tensor) -> Tensor:
    """(H,) how much each head looks at `places`, on average over the rows that have any; NaN without one.

    Args:
        weights: (H, T, T).
        places: (T, T) bool.
    """
    return (weights * places).sum(2)[:, places.any(1)].mean(1)


def previous_token_score(weights: Tensor) -> Tensor:
    """(H,) how much each head looks at the token just before, on average over the tokens that have one.

    Args:
        weights: (H, T, T).
    """
    return weights.diagonal(-1, dim1=1, dim2=2).mean(1) if weights.shape[1] > 1 else weights.new_zeros(len(weights))


def first_token_score(weights: Tensor) -> Tensor:
    """(H,) how much each head looks at the very first token, where attention goes that has nothing to do."""
    return weights[:, 1:, 0].mean(1) if weights.shape[1] > 1 else weights.new_zeros(len(weights))


def copying_score(weights: Tensor, period: int) -> Tensor:
    """(H,) how much each head, in the second of two equal halves, looks at the token that came after this one in the
    first: what a head does that continues what it has read before (an induction head).

    Args:
        weights: (H, 2 n, 2 n), of a text of n tokens that is written twice.
        period: n.

    Source: Olsson et al., "In-context Learning and Induction Heads", 2022.
    """
    after = weights.diagonal(1 - period, dim1=1, dim2=2)  # token t looks at t - n + 1
    return after[:, 1:].mean(1)  # t from n on


def copying_text(tokens: Sequence[int], longest: int) -> list[int]:
    """Some of `tokens`, all different, in a random order, written twice."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(COPY_SEED)).tolist()
    return [tokens[i] for i in order[: min(COPY_LENGTH, longest // 2)]] * 2
