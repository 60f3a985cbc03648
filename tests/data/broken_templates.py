"""Chat templates with a mistake each, as people write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tiny_transformer.data.chat.conversations import Answers
from tiny_transformer.data.packing import IGNORE_INDEX, Example
from tiny_transformer.tokenizers.chat import ChatTemplate, Marks, Message, Segment
from tiny_transformer.tokenizers.templates import CHATML


def _end_not_trained(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    return [s._replace(is_trained=s.is_trained and not s.is_control) for s in CHATML.turn(messages, i, marks)]


def _trains_the_user(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    return [segment._replace(is_trained=True) for segment in CHATML.turn(messages, i, marks)[:4]]


def _counts_messages(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    return [Segment(f"[{i + 1} of {len(messages)}] "), *CHATML.turn(messages, i, marks)]


def _writes_none(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    name = None
    return [Segment(f"{name}: "), *CHATML.turn(messages, i, marks)]


def broken(name: str) -> ChatTemplate:
    """ChatML with one of the mistakes."""
    turns = {
        "end not trained": _end_not_trained,
        "trains the user": _trains_the_user,
        "counts messages": _counts_messages,
        "writes None": _writes_none,
    }
    return replace(CHATML, name="broken", turn=turns[name])


class MasksEnds(Answers):
    """Padding is the end token and masked by its value, as a collator does that knows no lengths."""

    end_id: int

    def __getitem__(self, i: int) -> Example:
        row = super().__getitem__(i)
        return row._replace(labels=np.where(row.labels == self.end_id, IGNORE_INDEX, row.labels))
