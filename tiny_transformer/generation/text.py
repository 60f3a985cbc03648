"""From a prompt to text: prompts become tokens, tokens become pieces of text that can be printed as they come.

A piece never holds half a character, and never any part of a stop string: what could still become one is held back
until it is certain. The pieces joined are the whole text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.rows import Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import own_end_ids
from tiny_transformer.tokenizers import Tokenizer


def complete(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: SamplingConfig,
    end_ids: Collection[int] = (),
) -> list[str]:
    """How the model continues each prompt, written side by side; the same prompt twice gives two texts (unless greedy).

    Args:
        model: a causal language model; its training mode is put back afterwards.
        tokenizer: the one the model was trained with.
        prompts: texts, which may be empty and of different lengths.
        settings: how the next token is chosen, and when to stop.
        end_ids: tokens that end a text, besides the tokenizer's own: `end_ids` of `models.open.OpenCheckpoint`.

    Returns:
        The continuations, without the prompts and without the stop strings.

    Raises:
        UserError: the tokenizer does not fit the model, or a prompt cannot be encoded or is longer than the context.
    """
    texts = [""] * len(prompts)
    for row, piece in write(model, tokenizer, prompts, settings, end_ids):
        texts[row] += piece
    return texts


def stream(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    settings: SamplingConfig,
    end_ids: Collection[int] = (),
) -> Iterator[str]:
    """The continuation of one prompt, piece by piece as it is written. Joined, it is what `complete` returns."""
    for _, piece in write(model, tokenizer, [prompt], settings, end_ids):
        yield piece


def write(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: SamplingConfig,
    end_ids: Collection[int] = (),
) -> Iterator[tuple[int, str]]:
    """Pieces of all continuations as they are written: (row, text that is not empty). Arguments as in `complete`."""
    vocab_size = model.config.known_vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size:,} tokens, the model {vocab_size:,}",
            remedy="use the tokenizer the model was trained with; its checkpoint directory holds it",
            exit_code=ExitCode.BAD_DATA,
        )
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    rows = [TextRow(tokenizer, ids, settings.stop) for ids in encoded]
    was_training = model.training
    model.train(False)
    try:
        ends = {*own_end_ids(tokenizer), *end_ids}
        generation = Generation(model, encoded, settings, end_ids=ends, num_tokens=tokenizer.vocab_size)
        for ids in generation:
            for index, (row, token) in enumerate(zip(rows, ids, strict=True)):
                if token is not None and (piece := row.push(token)):
                    yield index, piece
                if row.stopped:
                    generation.finish(index)
        for index, row in enumerate(rows):
            if piece := row.finish():
                yield index, piece
    finally:
        model.train(was_training)


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
