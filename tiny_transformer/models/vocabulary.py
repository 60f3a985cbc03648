"""A model to start from, with adapters or with new control tokens, whose rows have a known beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from tiny_transformer.errors import UserError
from tiny_transformer.layers.dora import row_lengths
from tiny_transformer.layers.linear import wide_weight
from tiny_transformer.models.adapter_base import Base, identity_of
from tiny_transformer.models.adapters import MAGNITUDE, is_adapter
from tiny_transformer.models.building import copy_tensors, tensors_of
from tiny_transformer.models.checkpoint import EMBEDDING, HEAD, load_model
from tiny_transformer.models.config_file import read_config
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.swaps import quantize_layers
from tiny_transformer.models.token_rows import ROWS, grown, learnt_tokens, mean_of_words

if TYPE_CHECKING:
    from torch import nn

    from tiny_transformer.config.schema import LoraSection
    from tiny_transformer.layers.linear import QuantizedLinear


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


def load_ordinary(directory: Path | str) -> CausalLM:
    """A model whose layers are all ordinary ones, to start from.

    Raises:
        UserError: see `load_model`; or some of its layers are swapped.
    """
    if read_config(directory)[1]:
        raise UserError(
            "the model to start from has swapped layers already (adapters, or weights in integers)",
            where=str(directory),
            remedy="tiny-transformer merge makes an ordinary model of it",
        )
    return load_model(directory)


@torch.no_grad()
def load_base_weights(
    model: CausalLM,
    directory: Path | str,
    lora: LoraSection,
    part_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Base:
    """Fill what is frozen in an adapted model with the weights of a directory, and say what that is; the adapters stay
    as they are, but for the lengths of rows that DoRA learns, which are the base's, and for the rows of new tokens,
    which begin as in `load_grown_weights`.

    Raises:
        UserError: see `load_ordinary`.
    """
    base = load_ordinary(directory)
    known = Base(Path(directory), identity_of(base))
    if lora.quantize != "none":
        quantize_layers(base, lora.quantize)
    found, taken = tensors_of(base), {}
    num_rows, new_ids = model.config.known_vocab_size, learnt_tokens(model)
    for name, target in tensors_of(model).items():
        layer = name.rpartition(".")[0]
        if name.endswith(f".{ROWS}"):
            ids = new_ids[layer]
            taken[name] = mean_of_words(found[f"{layer}.weight"], ids).expand(len(ids), -1)
        elif layer.removesuffix(".base") in new_ids:
            taken[name] = grown(found[name.replace(".base.", ".")], num_rows)
        elif name.endswith(MAGNITUDE):
            linear = cast("nn.Linear | QuantizedLinear", base.get_submodule(layer))
            taken[name] = row_lengths(wide_weight(linear).to(target.device))
        elif not is_adapter(name):
            taken[name] = found[name.replace(".base.", ".")]
    copy_tensors(taken, model, part_of)
    return known


def _grown(weight: torch.Tensor, new_ids: Sequence[int], rows: int) -> torch.Tensor:
    """(V, C) as (rows, C), with the mean of the words before them at `new_ids`."""
    table = grown(weight, rows)
    table[list(new_ids)] = mean_of_words(weight, list(new_ids))
    return table
