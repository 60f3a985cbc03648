"""What encoders of many documents at once give, and the one that every tokenizer has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tiny_transformer.tokenizers.tokenizer import Tokenizer


class EncodedDocuments(NamedTuple):
    """Documents one after another: all ids (num_tokens,) uint32, and the length of each document (N,) int64."""

    ids: np.ndarray
    lengths: np.ndarray


DocumentEncoder = Callable[[Sequence[str]], EncodedDocuments]


def plain_encoder(tokenizer: Tokenizer) -> DocumentEncoder:
    """The readable encoder: begin token (if there is one), ids and end token of each document."""
    before = [] if tokenizer.begin_id is None else [tokenizer.begin_id]

    def encode(texts: Sequence[str]) -> EncodedDocuments:
        documents = [[*before, *ids, tokenizer.end_id] for ids in tokenizer.encode_batch(texts)]
        lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(documents), dtype=np.uint32, count=int(lengths.sum()))
        return EncodedDocuments(ids, lengths)

    return encode
