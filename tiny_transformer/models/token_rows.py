"""Tokens that adapters teach besides: larger tables of words, and how PEFT writes down which rows were trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.layers.token_rows import LearntRows
from tiny_transformer.models.swaps import EMBEDDING, HEAD, MAX_TOKEN_IDS, are_token_ids

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM

KEY = "trainable_token_indices"  # of PEFT's configuration
ROWS = "token_rows"  # our name of the rows that learn
_LAYERS = {"embed_tokens": EMBEDDING, EMBEDDING: EMBEDDING, "lm_head": HEAD}


def learnt_tokens(model: CausalLM) -> dict[str, list[int]]:
    """The tokens whose rows learn: by `EMBEDDING` and, where it has rows of its own, `HEAD`."""
    return {name: list(m.token_ids) for name, m in model.named_modules() if isinstance(m, LearntRows)}


def as_peft_has_it(token_ids: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """What `learnt_tokens` gives, as PEFT's configuration has it."""
    return {name.rpartition(".")[2]: ids for name, ids in token_ids.items()}


def trained_tokens(config: Mapping[str, Any], where: str, *, is_tied: bool) -> dict[str, list[int]]:
    """What PEFT's configuration says of rows that were trained: `EMBEDDING` or `HEAD` -> ids.

    Args:
        config: read.
        where: it stands.
        is_tied: the head is the embedding, and has the same rows.

    Raises:
        UserError: no such thing, or rows that are not computed here.
    """
    told = config.get(KEY)
    told = {} if told is None else told if isinstance(told, dict) else {"embed_tokens": told}
    found = {_LAYERS.get(str(name), str(name)): ids for name, ids in told.items()}
    fits = len(found) == len(told) and found.keys() <= {EMBEDDING, HEAD} and all(map(are_token_ids, found.values()))
    if fits and is_tied and HEAD in found:
        fits = found.pop(HEAD) == found.get(EMBEDDING)
    if not fits:
        raise UserError(
            f"{KEY} = {config[KEY]!r:.60} is not computed here",
            where=where,
            remedy=f"at most {MAX_TOKEN_IDS:,} different ids for embed_tokens and lm_head; or merge them in peft",
            exit_code=ExitCode.BAD_DATA,
        )
    return found


@torch.no_grad()
def grow_vocabulary(model: CausalLM, vocab_size: int) -> None:
    """Give the tables of words of a model further rows, in place, up to `vocab_size`; they are zeros. None are taken.

    Args:
        model: whose embedding, and head where it has its own, are ordinary.
    """
    extra = vocab_size - model.config.known_vocab_size
    if extra <= 0:
        return
    embedding = cast(nn.Embedding, model.get_submodule(EMBEDDING))
    head = cast(nn.Linear, model.get_submodule(HEAD))
    learns = embedding.weight.requires_grad
    for layer in (embedding, head):
        layer.weight = nn.Parameter(grown(layer.weight, vocab_size), requires_grad=learns)
    embedding.num_embeddings = head.out_features = vocab_size
    if model.config.tie_word_embeddings:
        head.weight = embedding.weight
    config = model.config.model_copy(update={"vocab_size": vocab_size})
    for holder in (cast(Any, model), model.model):
        holder.config = config


def grown(table: torch.Tensor, num_rows: int) -> torch.Tensor:
    """(V, C) as (num_rows, C), with zeros behind."""
    return torch.cat([table, table.new_zeros(max(0, num_rows - len(table)), table.shape[1])])


def mean_of_words(table: torch.Tensor, new_ids: list[int]) -> torch.Tensor:
    """(C,): the mean of the rows before the first of the new tokens."""
    return table[: min(new_ids)].double().mean(dim=0).to(table.dtype)
