"""Several tokens a pass: a drafter guesses, the model reads all guesses at once, and keeps those it would have written.

Nothing is approximated. At each position the model draws as it always does, with the random number of that position
(`sampling.uniform`); a guess is right when it is the token drawn. So the text is the one written without a drafter,
greedy or sampled, seed for seed, and what a drafter changes is time. (Speculative sampling after Leviathan et al. 2023
has the same distribution and other texts. A guess without a distribution is accepted equally often by both.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tiny_transformer.generation.decoder import Decoder
from tiny_transformer.generation.drafters import Drafter
from tiny_transformer.generation.rows import FinishReason, check_prompts, refuse_not_a_number
from tiny_transformer.generation.sampling import (
    SamplingConfig,
    draw,
    row_keys,
    shape_logits,
    take_likeliest,
    uniform,
)
from tiny_transformer.models.contract import CausalLM

NUM_PLAIN = 3  # passes without drafts at the beginning, to know what a token costs alone; the first is not counted
NUM_TRIED = 8  # passes with drafts before they can be given up
MEMORY = 0.9  # of averages: a pass counts half after seven others


@dataclass
class Tally:
    """What speculation has brought.

    Attributes:
        num_tokens: written, the first of each text left out.
        num_passes: of the model, for them.
        num_drafted, num_accepted: guesses, and those that were right.
        seconds: all passes together, drafting counted.
        plain_seconds: what the passes would have taken one token at a time, as measured on passes without drafts.
        num_given_up: texts in which drafting was given up because it lost time.
    """

    num_tokens: int = 0
    num_passes: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    seconds: float = 0.0
    plain_seconds: float = 0.0
    num_given_up: int = 0

    def sentence(self) -> str:
        """The tally for a reader."""
        if not self.num_drafted:
            return "speculation: nothing was drafted"
        share, per_pass = self.num_accepted / self.num_drafted, self.num_tokens / self.num_passes
        text = f"speculation: {self.num_accepted:,} of {self.num_drafted:,} drafted tokens accepted ({share:.0%}), "
        text += f"{per_pass:.2f} tokens a pass, {self.plain_seconds / self.seconds:.2f} × as fast as one by one"
        texts = "1 text" if self.num_given_up == 1 else f"{self.num_given_up:,} texts"
        return text + (f"; given up in {texts}: it lost time" if self.num_given_up else "")


class Pace:
    """How many tokens to draft: as many as pay, by what guesses have cost and how often they were right.

    Args:
        most: never more.
        adapts: False always drafts `most`.
    """

    def __init__(self, most: int, *, adapts: bool = True) -> None:
        self._most, self._adapts = most, adapts
        self._num_plain, self._num_tried = 0, 0
        self.plain_seconds: float | None = None  # a pass without drafts
        self._draft_seconds = 0.0  # what one draft adds to a pass
        self._right = 0.5  # how often a guess is right whose predecessors were
        self.is_off = False

    def num_drafts(self) -> int:
        """For the next pass."""
        if self.is_off or (self._adapts and self._num_plain < NUM_PLAIN):
            return 0
        if not self._adapts or self._num_tried < NUM_TRIED or self.plain_seconds is None:
            return self._most
        speeds = [self._tokens(n) / (self.plain_seconds + n * self._draft_seconds) for n in range(self._most + 1)]
        best = max(range(self._most + 1), key=speeds.__getitem__)
        self.is_off = best == 0
        return best

    def _tokens(self, num_drafts: int) -> float:
        """Tokens of a pass with so many drafts, on average."""
        return sum(self._right**i for i in range(num_drafts + 1))

    def note(self, num_drafts: int, num_right: int, seconds: float) -> None:
        """A pass has read so many drafts, of which so many were right, in this time."""
        if num_drafts == 0:
            self._num_plain += 1
            if self._num_plain > 1:
                self.plain_seconds = _average(self.plain_seconds, seconds)
            return
        self._num_tried += 1
        self._draft_seconds = max(
            0.0,
            _average(
                self._draft_seconds if self._num_tried > 1 else None,
                (seconds - (self.plain_seconds or 0.0)) / num_drafts,
            ),
        )
        for i in range(min(num_right + 1, num_drafts)):
            self._right = _average(self._right, float(i < num_right))


def _average(before: float | None, new: float) -> float:
    return new if before is None else MEMORY * before + (1 - MEMORY) * new


@dataclass
class Speculation:
    """How texts are drafted.

    Attributes:
        make_drafter: a new one for each text, from the most tokens that it can hold.
        num_draft_tokens: the most guesses a pass.
        adapts: draft fewer where they do not pay, and none where they lose time.
        clock: seconds; tests bring their own.
        tally: what it has brought so far.
    """

    make_drafter: Callable[[int], Drafter]
    num_draft_tokens: int = 4
    adapts: bool = True
    clock: Callable[[], float] = time.perf_counter
    tally: Tally = field(default_factory=Tally)


class SpeculativeRow(Iterator[list[int]]):
    """One text. Each step gives the tokens of a pass, at least one; an end token is not given out.

    Args:
        model: in evaluation mode.
        prompt: at least one token.
        settings: how the next token is chosen.
        speculation: how it is drafted.
        key: of the row's random numbers.
        end_ids: tokens that end a text.
        num_tokens: only ids below it are chosen.

    Attributes:
        finish_reason: None while the text is being written, then as in `Generation`.
    """

    def __init__(
        self,
        model: CausalLM,
        prompt: Sequence[int],
        settings: SamplingConfig,
        speculation: Speculation,
        *,
        key: int,
        end_ids: Collection[int],
        num_tokens: int,
    ) -> None:
        limit = model.config.max_position_embeddings
        self._settings, self._speculation, self._key = settings, speculation, key
        self._end_ids, self._text, self._num_prompt = frozenset(end_ids), list(prompt), len(prompt)
        # The last token of a full context still has a successor.
        self._budget = min(settings.max_new_tokens, limit - len(prompt) + 1)
        self._length_reason: FinishReason = "length" if self._budget == settings.max_new_tokens else "context"
        self._decoder = Decoder(model, 1, len(prompt) + self._budget - 1, num_tokens=num_tokens)
        self._drafter = speculation.make_drafter(len(prompt) + self._budget)
        self._pace = Pace(speculation.num_draft_tokens, adapts=speculation.adapts)
        self._device = next(model.parameters()).device
        self.finish_reason: FinishReason | None = None

    @torch.inference_mode()
    def __next__(self) -> list[int]:
        if self.finish_reason is not None:
            raise StopIteration
        num_new = len(self._text) - self._num_prompt
        tokens = self._first() if num_new == 0 else self._pass(self._budget - num_new)
        refuse_not_a_number(tokens, num_new)
        if tokens[-1] in self._end_ids:
            tokens = tokens[:-1]
            self.finish_reason = "end"
        elif num_new + len(tokens) == self._budget:
            self.finish_reason = self._length_reason
        self._text += tokens
        return tokens

    def _first(self) -> list[int]:
        """Read the prompt and choose the first token."""
        logits = self._decoder.feed_last([self._text])
        self._drafter.observe(self._decoder.hidden)
        return self._choose(logits, [])

    def _pass(self, left: int) -> list[int]:
        """Draft, read the last token and all drafts, and keep what the model draws up to its first other choice."""
        clock, pace, tally = self._speculation.clock, self._pace, self._speculation.tally
        started = clock()
        was_off, most = pace.is_off, min(pace.num_drafts(), left - 1)
        tally.num_given_up += pace.is_off and not was_off
        drafts = self._drafter.propose(self._text, most, self._draw) if most > 0 else []
        self._decoder.snapshot()
        logits = self._decoder.feed(torch.tensor([[self._text[-1], *drafts]], device=self._device))[0]  # (1 + n, V)
        drawn = self._choose(logits, drafts)
        num_right = next((i for i, draft in enumerate(drafts) if drawn[i] != draft), len(drafts))
        num_right = min([num_right, *(i for i, token in enumerate(drawn) if token in self._end_ids)])
        self._decoder.rollback(num_right + 1)
        if not pace.is_off:
            self._drafter.observe(self._decoder.hidden[:, : num_right + 1])
        seconds = clock() - started
        pace.note(len(drafts), num_right, seconds)
        tally.num_passes += 1
        tally.num_tokens += num_right + 1
        tally.num_drafted += len(drafts)
        tally.num_accepted += num_right
        tally.seconds += seconds
        tally.plain_seconds += (num_right + 1) * (pace.plain_seconds if pace.plain_seconds is not None else seconds)
        return drawn[: num_right + 1]

    def _draw(self, logits: Tensor, drafted: Sequence[int]) -> int:
        """What the model would draw after the text and these drafts, from such logits (1, V)."""
        return self._choose(logits, drafted, first=len(drafted))[0]

    def _choose(self, logits: Tensor, drafts: Sequence[int], first: int = 0) -> list[int]:
        """What the model draws, (n, V) to n tokens: row i after the text and the first `first` + i drafts."""
        settings, seen = self._settings, None
        if settings.repetition_penalty != 1:
            seen = torch.zeros(logits.shape, dtype=torch.bool)
            for i in range(len(logits)):
                seen[i, [t for t in (*self._text, *drafts[: first + i]) if t < logits.shape[-1]]] = True
            seen = seen.to(logits.device)
        shaped = shape_logits(logits, settings, seen)
        if settings.temperature == 0:
            return take_likeliest(shaped).tolist()
        position = len(self._text) - self._num_prompt + first
        uniforms = [uniform(self._key, position + i) for i in range(len(logits))]
        return draw(shaped, torch.tensor(uniforms, device=logits.device)).tolist()


class SpeculativeGeneration(Iterator[list[int | None]]):
    """The face of `rows.Generation` over texts that are written one after the other: speculation is for one reader who
    waits, and rows side by side already share a pass. Each step gives one row's next token and None for the others.

    Arguments, attributes and errors as for `Generation`; `speculation` says how texts are drafted.
    """

    def __init__(
        self,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        settings: SamplingConfig,
        speculation: Speculation,
        *,
        end_ids: Collection[int] = (),
        num_tokens: int | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        vocab_size = model.config.known_vocab_size
        check_prompts(prompts, vocab_size=vocab_size, context_length=model.config.max_position_embeddings)
        keys = row_keys(settings.seed, prompts) if keys is None else keys
        self.finish_reasons: list[FinishReason | None] = [None] * len(prompts)
        ids: dict[str, Any] = {"end_ids": end_ids, "num_tokens": num_tokens or vocab_size}
        self._tokens = self._all(
            SpeculativeRow(model, prompt, settings, speculation, key=key, **ids)
            for prompt, key in zip(prompts, keys, strict=True)
        )

    def _all(self, rows: Iterator[SpeculativeRow]) -> Iterator[tuple[int, int]]:
        """Every row's tokens with its number. A row is made, and its memory taken, when its turn has come."""
        for index, row in enumerate(rows):
            for tokens in row:
                for token in tokens:
                    if self.finish_reasons[index] is None:
                        yield index, token
                if self.finish_reasons[index] is not None:
                    break
            self.finish_reasons[index] = self.finish_reasons[index] or row.finish_reason

    def finish(self, row: int, reason: FinishReason = "stop") -> None:
        """End a row from outside."""
        self.finish_reasons[row] = reason

    def __next__(self) -> list[int | None]:
        index, token = next(self._tokens)
        given: list[int | None] = [None] * len(self.finish_reasons)
        given[index] = token
        return given
