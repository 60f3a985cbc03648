"""Who guesses the next tokens of a text, for a larger model to check all at once: earlier text, a smaller model, the
model's own MTP head.

A drafter may be wrong as often as it likes: that costs time and changes no text. `speculative.py` checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tiny_transformer.generation.decoder import Decoder
from tiny_transformer.models.contract import CausalLM, MultiTokenLM

Choose = Callable[[Tensor, Sequence[int]], int]
"""From logits (1, V) and the tokens drafted before it, the token that the checked model would draw from such logits:
with the same settings and the same random number."""


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def propose(self, text: Sequence[int], num_tokens: int, choose: Choose) -> list[int]:
        """At most so many tokens that may follow the text, none when there is no guess.

        Args:
            text: prompt and text so far. The next call's text begins with it.
            num_tokens: at least 1.
            choose: makes a token of logits.
        """
        ...

    def observe(self, hidden: Tensor) -> None:
        """The checked model has read T more tokens of the text for good; `hidden` (1, T, C) are its hidden states."""
        ...


class NgramDrafter:
    """What followed the last few tokens where they stood in the text before.

    Source: Saxena 2023, Prompt Lookup Decoding.

    Args:
        longest: how many tokens are looked for at first.
        shortest: and at least.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._place: dict[tuple[int, ...], int] = {}  # n-gram -> where the last text after it begins
        self._num_known = 0

    def propose(self, text: Sequence[int], num_tokens: int, choose: Choose) -> list[int]:
        """See `Drafter`. The n-gram that ends the text has no text after it yet, so it is noted with the next call."""
        for end in range(self._num_known, len(text)):
            for size in self._sizes:
                if end >= size:
                    self._place[tuple(text[end - size : end])] = end
        self._num_known = len(text)
        for size in self._sizes:
            start = self._place.get(tuple(text[len(text) - size :]))
            if start is not None and size <= len(text):
                return list(text[start : start + num_tokens])
        return []

    def observe(self, hidden: Tensor) -> None:
        """Hidden states say nothing here."""


class ModelDrafter:
    """A smaller model with the same tokenizer.

    Args:
        model: in evaluation mode.
        max_len: the most tokens a text can hold.
        num_tokens: ids from here on are never drafted.
    """

    def __init__(self, model: CausalLM, max_len: int, num_tokens: int) -> None:
        self._limit = min(max_len, model.config.max_position_embeddings)
        self._decoder = Decoder(model, 1, self._limit, num_tokens=num_tokens)
        self._certain = 0  # tokens of the text that it has read for good
        self._drafted: list[int] = []  # what it has read after them

    def propose(self, text: Sequence[int], num_tokens: int, choose: Choose) -> list[int]:
        """See `Drafter`. No guess where the text is longer than this model's context."""
        if len(text) + num_tokens > self._limit:
            return []
        decoder = self._decoder
        if self._certain:
            # Of the last drafts, those that the text went on with need not be read again.
            agreed = _num_equal(self._drafted, text[self._certain :])
            agreed = min(agreed, len(text) - self._certain - 1)  # one token must be fed for the first logits
            decoder.rollback(agreed)
            self._certain += agreed
        logits = decoder.feed_last([list(text[self._certain :])])
        self._certain = len(text)
        decoder.snapshot()
        drafts = [choose(logits, [])]
        self._drafted = []
        while len(drafts) < num_tokens:
            logits = decoder.feed_last([[drafts[-1]]])
            self._drafted.append(drafts[-1])
            drafts.append(choose(logits, drafts))
        return drafts

    def observe(self, hidden: Tensor) -> None:
        """It has hidden states of its own."""


def _num_equal(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first elements agree."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class MtpDrafter:
    """The model's own head for the token after the next: from the hidden state of one token and the next token.

    Further guesses go on from the head's own hidden states. Source: DeepSeek-AI 2024, DeepSeek-V3, section 2.2.

    Args:
        model: the checked one.
        max_len: the most tokens a text can hold.
        num_tokens: ids from here on are never drafted.
    """

    def __init__(self, model: MultiTokenLM, max_len: int, num_tokens: int) -> None:
        self._model, self._num_tokens = model, num_tokens
        self._cache = model.make_draft_cache(1, max_len)
        self._hidden: list[Tensor] = []  # of tokens that the head has not read yet
        self._num_read = 0

    @torch.inference_mode()
    def propose(self, text: Sequence[int], num_tokens: int, choose: Choose) -> list[int]:
        """See `Drafter`."""
        hidden = torch.cat(self._hidden, dim=1)
        if self._num_read:
            self._cache.rollback(0)  # what it drafted last
        next_ids = torch.tensor([text[self._num_read + 1 :]], device=hidden.device)
        self._hidden, self._num_read = [], len(text) - 1
        out = self._model.draft(hidden=hidden, next_ids=next_ids, cache=self._cache).hidden[:, -1:]
        self._cache.snapshot()
        drafts: list[int] = []
        while True:
            logits = self._model.lm_head(out[:, 0])[..., : self._num_tokens]
            drafts.append(choose(logits, drafts))
            if len(drafts) == num_tokens:
                return drafts
            again = torch.tensor([drafts[-1:]], device=hidden.device)
            out = self._model.draft(hidden=out, next_ids=again, cache=self._cache).hidden

    def observe(self, hidden: Tensor) -> None:
        """Keep the hidden states until they are asked for."""
        self._hidden.append(hidden)
