"""From a prompt to text: prompts become tokens, tokens become pieces of text that can be printed as they come.

A piece never holds half a character, and never any part of a stop string: what could still become one is held back
until it is certain. The pieces joined are the whole text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.rows import FinishReason, Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.speculative import Speculation, SpeculativeGeneration
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import own_end_ids
from tiny_transformer.tokenizers import Tokenizer


@dataclass(frozen=True)
class Continuation:
    """How a model continued a text.

    Attributes:
        text: without the prompt and without a stop string.
        finish_reason: `end` (the model ended it), `stop` (a stop string), `length` or `context` (no room left).
        num_tokens: how many were written, a stop string's tokens counted.
    """

    text: str
    finish_reason: FinishReason | None
    num_tokens: int


def complete(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: SamplingConfig,
    end_ids: Collection[int] = (),
) -> list[str]:
    """How the model continues each prompt, written side by side; the same prompt twice gives two texts (unless greedy).

    Arguments and errors as for `Writing`. Returns the continuations, without the prompts and without the stop strings.
    """
    return [row.text for row in Writing(model, tokenizer, prompts, settings, end_ids=end_ids).all()]


def stream(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    settings: SamplingConfig,
    end_ids: Collection[int] = (),
) -> Iterator[str]:
    """The continuation of one prompt, piece by piece as it is written. Joined, it is what `complete` returns."""
    for _, piece in Writing(model, tokenizer, [prompt], settings, end_ids=end_ids):
        yield piece


class Writing:
    """Texts being written side by side. Iterating gives pieces as they come: (row, text that is not empty).

    Args:
        model: a causal language model; its training mode is put back afterwards.
        tokenizer: the one the model was trained with.
        prompts: texts, which may be empty and of different lengths; or their tokens, already encoded.
        settings: how the next token is chosen, and when to stop.
        end_ids: tokens that end a text, besides the tokenizer's own: `end_ids` of `models.open.OpenCheckpoint`.
        keys: see `Generation`.
        speculation: how texts are drafted; they are written one after the other then, and are the same.

    Attributes:
        ids: of each row, the prompt's tokens and those written so far.

    Raises:
        UserError: the tokenizer does not fit the model, or a prompt cannot be encoded or is longer than the context.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        prompts: Sequence[str | Sequence[int]],
        settings: SamplingConfig,
        *,
        end_ids: Collection[int] = (),
        keys: Sequence[int] | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        check_vocabulary(model, tokenizer)
        encoded = [encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        self._model = model
        self._rows = [TextRow(tokenizer, ids, settings.stop) for ids in encoded]
        ids: dict[str, Any] = {"end_ids": {*own_end_ids(tokenizer), *end_ids}, "num_tokens": tokenizer.vocab_size}
        self._generation = (
            Generation(model, encoded, settings, **ids, keys=keys)
            if speculation is None
            else SpeculativeGeneration(model, encoded, settings, speculation, **ids, keys=keys)
        )
        self._counts = [0] * len(encoded)
        self.ids = [list(ids) for ids in encoded]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        was_training = self._model.training
        self._model.train(False)
        try:
            for ids in self._generation:
                for index, (row, token) in enumerate(zip(self._rows, ids, strict=True)):
                    if token is None:
                        continue
                    self._counts[index] += 1
                    self.ids[index].append(token)
                    if piece := row.push(token):
                        yield index, piece
                    if row.stopped:
                        self._generation.finish(index)
            for index, row in enumerate(self._rows):
                if piece := row.finish():
                    yield index, piece
        finally:
            self._model.train(was_training)

    def all(self) -> list[Continuation]:
        """Everything, when it has been written."""
        texts = [""] * len(self._rows)
        for row, piece in self:
            texts[row] += piece
        return self.ended(texts)

    def ended(self, texts: Sequence[str]) -> list[Continuation]:
        """The joined pieces of each row, with why it ended and how many tokens it has."""
        facts = zip(texts, self._generation.finish_reasons, self._counts, strict=True)
        return [Continuation(*row) for row in facts]


def check_vocabulary(model: CausalLM, tokenizer: Tokenizer) -> None:
    """Raise UserError for a tokenizer with more tokens than the model knows."""
    vocab_size = model.config.known_vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size:,} tokens, the model {vocab_size:,}",
            remedy="use the tokenizer the model was trained with; its checkpoint directory holds it",
            exit_code=ExitCode.BAD_DATA,
        )


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens to continue: the tokenizer's begin token if it has one, then the text.

    No text at all starts after the end token, where every document of a training set begins.
    """
    begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    return begin + tokenizer.encode(prompt) or [tokenizer.end_id]


class TextRow:
    """The text of one row, token by token, up to the first stop string.

    Args:
        tokenizer: decodes.
        prompt_ids: the tokens before the first; the decoder reads them, because some decoders drop the leading space
            of a text and must know that this is not its beginning.
        stop: strings that end the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._decoder = tokenizer.stream_decoder()
        prompt_given = "".join(map(self._decoder.push, prompt_ids))
        # What the decoder still holds back of the prompt comes out with the first tokens: it is not ours.
        self._num_foreign = len(tokenizer.decode(prompt_ids)) - len(prompt_given)
        self._scanner = StopScanner(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._scanner.found

    def push(self, token: int) -> str:
        """The text that is certain after this token."""
        return self._scanner.push(self._without_prompt(self._decoder.push(token)))

    def finish(self) -> str:
        """What was held back, when no token follows."""
        return self._scanner.push(self._without_prompt(self._decoder.finish())) + self._scanner.finish()

    def _without_prompt(self, text: str) -> str:
        own = text[self._num_foreign :]
        self._num_foreign -= len(text) - len(own)
        return own


class StopScanner:
    """Lets text through up to the first stop string, and holds back an end that could still grow into one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What may be shown after this text: never any part of a stop string."""
        if self.found:
            return ""
        text = self._held + text
        starts = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """What is held back, which no text can complete any more."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning, not the whole, of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
