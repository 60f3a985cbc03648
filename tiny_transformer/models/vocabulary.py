"""A model to start from, and one whose tokenizer has learnt new control tokens: more rows, with a known beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tiny_transformer.errors import UserError
from tiny_transformer.models.checkpoint import EMBEDDING, HEAD, load_model
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.swaps import describe_swaps


@torch.no_grad()
def load_grown_weights(
    model: CausalLM,
    directory: Path | str,
    new_ids: Sequence[int],
    part_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Overwrite a model's weights with those of a directory whose vocabulary may be smaller.

    The rows of new tokens, whether they are added or stood there unused, begin as the mean of the rows of the words
    before them: no new token is likelier or less likely than the others are on average (Hewitt, "Initializing New Word
    Embeddings for Pretrained Language Models", 2021).

    Args:
        model: as large as the new vocabulary, or larger; its dtypes and devices stay.
        directory: see `load_model`.
        new_ids: of the tokens that the directory's tokenizer does not know.
        part_of: see `load_weights`.

    Raises:
        UserError: see `load_ordinary`.
    """
    old = load_ordinary(directory)
    tensors = {**dict(old.named_parameters()), **dict(old.named_buffers())}
    for name, target in [*model.named_parameters(), *model.named_buffers()]:
        tensor = tensors[name]
        if name in (EMBEDDING, HEAD):
            tensor = _grown(tensor, new_ids, model.config.known_vocab_size)
        target.copy_(tensor if part_of is None else part_of(tensor, target))


def load_ordinary(directory: Path | str) -> CausalLM:
    """A model whose layers are all ordinary ones, to start from.

    Raises:
        UserError: see `load_model`; or some of its layers are swapped.
    """
    model = load_model(directory)
    if describe_swaps(model):
        raise UserError(
            "the model to start from has swapped layers already (adapters, or weights in integers)",
            where=str(directory),
            remedy="tiny-transformer merge makes an ordinary model of it",
        )
    return model


def _grown(weight: torch.Tensor, new_ids: Sequence[int], rows: int) -> torch.Tensor:
    """(V, C) as (rows, C), with the mean of the words before them at `new_ids`."""
    mean = weight[: min(new_ids)].double().mean(dim=0).to(weight.dtype)
    grown = torch.cat([weight, mean.expand(max(0, rows - len(weight)), -1)])
    grown[list(new_ids)] = mean
    return grown
