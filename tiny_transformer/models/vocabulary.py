"""A model to start from, and one whose tokenizer has learnt new control tokens: more rows, with a known beginning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    tensors = tensors_of(load_ordinary(directory))
    for name in (EMBEDDING, HEAD):
        if name in tensors:
            tensors[name] = _grown(tensors[name], new_ids, model.config.known_vocab_size)
    copy_tensors(tensors, model, part_of)


@torch.no_grad()
def copy_tensors(
    tensors: Mapping[str, torch.Tensor],
    model: CausalLM,
    part_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Overwrite those weights of a model that `tensors` has, by name; see `load_weights`."""
    for name, target in tensors_of(model).items():
        if name in tensors:
            target.copy_(tensors[name] if part_of is None else part_of(tensors[name], target))


def tensors_of(model: CausalLM) -> dict[str, torch.Tensor]:
    """Weights and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


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
