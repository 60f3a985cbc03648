"""A head that is tied to a table of words which is more than a weight: one of integers, or with rows that learn.

Shapes: N words, C features; ... any leading axes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn


class Table(Protocol):
    """A table of words that says itself what a head with its rows computes."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., N)."""
        ...


class TiedHead(nn.Module):
    """Logits from the rows of a table. It owns nothing, so nothing is saved twice."""

    def __init__(self, embedding: Table) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple: not a part of this module

    @property
    def embedding(self) -> Table:
        """The table."""
        return self._embedding[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., N)."""
        return self.embedding.logits(x)
