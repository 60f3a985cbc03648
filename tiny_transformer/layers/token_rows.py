"""A frozen table of words some rows of which learn: those of tokens that the table was not trained with.

Shapes: N words, C features, n rows that learn; ... any leading axes.

The rows take the place of the table's; nothing is added to it. Source: `trainable_token_indices` of the PEFT library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.nn import functional

T = TypeVar("T", nn.Embedding, nn.Linear)


class LearntRows(nn.Module, Generic[T]):
    """What an embedding and a head with rows that learn have in common.

    Args:
        base: the table (N, C); frozen.
        token_ids: of the rows that learn, each once and below N. The rows are not set.
    """

    def __init__(self, base: T, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.base, self.token_ids = base.requires_grad_(False), tuple(token_ids)
        self.token_rows = nn.Parameter(base.weight.new_empty(len(self.token_ids), base.weight.shape[1]))

    @torch.no_grad()
    def start(self) -> None:
        """Take the rows as the table has them."""
        self.token_rows.copy_(self.base.weight[list(self.token_ids)])

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., N): what a head with these rows computes."""
        places = torch.tensor(self.token_ids, device=x.device)
        logits = functional.linear(x, self.base.weight)
        return logits.index_copy(-1, places, functional.linear(x, self.token_rows).to(logits.dtype))

    def merged(self) -> torch.Tensor:
        """(N, C): the table that computes the same alone."""
        places = torch.tensor(self.token_ids, device=self.base.weight.device)
        return self.base.weight.index_copy(0, places, self.token_rows.to(self.base.weight.dtype))


class RowsEmbedding(LearntRows[nn.Embedding]):
    """An embedding some rows of which learn."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) int64 to (..., C)."""
        is_row = ids[..., None] == torch.tensor(self.token_ids, device=ids.device)  # (..., n)
        learnt = functional.linear(is_row.to(self.token_rows.dtype), self.token_rows.T)
        return torch.where(is_row.any(dim=-1, keepdim=True), learnt, self.base(ids))


class RowsHead(LearntRows[nn.Linear]):
    """A head some rows of which learn."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., N)."""
        return self.logits(x)


def rows_slowly(rows: LearntRows, ids: torch.Tensor) -> torch.Tensor:
    """What a `RowsEmbedding` computes, from the whole table written out."""
    return functional.embedding(ids, rows.merged())
