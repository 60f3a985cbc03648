"""Conversations as tokens in memory, and packed rows in which only answers are targets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from tiny_transformer.data.chat.records import Conversation
from tiny_transformer.data.packing import IGNORE_INDEX, BestFit
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.chat import ChatTemplate, Encoded, Marks, Message, encode_segments
from tiny_transformer.tokenizers.tokenizer import Tokenizer

VAL_FRACTION = 0.05


class Example(NamedTuple):
    """One conversation as it is learnt: its messages, their tokens, and where it came from."""

    messages: tuple[Message, ...]
    encoded: Encoded
    where: str


@dataclass(frozen=True)
class Cut:
    """What the length of a row did to conversations.

    Attributes:
        num_truncated: conversations of which only the beginning is learnt.
        num_lost: those that had no token of an answer left, and are left out.
    """

    num_truncated: int = 0
    num_lost: int = 0


def encode_conversations(
    tokenizer: Tokenizer, template: ChatTemplate, conversations: Iterable[Conversation]
) -> list[Example]:
    """The tokens of each conversation; with a template that rewrites earlier answers, one example for each answer.

    Raises:
        UserError: a text that the tokenizer cannot encode, with the place of the record.
    """
    marks, examples = Marks.of(tokenizer), []
    for messages, where in conversations:
        ends = [len(messages)]
        if not template.keeps_turns:
            ends = [i + 1 for i, message in enumerate(messages) if message.role == "assistant"]
        for end in ends:
            part = messages[:end]
            try:
                encoded = encode_segments(tokenizer, template.render(part, marks))
            except UserError as error:
                raise UserError(error.what, where=where, remedy=error.remedy, exit_code=ExitCode.BAD_DATA) from None
            examples.append(Example(part, encoded, where))
    return examples


class Asked(Protocol):
    """What has messages, among them a question."""

    @property
    def messages(self) -> tuple[Message, ...]: ...


A = TypeVar("A", bound=Asked)


def split(examples: Sequence[A], val_fraction: float | None) -> tuple[list[A], list[A]]:
    """Training and validation: by a hash of the first question, so that answers to one question stay on one side and
    none moves when records are added. Each side has at least one.

    Raises:
        UserError: there are fewer than two different questions.
    """
    share = VAL_FRACTION if val_fraction is None else val_fraction
    places = [_place(example.messages) for example in examples]
    different = sorted(set(places))
    if len(different) < 2:
        raise UserError(
            f"{len(different)} different question{'s' * (len(different) != 1)}, and two are needed: one to learn from "
            "and one to validate",
            remedy="give more records",
            exit_code=ExitCode.BAD_DATA,
        )
    limit = min(max(share, different[0]), different[-2])
    train = [example for example, place in zip(examples, places, strict=True) if place > limit]
    val = [example for example, place in zip(examples, places, strict=True) if place <= limit]
    return train, val


def _place(messages: Sequence[Message]) -> float:
    """A number from 0 to 1 that a conversation's question decides."""
    question = next(message.content for message in messages if message.role == "user")
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=6).digest()) / 2**48


class TokenStore:
    """Conversations of one split as one run of tokens, as `TokenFile` is one of documents, with a mask beside it.

    Args:
        examples: each is cut to what a row of `seq_len` holds; those without a token of an answer are left out.
        seq_len: T.
        name: where they come from, for messages.

    Attributes:
        examples: those that are left.
        cut: what the length did.
    """

    def __init__(self, examples: Sequence[Example], seq_len: int, name: str) -> None:
        self.path = Path(name)
        kept = [example for example in examples if any(example.encoded.is_trained[1 : seq_len + 1])]
        self.examples, num_long = kept, sum(len(example.encoded.ids) > seq_len + 1 for example in kept)
        self.cut = Cut(num_long, len(examples) - len(kept))
        sizes = [min(len(example.encoded.ids), seq_len + 1) for example in kept]
        self._starts = np.cumsum([0, *sizes])[:-1].astype(np.int64)
        rows = [(e.encoded.ids[:size], e.encoded.is_trained[:size]) for e, size in zip(kept, sizes, strict=True)]
        self._ids = np.array([token for ids, _ in rows for token in ids], np.int64)
        self._is_trained = np.array([flag for _, flags in rows for flag in flags], bool)
        self._is_trained[self._starts] = False  # nothing predicts a first token

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1."""
        return self._ids[start:stop]

    def trained(self, start: int, stop: int) -> np.ndarray:
        """Which of these are to be learnt."""
        return self._is_trained[start:stop]

    def documents(self) -> np.ndarray:
        """Where each conversation starts."""
        return self._starts

    @property
    def num_targets(self) -> int:
        """How many tokens are learnt."""
        return int(self._is_trained.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes of text of the answers; of one that was cut, all."""
        return sum(len(m.content.encode()) for e in self.examples for m in e.messages if m.role == "assistant")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens, mask and borders."""
        digest = hashlib.sha256()
        for array in (self._ids, self._is_trained, self._starts):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Answers(BestFit):
    """Whole conversations packed into rows; the targets are the tokens of answers, their ends included."""

    def __init__(self, store: TokenStore, seq_len: int) -> None:
        super().__init__(store, seq_len)
        self._store = store

    def targets(self, start: int, window: np.ndarray) -> np.ndarray:
        """What follows each token where that is learnt, else `IGNORE_INDEX`."""
        return np.where(self._store.trained(start + 1, start + len(window)), window[1:], IGNORE_INDEX)
