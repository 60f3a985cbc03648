"""Records of preferences as pairs: a conversation that ends with a question, an answer that was chosen, one rejected.

The question stands in the record (prompt, question, instruction with input, messages or conversations) or at the
beginning of both answers, where these are lists of messages. What is not understood is refused with its line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tiny_transformer.data.chat.conversations import Cut
from tiny_transformer.data.chat.records import (
    Reading,
    check_order,
    instruction_of,
    listed_messages,
    read_records,
    text_of,
    with_system,
)
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.chat import ChatTemplate, Encoded, Marks, Message, encode_segments
from tiny_transformer.tokenizers.tokenizer import Tokenizer

ANSWERS = ("chosen", "rejected")
QUESTIONS = ("prompt", "question")
LISTS = ("messages", "conversations", "conversation", "prompt")
KNOWN_PAIRS = (
    "chosen and rejected, as texts or messages, beside prompt, question, instruction/input, messages or conversations"
)


class Pair(NamedTuple):
    """What was asked, the two answers, and where the record stands."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str


@dataclass(frozen=True)
class EncodedPair:
    """A pair as it is learnt.

    Attributes:
        messages: what was asked.
        chosen, rejected: the tokens of question and answer, up to the answer's end; `is_trained` marks the answer.
        where: file and line.
    """

    messages: tuple[Message, ...]
    chosen: Encoded
    rejected: Encoded
    where: str


def read_pairs(
    source: str, template: ChatTemplate, *, system: str | None, skips_bad: bool, reading: Reading
) -> Iterator[Pair]:
    """The pairs of a file, folder, glob or hub data set; arguments and errors as for `read_conversations`."""

    def pair(row: Any) -> tuple[tuple[Message, ...], str, str]:
        messages, chosen, rejected = pair_of(row, template)
        return with_system(messages, system), chosen, rejected

    for read, where in read_records(source, pair, skips_bad=skips_bad, reading=reading):
        yield Pair(*read, where)


def pair_of(row: Any, template: ChatTemplate) -> tuple[tuple[Message, ...], str, str]:
    """What was asked, the answer that was chosen and the one that was rejected.

    Raises:
        UserError: it is no pair, without saying where it stands.
    """
    if not isinstance(row, dict):
        raise UserError(f"a record is an object, and this is of type {type(row).__name__}")
    for key in ANSWERS:
        if row.get(key) is None:
            keys = ", ".join(str(name)[:40] for name in list(row)[:8]) or "none"
            raise UserError(f"the record has no {key} answer; its keys: {keys}", remedy=f"write {KNOWN_PAIRS}")
    given = _question(row, template)
    (before, chosen), (others, rejected) = (_answer(row[key], key) for key in ANSWERS)
    if before != others:
        raise UserError("chosen and rejected do not answer the same question: their messages differ before the answer")
    if before and not any(before[start : start + len(given)] == given for start in (0, 1, len(before) - len(given))):
        raise UserError("the question of the record is not the one that its answers begin with")
    messages = before or given
    if not messages:
        raise UserError("the record has two answers and no question", remedy=f"write {KNOWN_PAIRS}")
    check_order([*messages, Message("assistant", chosen)])
    if chosen == rejected:
        raise UserError("chosen and rejected are the same answer, so neither is preferred")
    return messages, chosen, rejected


def _question(row: dict[str, Any], template: ChatTemplate) -> tuple[Message, ...]:
    """What the record asks outside of its answers; empty where it does not."""
    system = [Message("system", text_of(row["system"], "system"))] if row.get("system") else []
    for key in LISTS:
        if isinstance(row.get(key), list):
            return (*system, *listed_messages(row[key]))
    if row.get("instruction") is not None:
        return (*system, Message("user", instruction_of(row, template)))
    for key in QUESTIONS:
        if row.get(key) is not None:
            return (*system, Message("user", text_of(row[key], key)))
    return ()


def _answer(value: Any, name: str) -> tuple[tuple[Message, ...], str]:
    """An answer, and the messages before it, where it is a list of them."""
    if not isinstance(value, list | dict):
        return (), text_of(value, name)
    try:
        messages = listed_messages([value] if isinstance(value, dict) else value)
    except UserError as error:
        raise UserError(f"{name}: {error.what}", remedy=error.remedy) from None
    if messages[-1].role != "assistant":
        raise UserError(f"roles out of order: {name} ends with a message of the {messages[-1].role}, not an answer")
    return tuple(messages[:-1]), messages[-1].content


def encode_pairs(tokenizer: Tokenizer, template: ChatTemplate, pairs: Iterable[Pair]) -> list[EncodedPair]:
    """The tokens of each pair.

    Raises:
        UserError: a text that the tokenizer cannot encode, with the place of the record.
    """
    marks, encoded = Marks.of(tokenizer), []
    for messages, chosen, rejected, where in pairs:
        answers = []
        for text in (chosen, rejected):
            segments = template.render([*messages, Message("assistant", text)], marks)
            try:
                answers.append(_last_answer(encode_segments(tokenizer, segments)))
            except UserError as error:
                raise UserError(error.what, where=where, remedy=error.remedy, exit_code=ExitCode.BAD_DATA) from None
        encoded.append(EncodedPair(messages, *answers, where))
    return encoded


def _last_answer(encoded: Encoded) -> Encoded:
    """Up to the end of the last answer, with that alone marked: earlier ones belong to the question."""
    flags = np.array(encoded.is_trained)
    stop = int(np.flatnonzero(flags)[-1]) + 1 if flags.any() else len(flags)
    others = np.flatnonzero(~flags[:stop])
    start = int(others[-1]) + 1 if len(others) else 0
    return Encoded(encoded.ids[:stop], [start <= place for place in range(stop)])


def fit_pairs(pairs: Sequence[EncodedPair], seq_len: int) -> tuple[list[EncodedPair], Cut]:
    """The pairs with their answers cut to what a row of `seq_len` holds, and what that did: a pair of which no answer
    is left, or two equal ones, is left out."""
    kept, num_cut = [], 0
    for pair in pairs:
        chosen, rejected = (
            Encoded(a.ids[: seq_len + 1], a.is_trained[: seq_len + 1]) for a in (pair.chosen, pair.rejected)
        )
        if not any(chosen.is_trained) or not any(rejected.is_trained) or chosen.ids == rejected.ids:
            continue
        num_cut += len(chosen.ids) < len(pair.chosen.ids) or len(rejected.ids) < len(pair.rejected.ids)
        kept.append(replace(pair, chosen=chosen, rejected=rejected))
    return kept, Cut(num_cut, len(pairs) - len(kept))


def fingerprint(pairs: Sequence[EncodedPair]) -> str:
    """SHA-256 of tokens and masks."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids, is_trained in (pair.chosen, pair.rejected):
            digest.update(np.array([len(ids), *ids, *is_trained], np.int64).tobytes())
    return digest.hexdigest()
