"""Questions with checkable answers: read, and which of them a step asks.

A record has `prompt`, `question` or `messages`, and an answer under one of `ANSWERS`; the final answer of a solution
stands behind `####`, as in GSM8K. What is not understood is refused with its line; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tiny_transformer.data.chat.records import Reading, listed_messages, read_records, text_of, with_system
from tiny_transformer.data.order import Permutation
from tiny_transformer.errors import UserError
from tiny_transformer.tokenizers.chat import Message

ASKED, ANSWERS = ("prompt", "question", "messages"), ("answer", "solution", "ground_truth")


class Question(NamedTuple):
    """What is asked, and the known answer.

    Attributes:
        messages: a conversation that ends with a question; a record of one text is one message of the user.
        answer: None where the record has none.
        where: file and line.
    """

    messages: tuple[Message, ...]
    answer: str | None
    where: str

    @property
    def text(self) -> str:
        """The last message."""
        return self.messages[-1].content


def read_questions(
    source: str, *, system: str | None, needs_answers: bool, skips_bad: bool, reading: Reading
) -> Iterator[Question]:
    """The questions of a file, folder, glob or hub data set.

    Args:
        source: where the records are.
        system: a system prompt for conversations without one.
        needs_answers: whether a record without an answer is refused.
        skips_bad: leave out records that are no question; they are kept in `reading`.
        reading: is filled in.

    Raises:
        UserError: no records there, or one that is no question, with its line.
    """

    def understand(row: Any) -> tuple[tuple[Message, ...], str | None]:
        messages, answer = question_of(row)
        if needs_answers and answer is None:
            raise UserError(f"the record has no answer ({' or '.join(ANSWERS)}) to compare with")
        return with_system(messages, system), answer

    for (messages, answer), where in read_records(source, understand, skips_bad=skips_bad, reading=reading):
        yield Question(messages, answer, where)


def question_of(row: Any) -> tuple[tuple[Message, ...], str | None]:
    """Messages and answer of a record.

    Raises:
        UserError: it is no question, without saying where it stands.
    """
    if not isinstance(row, dict):
        raise UserError(f"a record is an object, and this is of type {type(row).__name__}")
    key = next((key for key in ASKED if row.get(key) is not None), None)
    if key is None:
        keys = ", ".join(str(name)[:40] for name in list(row)[:8]) or "none"
        raise UserError(f"the record asks nothing; its keys: {keys}", remedy=f"write {', '.join(ASKED)} and an answer")
    asked = row[key]
    if isinstance(asked, list):
        messages = listed_messages(asked)
    else:
        messages = [Message("user", text_of(asked, key))]
    answer = next((row[name] for name in ANSWERS if row.get(name) is not None), None)
    if answer is None and messages[-1].role == "assistant":
        answer = messages.pop().content
    _check(messages)
    return tuple(messages), None if answer is None else _answer(answer)


def _answer(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    text = text_of(value, "the answer")
    if not text.rpartition("####")[2].strip():
        raise UserError("nothing stands behind the #### of the answer")
    return text


def _check(messages: Sequence[Message]) -> None:
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    for i, message in enumerate(turns):
        if message.role != ("assistant" if i % 2 else "user"):
            raise UserError(f"roles out of order: turn {i + 1} is of the {message.role}")
    if len(turns) % 2 == 0:
        raise UserError("the messages do not end with a question of the user")


def numbers_of_round(number: int, per_round: int, num_questions: int, seed: int) -> list[int]:
    """Which questions round `number` asks: a keyed permutation of each epoch, as the order of token windows."""
    epochs, places = np.divmod(np.arange(number * per_round, (number + 1) * per_round), num_questions)
    found = np.empty_like(places)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        found[now] = Permutation(num_questions, seed=seed, epoch=int(epoch))(places[now])
    return found.tolist()
