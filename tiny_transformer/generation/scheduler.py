"""Many texts at once that begin and end at different times: continuous batching, as a library a server can stand on.

A request waits until a row is free, has its prompt read alone, joins the rows that are being written, and leaves when
it ends; `step` gives every running request one token. Memory is taken once, when the scheduler is made: a request that
is admitted has its row to the end. One thread calls; what is written for a request is what it would be alone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tiny_transformer.errors import UserError
from tiny_transformer.generation.decoder import Decoder
from tiny_transformer.generation.rows import FinishReason, check_prompts
from tiny_transformer.generation.sampling import NOT_A_TOKEN, SamplingConfig, next_ids, row_keys
from tiny_transformer.models.contract import CausalLM

Ending = FinishReason | Literal["cancelled", "not a number"]


@dataclass(eq=False)
class Request:
    """One text that is asked for.

    Attributes:
        prompt: its tokens.
        settings: how the next token is chosen; stop strings are found by whoever decodes the tokens.
        end_ids: tokens that end it.
        key: of its random numbers.
        num_shared: so many first tokens stand in other prompts too.
        budget: the most tokens it may get.
        tokens: written so far, without the end token.
        finish_reason: None while it waits or is written.
        row: where it is written; None before and after.
    """

    prompt: tuple[int, ...]
    settings: SamplingConfig
    end_ids: frozenset[int]
    key: int
    num_shared: int
    budget: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: Ending | None = None
    row: int | None = None


class _Prefix(NamedTuple):
    """Tokens that have been read: the cache of one row, and the logits (1, V) after the last."""

    decoder: Decoder
    logits: Tensor


class Scheduler:
    """Requests over the rows of one cache.

    Args:
        model: in evaluation mode; called, never changed.
        num_rows: how many texts are written at once.
        max_len: the most tokens of a prompt and its text together.
        num_tokens: only ids below it are chosen; None: all.
        max_prefix_tokens: how many tokens of shared prefixes are kept, beside the rows.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        num_rows: int,
        max_len: int,
        num_tokens: int | None = None,
        max_prefix_tokens: int = 0,
    ) -> None:
        self._model, self.num_rows = model, num_rows
        self.max_len = min(max_len, model.config.max_position_embeddings)
        self._num_tokens = num_tokens or model.config.known_vocab_size
        self._decoder = Decoder(model, num_rows, self.max_len, num_tokens=self._num_tokens)
        self._free = list(range(num_rows))[::-1]
        self._running: dict[int, Request] = {}  # by row
        self._waiting: deque[Request] = deque()
        self._prefixes: OrderedDict[tuple[int, ...], _Prefix] = OrderedDict()  # used last at the end
        self._max_prefix_tokens = max_prefix_tokens

    @property
    def num_free(self) -> int:
        """Rows that nobody has."""
        return len(self._free)

    @property
    def num_waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of shared prefixes that are kept."""
        return sum(map(len, self._prefixes))

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._running and not self._waiting

    def submit(
        self,
        prompt: Sequence[int],
        settings: SamplingConfig,
        *,
        end_ids: Collection[int] = (),
        num_shared: int = 0,
        key: int | None = None,
    ) -> Request:
        """Ask for a text.

        Args:
            prompt: at least one token.
            settings: how the next token is chosen.
            end_ids: tokens that end it.
            num_shared: so many first tokens of the prompt will stand in other prompts too (a system prompt; all of
                them, where one prompt is continued several times): they are read once.
            key: of the random numbers; None: that of the prompt alone in a batch.

        Raises:
            UserError: a prompt that cannot be read, or one that with its text has no room in a row.
        """
        vocab_size, context_length = self._model.config.known_vocab_size, self._model.config.max_position_embeddings
        check_prompts([prompt], vocab_size=vocab_size, context_length=context_length)
        budget = min(settings.max_new_tokens, context_length - len(prompt) + 1)
        if (needed := len(prompt) + budget - 1) > self.max_len:
            sizes = f"{len(prompt):,} tokens and {budget:,} new ones need room for {needed:,}"
            raise UserError(
                f"{sizes}, and a row has {self.max_len:,}",
                remedy=f"a shorter prompt, or max_new_tokens {max(0, self.max_len - len(prompt) + 1):,}",
            )
        key = row_keys(settings.seed, [prompt])[0] if key is None else key
        shared = min(num_shared, len(prompt))
        request = Request(tuple(prompt), settings, frozenset(end_ids), key, shared, budget)
        self._waiting.append(request)
        return request

    def cancel(self, request: Request, reason: Ending = "cancelled") -> None:
        """End a request from outside, waiting or running; its row is free at once. What has ended stays as it is."""
        if request.finish_reason is not None:
            return
        if request.row is None:
            self._waiting.remove(request)
        self._end(request, reason)

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, int]]:
        """Admit what waits while there are rows, and write one token for each request: (request, token).

        A request that ended without a token in this step is not among them; its `finish_reason` says so.
        """
        given: list[tuple[Request, int]] = []
        before = list(self._running.values())
        while self._waiting and self._free:
            request = self._waiting.popleft()
            given += self._record(request, self._admit(request))
        if before:
            rows: list[list[int]] = [[] for _ in range(self.num_rows)]
            for request in before:
                rows[self._row_of(request)] = request.tokens[-1:]
            logits = self._decoder.feed_last(rows)
            for request in before:
                row = self._row_of(request)
                given += self._record(request, logits[row : row + 1])
        return given

    def _admit(self, request: Request) -> Tensor:
        """Take a row, read the prompt into it, and return logits (1, V). The row is free again if that fails."""
        row = request.row = self._free.pop()
        self._running[row] = request
        try:
            read = self._read(request.prompt, request.num_shared)
            self._decoder.cache.adopt(row, read.decoder.cache)
        except BaseException:
            self._end(request, "cancelled")
            raise
        return read.logits

    def _read(self, tokens: tuple[int, ...], num_shared: int) -> _Prefix:
        """Read tokens, going on from the longest prefix that is kept; keep the shared part."""
        known = max((p for p in self._prefixes if tokens[: len(p)] == p), key=len, default=())
        if known:
            self._prefixes.move_to_end(known)
        if known == tokens:
            return self._prefixes[known]
        if len(known) < num_shared < len(tokens) and num_shared <= self._max_prefix_tokens:
            self._read(tokens[:num_shared], num_shared)
            known = tokens[:num_shared]
        decoder = Decoder(self._model, 1, len(tokens), num_tokens=self._num_tokens)
        if known:
            decoder.cache.adopt(0, self._prefixes[known].decoder.cache)
        read = _Prefix(decoder, decoder.feed_last([tokens[len(known) :]]))
        if len(tokens) == num_shared <= self._max_prefix_tokens:
            while self.num_prefix_tokens + len(tokens) > self._max_prefix_tokens:
                self._prefixes.popitem(last=False)
            self._prefixes[tokens] = read
        return read

    def _record(self, request: Request, logits: Tensor) -> list[tuple[Request, int]]:
        """Draw a request's next token from logits (1, V), and end it where it ends."""
        seen = None
        if request.settings.repetition_penalty != 1:
            seen = torch.zeros(1, self._num_tokens, dtype=torch.bool)
            seen[0, [t for t in (*request.prompt, *request.tokens) if t < self._num_tokens]] = True
            seen = seen.to(logits.device)
        position = len(request.tokens)
        token = int(next_ids(logits, request.settings, keys=[request.key], position=position, seen=seen))
        if token == NOT_A_TOKEN or token in request.end_ids:
            self._end(request, "not a number" if token == NOT_A_TOKEN else "end")
            return []
        request.tokens.append(token)
        if len(request.tokens) == request.budget:
            self._end(request, "length" if request.budget == request.settings.max_new_tokens else "context")
        return [(request, token)]

    def _end(self, request: Request, reason: Ending) -> None:
        request.finish_reason = reason
        if request.row is not None:
            self._decoder.reset([request.row])
            del self._running[request.row]
            self._free.append(request.row)
            request.row = None

    @staticmethod
    def _row_of(request: Request) -> int:
        if request.row is None:
            raise ValueError("this request has no row")
        return request.row
