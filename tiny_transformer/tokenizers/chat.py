"""Conversations as tokens: what a chat template is, and how its segments become ids with a mask of what is trained.

A template is a Python function from messages to segments. Control tokens and text are kept apart from the first line to
the last: a control token is looked up by its spelling, a text is encoded as text, so that nothing a user writes ever
becomes a control token. Each stretch of trained text is encoded by itself, so the mask is exact, and the tokens before
an answer are those that a program feeds when it asks for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Role
    content: str


class Segment(NamedTuple):
    """A part of a rendered conversation.

    Attributes:
        text: some text, or the spelling of one control token.
        is_control: whether it is a control token.
        is_trained: whether its tokens are to be learnt.
    """

    text: str
    is_control: bool = False
    is_trained: bool = False


class Encoded(NamedTuple):
    """The ids of a conversation, and which of them are to be learnt."""

    ids: list[int]
    is_trained: list[bool]


@dataclass(frozen=True)
class Marks:
    """The spelling of the tokens that a tokenizer has of its own: what ends a text, and what begins one (or "")."""

    end: str
    begin: str = ""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Marks:
        """Those of a tokenizer."""
        begin = "" if tokenizer.begin_id is None else tokenizer.spelling(tokenizer.begin_id)
        return cls(tokenizer.spelling(tokenizer.end_id), begin)


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written for a model.

    Attributes:
        name: `chatml`, `qwen3`, `alpaca`, `llama3` or `plain`.
        turn: the segments of message number i of a conversation: `turn(messages, i, marks)`.
        opening: the segments that come before an answer: `opening(marks)`.
        end: what ends an answer, a control token; None: the tokenizer's own end token.
        control_tokens: what the tokenizer must know.
        jinja: the same as Jinja text, for other programs: `jinja(marks)`.
        before_input: what stands between an instruction and its input.
        keeps_turns: whether an answer is written the same when others follow it. If not, each answer of a conversation
            is learnt by itself, as the last one.
    """

    name: str
    turn: Callable[[Sequence[Message], int, Marks], list[Segment]]
    opening: Callable[[Marks], list[Segment]]
    jinja: Callable[[Marks], str]
    end: str | None = None
    control_tokens: tuple[str, ...] = ()
    before_input: str = "\n\n"
    keeps_turns: bool = True

    def render(self, messages: Sequence[Message], marks: Marks, *, asks: bool = False) -> list[Segment]:
        """The segments of a conversation; `asks`: with the opening of the answer that is to follow."""
        parts = [segment for i in range(len(messages)) for segment in self.turn(messages, i, marks)]
        return [*parts, *self.opening(marks)] if asks else parts

    def end_id(self, tokenizer: Tokenizer) -> int:
        """The id that ends an answer."""
        found = None if self.end is None else tokenizer.token_id(self.end)
        return tokenizer.end_id if found is None else found

    def prompt_ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """What a model is fed so that it answers the last message."""
        return encode_segments(tokenizer, self.render(messages, Marks.of(tokenizer), asks=True)).ids


def encode_segments(tokenizer: Tokenizer, segments: Sequence[Segment]) -> Encoded:
    """The ids of segments. Neighbouring texts that are trained alike are encoded as one text.

    Raises:
        UserError: a control token that the tokenizer lacks, or a text that it cannot encode.
    """
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if last and not last.is_control and not segment.is_control and last.is_trained == segment.is_trained:
            joined[-1] = last._replace(text=last.text + segment.text)
        elif segment.text:
            joined.append(segment)
    texts = iter(tokenizer.encode_batch([segment.text for segment in joined if not segment.is_control]))
    ids: list[int] = []
    is_trained: list[bool] = []
    for segment in joined:
        new = [_control_id(tokenizer, segment.text)] if segment.is_control else next(texts)
        ids += new
        is_trained += [segment.is_trained] * len(new)
    return Encoded(ids, is_trained)


def _control_id(tokenizer: Tokenizer, spelling: str) -> int:
    found = tokenizer.token_id(spelling)
    if found is None or not tokenizer.is_special(found):
        raise UserError(
            f"the tokenizer {tokenizer.name} has no control token {spelling}",
            remedy="another --template, or a model that was fine-tuned with this one",
            exit_code=ExitCode.BAD_DATA,
        )
    return found
