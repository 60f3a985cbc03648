"""Records of instruction data as conversations: Alpaca, question and answer, OpenAI and ShareGPT messages.

A record is told from the others by its keys. What is not understood is refused with its line; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

from tiny_transformer.data.prepare.records import records_of
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.chat import ChatTemplate, Message, Role

R = TypeVar("R")
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
PAIRS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"))
ANSWERS = ("output", "response")
NO_VALUES = ("None", "nan", "NaN", "null")  # what a program writes for an empty cell
KNOWN_FORMS = "instruction/input/output, question/answer, prompt/completion, messages or conversations"


class Conversation(NamedTuple):
    """Messages, and where they stand: file and line."""

    messages: tuple[Message, ...]
    where: str


@dataclass
class Reading:
    """What reading a source has come to.

    Attributes:
        num_records: how many there were.
        skipped: what was wrong with each record that was left out.
        notes: which files of a folder or pattern are read, and which are not.
    """

    num_records: int = 0
    skipped: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def left_out(self) -> list[str]:
        """Which files are read and which are not, and how many records were left out, in words."""
        first = self.skipped[:1]
        return [*self.notes, *(f"{len(self.skipped):,} bad records left out, the first: {e.where}" for e in first)]


def read_conversations(
    source: str, template: ChatTemplate, *, system: str | None, skips_bad: bool, reading: Reading
) -> Iterator[Conversation]:
    """The conversations of a file, folder, glob or hub data set.

    Args:
        source: where the records are.
        template: says what stands between an instruction and its input.
        system: a system prompt for conversations without one.
        skips_bad: leave out records that are no conversation; they are kept in `reading`.
        reading: is filled in.

    Raises:
        UserError: no records there, or one that is no conversation, with its line.
    """

    def messages(row: Any) -> tuple[Message, ...]:
        return with_system(messages_of(row, template), system)

    for read, where in read_records(source, messages, skips_bad=skips_bad, reading=reading):
        yield Conversation(read, where)


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The messages, with a system prompt where they have none and there is one to give."""
    return (Message("system", system), *messages) if system and messages[0].role != "system" else messages


def read_records(
    source: str, understand: Callable[[Any], R], *, skips_bad: bool, reading: Reading
) -> Iterator[tuple[R, str]]:
    """The records of a file, folder, glob or hub data set, each as `understand` reads it, and where it stands.

    Args:
        source: where the records are.
        understand: a row as what it stands for; refuses what it cannot read, without saying where that is.
        skips_bad: leave out records that are refused; they are kept in `reading`.
        reading: is filled in.

    Raises:
        UserError: no records there, or one that is refused, with its line.
    """
    for where, row in records_of(source, reading.notes.append):
        reading.num_records += 1
        try:
            understood = understand(row)
        except UserError as error:
            told = UserError(
                error.what,
                where=where,
                remedy=error.remedy or "mend or remove the record, or --skip_bad_rows to leave such records out",
                exit_code=ExitCode.BAD_DATA,
            )
            if not skips_bad:
                raise told from None
            reading.skipped.append(told)
            continue
        yield understood, where


def messages_of(row: Any, template: ChatTemplate) -> tuple[Message, ...]:
    """The messages of a record, checked: perhaps a system message, then user and assistant in turn, none empty.

    Raises:
        UserError: it is no conversation, without saying where it stands.
    """
    messages = listed_messages(row) if isinstance(row, list) else _of_object(row, template)
    check_order(messages)
    return tuple(messages)


def _of_object(row: Any, template: ChatTemplate) -> list[Message]:
    if not isinstance(row, dict):
        raise UserError(f"a record is an object, and this is of type {type(row).__name__}")
    for key in ("messages", "conversations", "conversation"):
        if row.get(key) is not None:
            messages = listed_messages(row[key])
            system = row.get("system")
            return [Message("system", text_of(system, "system")), *messages] if system else messages
    system = [Message("system", text_of(row["system"], "system"))] if row.get("system") else []
    if row.get("instruction") is not None:
        answer = next((key for key in ANSWERS if key in row), None)
        if answer is None:
            raise UserError(f"the record has an instruction and no {' or '.join(ANSWERS)}")
        question = instruction_of(row, template)
        return [*system, Message("user", question), Message("assistant", text_of(row[answer], answer))]
    for asked, answer in PAIRS:
        if asked in row and answer in row:
            pair = Message("user", text_of(row[asked], asked)), Message("assistant", text_of(row[answer], answer))
            return [*system, *pair]
    keys = ", ".join(str(key)[:40] for key in list(row)[:8]) or "none"
    raise UserError(f"the record is of no known form; its keys: {keys}", remedy=f"write {KNOWN_FORMS}")


def instruction_of(row: dict[str, Any], template: ChatTemplate) -> str:
    """An instruction, with its input where it has one.

    Raises:
        UserError: one of them is no text.
    """
    given = _input(row.get("input"))
    return text_of(row["instruction"], "instruction") + (template.before_input + given if given else "")


def listed_messages(value: Any) -> list[Message]:
    """Messages of OpenAI's form (role, content) or ShareGPT's (from, value)."""
    if not isinstance(value, list) or not value:
        raise UserError("the messages are not a list of at least one")
    messages = []
    for number, one in enumerate(value, start=1):
        if not isinstance(one, dict):
            raise UserError(f"message {number} is no object with a role and a text")
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise UserError(f"message {number} has the role {role!r:.60}; known are {', '.join(ROLES)}")
        messages.append(Message(ROLES[role], text_of(content, f"message {number}")))
    return messages


def text_of(value: Any, name: str) -> str:
    """A text that is not empty, without the blanks around it."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        kinds = {part.get("type") for part in cast(list[dict[str, Any]], value)}
        if kinds != {"text"}:
            raise UserError(f"{name} has parts of type {', '.join(map(str, kinds - {'text'}))}, and only text is read")
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        raise UserError(f"{name} is no text but of type {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{name} has half of a surrogate pair (an escape \\ud800 to \\udfff)") from None
    return value.strip()


def _input(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    text = text_of(value, "input")
    if text in NO_VALUES:
        raise UserError(f"input is the word {text}, as programs write it for an empty cell", remedy="leave it empty")
    return text


def check_order(messages: Sequence[Message]) -> None:
    """Refuse roles out of order: perhaps a system message, then user and assistant in turn, an answer last.

    Raises:
        UserError: which message stands in the wrong place.
    """
    turns = messages[1:] if messages[0].role == "system" else messages
    for i, message in enumerate(turns):
        expected = "assistant" if i % 2 else "user"
        if message.role != expected:
            place = i + 1 + len(messages) - len(turns)
            raise UserError(f"roles out of order: message {place} is of the {message.role}, not of the {expected}")
    if len(turns) % 2 or not turns:
        raise UserError("the conversation ends without an answer, so there is nothing to learn from it")
