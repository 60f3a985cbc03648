"""The decode loop over the rows of a batch: prompts are read in one pass, then every step draws one token a row.

The decoder computes, the sampler draws; here stands what a row is: its prompt, its key, how long it may grow, and why
it ended. A prompt that stands in several rows is read once and copied.

`generate_without_cache` is the slow twin: it runs the whole text through the model for every token.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.decoder import Decoder
from tiny_transformer.generation.sampling import NOT_A_TOKEN, SamplingConfig, next_ids, row_keys
from tiny_transformer.models.contract import CausalLM

FinishReason = Literal["end", "stop", "length", "context"]

_log = logging.getLogger(__name__)


class Generation(Iterator[list[int | None]]):
    """A batch of texts being continued. Each step gives a list: a row's new token, or None when the row has ended.

    A row ends at one of `end_ids` (which is not given out), after `max_new_tokens`, when the context is full, or when
    `finish` is called. Iteration stops when all rows have ended. The model must be in evaluation mode.

    Args:
        model: called, never changed.
        prompts: B lists of at least one token.
        settings: how the next token is chosen; its stop strings are the concern of whoever decodes the tokens.
        end_ids: tokens that end a text.
        num_tokens: only ids below it are ever chosen; a head may have more rows than the tokenizer has tokens.
        keys: of the rows' random numbers; None: `row_keys` of these prompts. Part of a longer list brings its own.

    Attributes:
        logits: (B, V) of the last step, before any sampling option.
        finish_reasons: for each row None while it is being written, then `end`, `stop`, `length` or `context`.
        ended_by: for each row the token of `end_ids` that ended it, else None.
        decoder: has read every token but the newest.

    Raises:
        UserError: an empty prompt, one longer than the context, a token the model does not have, or logits that are
            no numbers.
    """

    def __init__(
        self,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        settings: SamplingConfig,
        *,
        end_ids: Collection[int] = (),
        num_tokens: int | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        context_length = model.config.max_position_embeddings
        check_prompts(prompts, vocab_size=model.config.known_vocab_size, context_length=context_length)
        self._model, self._settings, self._end_ids = model, settings, frozenset(end_ids)
        self._num_tokens = num_tokens or model.config.known_vocab_size
        self._keys = row_keys(settings.seed, prompts) if keys is None else keys
        # The last token of a full context still has a successor.
        self._budgets = [min(settings.max_new_tokens, context_length - len(prompt) + 1) for prompt in prompts]
        self.finish_reasons: list[FinishReason | None] = [None] * len(prompts)
        self.ended_by: list[int | None] = [None] * len(prompts)
        self._step = 0
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._new_ids: Tensor | None = None  # (B, 1), once the prompts have been read
        device = next(model.parameters()).device
        self._seen = _tokens_in(prompts, self._num_tokens, device) if settings.repetition_penalty != 1 else None
        # Ended rows are fed on beside the others, so each must hold what the longest may write.
        max_len = max(map(len, prompts), default=0) + max(self._budgets, default=1) - 1
        self.decoder = Decoder(model, len(set(self._prompts)), max_len, num_tokens=self._num_tokens)
        self.logits = torch.empty(0)

    def finish(self, row: int, reason: FinishReason = "stop") -> None:
        """End a row from outside."""
        self.finish_reasons[row] = reason

    @torch.inference_mode()
    def __next__(self) -> list[int | None]:
        if None not in self.finish_reasons:
            raise StopIteration
        self.logits = self._read_prompts() if self._new_ids is None else self.decoder.feed_last(self._new_ids)
        ids = next_ids(self.logits, self._settings, keys=self._keys, position=self._step, seen=self._seen)
        given = self._record(ids.tolist())
        self._new_ids = ids[:, None]
        if self._seen is not None:
            self._seen.scatter_(1, self._new_ids, True)
        return given

    def _read_prompts(self) -> Tensor:
        """Logits (B, V) after each prompt; each different one is read once."""
        different = list(dict.fromkeys(self._prompts))
        logits = self.decoder.feed_last(different)
        if len(different) == len(self._prompts):
            return logits
        rows = [different.index(prompt) for prompt in self._prompts]
        self.decoder.select(rows)
        return logits[rows]

    def _record(self, ids: list[int]) -> list[int | None]:
        """End the rows that are done, and return what this step gives out."""
        refuse_not_a_number(ids, self._step)
        self._step += 1
        given: list[int | None] = []
        for row, token in enumerate(ids):
            if self.finish_reasons[row] is not None:
                given.append(None)
            elif token in self._end_ids:
                self.finish_reasons[row], self.ended_by[row] = "end", token
                given.append(None)
            else:
                given.append(token)
                if self._step == self._budgets[row]:
                    self._end_by_length(row)
        return given

    def _end_by_length(self, row: int) -> None:
        if self._budgets[row] == self._settings.max_new_tokens:
            self.finish_reasons[row] = "length"
            return
        if "context" not in self.finish_reasons:
            limit = self._model.config.max_position_embeddings
            _log.warning("the text ends here: the model's context of %s tokens is full", f"{limit:,}")
        self.finish_reasons[row] = "context"


def refuse_not_a_number(ids: Sequence[int], num_new: int) -> None:
    """Raise UserError where a row had no token to choose, after so many new ones."""
    if NOT_A_TOKEN in ids:
        raise UserError(
            f"the model computed not-a-number after {num_new} new tokens",
            remedy="use another checkpoint, or load this one with dtype float32",
            exit_code=ExitCode.BAD_DATA,
        )


def continue_ids(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig,
    *,
    end_ids: Collection[int] = (),
    num_tokens: int | None = None,
) -> list[list[int]]:
    """The new tokens of each row, side by side; arguments and errors as for `Generation`.

    Raises:
        UserError: stop strings are set: they are found in text, and nothing here makes text of tokens.
    """
    if settings.stop:
        raise UserError("stop strings need a prompt that is text", remedy="leave out stop, or give the prompt as text")
    was_training = model.training
    model.train(False)
    rows: list[list[int]] = [[] for _ in prompts]
    try:
        for ids in Generation(model, prompts, settings, end_ids=end_ids, num_tokens=num_tokens):
            for row, token in zip(rows, ids, strict=True):
                row += [] if token is None else [token]
    finally:
        model.train(was_training)
    return rows


def generate_without_cache(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig,
    *,
    end_ids: Collection[int] = (),
    num_tokens: int | None = None,
) -> list[list[int]]:
    """What `Generation` gives, each row alone and every token from the whole text: slow, and easy to check by hand.

    Arguments and errors as for `Generation`. Returns the new tokens of each row.
    """
    context_length = model.config.max_position_embeddings
    check_prompts(prompts, vocab_size=model.config.known_vocab_size, context_length=context_length)
    num_tokens = num_tokens or model.config.known_vocab_size
    device = next(model.parameters()).device
    texts = []
    for prompt, key in zip(prompts, row_keys(settings.seed, prompts), strict=True):
        new_ids: list[int] = []
        while len(new_ids) < settings.max_new_tokens and len(prompt) + len(new_ids) <= context_length:
            text = [*prompt, *new_ids]
            with torch.inference_mode():
                logits = model(torch.tensor([text], device=device))[:, -1, :num_tokens]
                seen = _tokens_in([text], num_tokens, device)
                token = int(next_ids(logits, settings, keys=[key], position=len(new_ids), seen=seen))
            if token in end_ids:
                break
            new_ids.append(token)
        texts.append(new_ids)
    return texts


def check_prompts(prompts: Sequence[Sequence[int]], *, vocab_size: int, context_length: int) -> None:
    """Raise UserError for a prompt that is empty, longer than the context, or in another tokenizer's vocabulary."""
    for row, prompt in enumerate(prompts):
        where = f"prompt {row + 1} of {len(prompts)}"
        if not prompt:
            raise UserError("the prompt has no tokens", where=where, remedy="start it with the end-of-text token")
        if len(prompt) > context_length:
            raise UserError(
                f"the prompt has {len(prompt):,} tokens, the model reads at most {context_length:,}",
                where=where,
                remedy=f"shorten it by {len(prompt) - context_length:,} tokens",
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(i for i in prompt if not 0 <= i < vocab_size)
            raise UserError(
                f"the prompt has the token {wrong}, the model only 0 to {vocab_size - 1}",
                where=where,
                remedy="encode it with the tokenizer the model was trained with",
            )


def _tokens_in(prompts: Sequence[Sequence[int]], num_tokens: int, device: torch.device) -> Tensor:
    """(B, V) bool: which tokens each prompt holds."""
    seen = torch.zeros(len(prompts), num_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, [i for i in prompt if i < num_tokens]] = True
    return seen.to(device)
