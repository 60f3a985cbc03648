"""What encoders of many documents at once give, and the one that every tokenizer has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np


class EncodedDocuments(NamedTuple):
    """Documents one after another: all ids (num_tokens,) uint32, and the length of each document (N,) int64."""

    ids: np.ndarray
    lengths: np.ndarray


DocumentEncoder = Callable[[Sequence[str]], EncodedDocuments]


class Encodes(Protocol):
    """What a tokenizer must offer to encode documents."""

    @property
    def begin_id(self) -> int | None:
        """The token before each document, if there is one."""
        ...

    @property
    def end_id(self) -> int:
        """The token after each document."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        ...


def plain_encoder(tokenizer: Encodes) -> DocumentEncoder:
    """The readable encoder: begin token (if there is one), ids and end token of each document."""
    before = [] if tokenizer.begin_id is None else [tokenizer.begin_id]

    def encode(texts: Sequence[str]) -> EncodedDocuments:
        documents = [[*before, *ids, tokenizer.end_id] for ids in tokenizer.encode_batch(texts)]
        lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(documents), dtype=np.uint32, count=int(lengths.sum()))
        return EncodedDocuments(ids, lengths)

    return encode
