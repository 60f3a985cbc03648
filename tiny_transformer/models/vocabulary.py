"""A model whose tokenizer has learnt new control tokens: more rows of embedding and head, with a known beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tiny_transformer.models.checkpoint import EMBEDDING, HEAD, load_model
from tiny_transformer.models.contract import CausalLM


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
        UserError: see `load_model`.
    """
    old = load_model(directory)
    tensors = {**dict(old.named_parameters()), **dict(old.named_buffers())}
    for name, target in [*model.named_parameters(), *model.named_buffers()]:
        tensor = tensors[name]
        if name in (EMBEDDING, HEAD):
            tensor = _grown(tensor, new_ids, model.config.known_vocab_size)
        target.copy_(tensor if part_of is None else part_of(tensor, target))


def _grown(weight: torch.Tensor, new_ids: Sequence[int], rows: int) -> torch.Tensor:
    """(V, C) as (rows, C), with the mean of the words before them at `new_ids`."""
    mean = weight[: min(new_ids)].double().mean(dim=0).to(weight.dtype)
    grown = torch.cat([weight, mean.expand(max(0, rows - len(weight)), -1)])
    grown[list(new_ids)] = mean
    return grown
