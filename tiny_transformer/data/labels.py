"""Texts with labels, to learn from: read, encoded, split, and batches of them as pure functions of the step."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tiny_transformer.data.batches import BatchesInOrder
from tiny_transformer.data.prepare.records import records_of
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers import Tokenizer


@dataclass(frozen=True)
class LabelledText:
    """One example: the ids of a text, the number of its label, and whether its end was cut off."""

    ids: tuple[int, ...]
    label: int
    is_cut: bool


@dataclass(frozen=True)
class LabelBatch:
    """Texts with labels.

    Attributes:
        input_ids: (B, T) int64, padded on the right.
        lengths: (B,) int64, tokens of each text.
        labels: (B,) int64.
        sample_ids: (B,) int64, which example each row is.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor

    @property
    def num_targets(self) -> int:
        """The texts."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> LabelBatch:
        """The same batch on a device."""
        moved = (tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.lengths, self.labels))
        return LabelBatch(*moved, sample_ids=self.sample_ids)


class LabelBatches(BatchesInOrder[LabelBatch]):
    """Training batches of labelled texts.

    Args:
        examples: the training texts.
        pad_id: fills short rows.
        order: see `BatchesInOrder`.
    """

    def __init__(self, examples: Sequence[LabelledText], pad_id: int, **order: int) -> None:
        super().__init__(len(examples), **order)
        self._examples, self._pad_id = examples, pad_id

    def make(self, sample_ids: np.ndarray, step: int) -> LabelBatch:
        """The texts of these numbers."""
        return make_batch(self._examples, sample_ids.tolist(), self._pad_id)


def make_batch(examples: Sequence[LabelledText], numbers: Sequence[int], pad_id: int) -> LabelBatch:
    """The examples of these numbers as one batch."""
    rows = [examples[number] for number in numbers]
    longest = max(len(row.ids) for row in rows)
    return LabelBatch(
        torch.tensor([[*row.ids, *[pad_id] * (longest - len(row.ids))] for row in rows]),
        torch.tensor([len(row.ids) for row in rows]),
        torch.tensor([row.label for row in rows]),
        torch.tensor(numbers),
    )


def read_labelled(
    source: str, text_field: str, label_field: str, tell: Callable[[str], None] | None = None
) -> Iterator[tuple[str, str, str]]:
    """Text, label and place of each row; `tell`: see `records_of`.

    Raises:
        UserError: a row without them, with its line.
    """
    for where, row in records_of(source, tell):
        values = []
        for field in (text_field, label_field):
            value = row.get(field) if isinstance(row, dict) else None
            value = str(value) if type(value) is int else value
            if not isinstance(value, str) or not value.strip():
                raise UserError(
                    f"no text in the field {field!r}",
                    where=where,
                    remedy="--text_field and --label_field name the fields",
                    exit_code=ExitCode.BAD_DATA,
                )
            values.append(value.strip())
        yield values[0], values[1], where


def encode_text(tokenizer: Tokenizer, text: str, max_tokens: int) -> tuple[tuple[int, ...], bool]:
    """The ids of a text, no more than so many, and whether some were cut off."""
    begin = () if tokenizer.begin_id is None else (tokenizer.begin_id,)
    ids = (*begin, *tokenizer.encode(text))
    return ids[:max_tokens], len(ids) > max_tokens


def settle_labels(found: Counter[str], asked: Sequence[str], places: dict[str, str]) -> list[str]:
    """The labels by number: those asked for, or all that were found in order.

    Raises:
        UserError: a label that is not in the list, or fewer than two.
    """
    if asked and (others := found.keys() - set(asked)):
        label = min(others)
        raise UserError(
            f"the label {label!r} is not in the list ({', '.join(asked)})",
            where=places[label],
            remedy="add it to classify.labels, or mend the row",
            exit_code=ExitCode.BAD_DATA,
        )
    labels = list(asked) or sorted(found)
    if len(labels) < 2:
        raise UserError(
            f"two labels are needed, and there is {labels[0] if labels else 'none'}",
            remedy="add rows with another label",
            exit_code=ExitCode.BAD_DATA,
        )
    return labels


def place_of(text: str) -> float:
    """A number from 0 to 1 that a text decides: which side of the split it is on."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).digest()) / 2**48
