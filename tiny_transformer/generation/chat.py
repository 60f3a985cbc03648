"""A conversation with a model: messages become tokens by the checkpoint's own template, and an answer is written.

A template of ours (`tokenizers/templates.py`), known by its text, is a Python function. Any other is Jinja text, a
program of whoever made the checkpoint: it is run only where that was asked for, in a child process with limits. Only
what the template itself writes can become a control token. Where a message spells one, a mark stands in its place while
the template runs, and the text comes back after control tokens have been found.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from tiny_transformer.errors import UserError
from tiny_transformer.generation.foreign_template import ForeignTemplate
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import Writing
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.tokenizers.chat import Message
from tiny_transformer.tokenizers.templates import template_written

# A mark: two characters for private use round the number of a spelling. The first of them, in a message, gets one too.
_OPENS, _CLOSES = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPENS}([0-9]{{1,6}}){_CLOSES}")


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The spelling of every control token, with its id."""
    added = tokenizer.content.get("added_tokens") or []
    return {token["content"]: token["id"] for token in added if token["special"]}


def prompt_ids(tokenizer: Tokenizer, template: ForeignTemplate, messages: Sequence[Message]) -> list[int]:
    """What a model is fed so that it answers the last message.

    Args:
        tokenizer: the checkpoint's.
        template: its chat template.
        messages: of the conversation; nothing in them becomes a control token.

    Raises:
        UserError: a template that cannot be used, or a text that cannot be encoded.
    """
    controls = control_tokens(tokenizer)
    spellings = [*sorted(controls, key=len, reverse=True), _OPENS]  # the longest first: one may begin with another
    in_message, in_text = (re.compile("|".join(map(re.escape, s)) or r"(?!)") for s in (spellings, spellings[:-1]))
    marked = [
        {
            "role": role,
            "content": in_message.sub(lambda found: f"{_OPENS}{spellings.index(found[0])}{_CLOSES}", content),
        }
        for role, content in messages
    ]
    text = _rendered(template, marked, {index: token for token, index in controls.items()}, tokenizer)
    ids, start = [], 0
    for found in [*in_text.finditer(text), None]:
        part = text[start : found.start() if found else len(text)]
        ids += tokenizer.encode(_MARK.sub(lambda mark: spellings[int(mark[1]) % len(spellings)], part))
        if found:
            ids.append(controls[found[0]])
            start = found.end()
    return ids


def _rendered(
    template: ForeignTemplate, messages: list[dict[str, str]], names: dict[int, str], tokenizer: Tokenizer
) -> str:
    """The conversation as text, with the opening of the answer. The template gets what transformers gives it."""
    return template.render(
        {
            "messages": messages,
            "add_generation_prompt": True,
            "bos_token": names.get(tokenizer.begin_id if tokenizer.begin_id is not None else -1, ""),
            "eos_token": names.get(tokenizer.end_id, ""),
        }
    )


class Conversation:
    """Questions and answers with a model that was taught to chat. Answers differ in their seeds: one more each.

    Args:
        opened: the checkpoint; it has a template.
        settings: how the next token is chosen.
        system: what the model is told before the first question; "" for nothing.
        runs_template: whether a template that is not one of ours may be run.

    Raises:
        UserError: no template, or one that is not ours and may not be run.

    Attributes:
        messages: said so far.
        note: what happened to the last question that its reader should know, or "".
    """

    greeting = "Ask, and it answers."

    def __init__(
        self, opened: OpenCheckpoint, settings: SamplingConfig, system: str = "", *, runs_template: bool = False
    ) -> None:
        if opened.template is None:
            raise UserError(f"{opened.path} was not taught to chat", remedy="tiny-transformer generate")
        self._opened, self._settings = opened, settings
        self._template = template_written(opened.tokenizer, opened.template) or ForeignTemplate(opened.template)
        if isinstance(self._template, ForeignTemplate) and not runs_template:
            raise UserError(
                "the chat template of this checkpoint is a program of whoever made it, and is not run unasked",
                where=str(opened.path),
                remedy="--run_template runs it, in a process of its own with little time and memory",
            )
        self._system = [Message("system", system)] if system else []
        self._num_asked = 0
        self.note = ""
        self.messages: list[Message] = list(self._system)

    def reset(self) -> None:
        """Forget everything that was said."""
        self.messages = list(self._system)

    def ask(self, question: str) -> Generator[str]:
        """The answer in pieces. However it ends, the pieces that were taken stand in `messages`.

        The oldest turns are left out where the model's context has no room for them.

        Raises:
            UserError: the question is empty, alone too long, or cannot be encoded; nothing is remembered of it.
        """
        if not question.strip():
            raise UserError("nothing was asked", remedy="type a question; /help lists what else can be typed")
        asked = [*self.messages, Message("user", question)]
        ids = self._fitting(asked)
        settings = replace(self._settings, seed=(self._settings.seed + self._num_asked) % 2**63)
        writing = Writing(self._opened.model, self._opened.tokenizer, [ids], settings, end_ids=self._opened.end_ids)
        self._num_asked += 1
        answer = ""
        try:
            for _, piece in writing:
                answer += piece
                yield piece
        finally:
            self.messages = [*asked, Message("assistant", answer)]

    def _fitting(self, messages: list[Message]) -> list[int]:
        """The tokens of the conversation, of its end where all of it is too long: a quarter is left for the answer."""
        limit, num_system = self._opened.config.max_position_embeddings, len(self._system)
        for dropped in range(0, len(messages) - num_system, 2):
            kept = [*messages[:num_system], *messages[num_system + dropped :]]
            ids = self._ids_of(kept)
            if len(ids) <= limit - min(self._settings.max_new_tokens, limit // 4):
                self.note = f"the first {dropped} messages no longer fit into the context" if dropped else ""
                return ids
        self.note = ""
        return ids

    def _ids_of(self, messages: list[Message]) -> list[int]:
        if isinstance(self._template, ForeignTemplate):
            return prompt_ids(self._opened.tokenizer, self._template, messages)
        return self._template.prompt_ids(
            self._opened.tokenizer, [message._replace(content=message.content.strip()) for message in messages]
        )

    def saved(self) -> dict[str, Any]:
        """What `/save` writes."""
        messages = [message._asdict() for message in self.messages]
        return {"checkpoint": str(self._opened.path), "messages": messages}


class RunningText:
    """A text that a person and a model write in turn: what is typed is added to it, and the model continues.

    Arguments and attributes as for `Conversation`.
    """

    greeting = "What you type is continued; an empty line continues further."

    def __init__(self, opened: OpenCheckpoint, settings: SamplingConfig) -> None:
        self._opened, self._settings, self._num_asked, self.text, self.note = opened, settings, 0, "", ""

    def reset(self) -> None:
        """Begin anew."""
        self.text = ""

    def ask(self, typed: str) -> Generator[str]:
        """How the text goes on, in pieces. However it ends, the pieces that were taken belong to the text.

        Raises:
            UserError: the text is longer than the context, or cannot be encoded; what was typed is not added.
        """
        text = self.text + typed
        settings = replace(self._settings, seed=(self._settings.seed + self._num_asked) % 2**63)
        writing = Writing(self._opened.model, self._opened.tokenizer, [text], settings, end_ids=self._opened.end_ids)
        self._num_asked += 1
        try:
            for _, piece in writing:
                text += piece
                yield piece
        finally:
            self.text = text

    def saved(self) -> dict[str, Any]:
        """What `/save` writes."""
        return {"checkpoint": str(self._opened.path), "text": self.text}
