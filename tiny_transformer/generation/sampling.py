"""From logits to the next token: the settings of sampling and the pure functions behind them.

The order of operations, the same everywhere in this project:

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw

Temperature 0 is greedy: repetition penalty, then the most likely token. A draw needs one number in [0, 1) a row. It is
a function of (seed, prompt, copy, position) and of nothing else, so a row's text does not depend on the rows beside it,
and a position can be drawn again after a rollback.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiny_transformer.errors import UserError

MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1000
# option -> (type, lowest, highest, the range in words)
RANGES: dict[str, tuple[type, float, float, str]] = {
    "temperature": (float, 0.001, 100, "0 (always the most likely token), or 0.001 to 100"),
    "top_k": (int, 0, 2**31 - 1, "a number of tokens (0 is off)"),
    "top_p": (float, 1e-6, 1, "above 0 and up to 1 (1 is off)"),
    "min_p": (float, 0, 1, "0 to 1 (0 is off)"),
    "repetition_penalty": (float, 0.01, 100, "0.01 to 100 (1 is off)"),
    "max_new_tokens": (int, 1, 10**7, "1 to 10,000,000"),
    "seed": (int, 0, 2**63 - 1, "0 to 2**63 - 1"),
}
NUM_CANDIDATES = 256  # looked at first by top-p
FILTERS = ("top_k", "top_p", "min_p")
NOT_A_TOKEN = -1
_MASK_64 = 2**64 - 1


@dataclass(frozen=True)
class SamplingConfig:
    """How text is drawn from a model.

    Attributes:
        temperature: logits are divided by it; 0 always takes the most likely token.
        top_k: only the k most likely tokens (and their ties) stay; None is off.
        top_p: only the smallest set of most likely tokens with this total probability (and ties) stays; None is off.
        min_p: only tokens at least this fraction as likely as the likeliest stay; None is off.
        repetition_penalty: above 1 makes the tokens of the prompt and of the text so far less likely; 1 is off.
        max_new_tokens: the text ends after so many tokens.
        stop: the text ends before the first of these strings.
        seed: the same seed and prompt give the same text.

    Raises:
        UserError: a value out of its range, naming the option and the range.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    max_new_tokens: int = 200
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for option in RANGES:
            _check_number(option, getattr(self, option))
        object.__setattr__(self, "stop", _checked_stop(self.stop))


def refuse_idle(options: Mapping[str, Any], chosen: Collection[str]) -> None:
    """Refuse a filter that was asked for beside temperature 0, which takes the likeliest token whatever the filters
    leave.

    Args:
        options: settings by their names.
        chosen: those that somebody asked for by name.

    Raises:
        UserError: the first of them.
    """
    is_off = {"top_k": 0, "top_p": 1, "min_p": 0}
    if options.get("temperature") != 0:
        return
    for name in FILTERS:
        if name in chosen and options.get(name) not in (None, is_off[name]):
            remedy = f"leave out {name}, or choose a temperature above 0"
            raise UserError(
                f"{name} has no effect at temperature 0: the likeliest token is always taken", remedy=remedy
            )


def _check_number(option: str, value: Any) -> None:
    kind, low, high, in_words = RANGES[option]
    is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    is_off = (value is None and option in FILTERS) or (is_number and value == 0 and option == "temperature")
    if not is_off and not (is_number and low <= value <= high):
        raise UserError(f"{option} = {value!r} is not possible", remedy=f"{option}: {in_words}")


def _checked_stop(stop: Any) -> tuple[str, ...]:
    if not isinstance(stop, (str, list, tuple)):
        raise UserError(f"stop = {stop!r} is not possible", remedy="stop: a list of strings")
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in strings:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
            shown = f"a string of {len(text)} characters" if isinstance(text, str) and text else repr(text)
            remedy = f"stop: strings of 1 to {MAX_STOP_CHARACTERS} characters"
            raise UserError(f"stop = {shown} is not possible", remedy=remedy)
    if len(strings) > MAX_STOP_STRINGS:
        remedy = f"stop: at most {MAX_STOP_STRINGS} strings"
        raise UserError(f"{len(strings)} stop strings are too many", remedy=remedy)
    return strings


# --- logits to logits -------------------------------------------------------------------------------------------------


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of tokens already seen by the penalty, multiply the negative ones by it.

    Args:
        logits: (B, V) float32.
        seen: (B, V) bool, the tokens of the prompt and of the text so far.
        penalty: above 1 discourages, below 1 encourages repetition.

    Source: Keskar et al. 2019, CTRL, section 4.1, in the form that is right for logits of either sign.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with all but the k largest, and what ties with the k-th, at minus infinity."""
    if k >= logits.shape[-1]:
        return logits
    return _keep_from(logits, logits.topk(k).values[:, -1:])


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with only the smallest set of likeliest tokens that reaches probability p, and its last one's ties.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1.
    """
    vocab_size, log_total = logits.shape[-1], logits.logsumexp(-1, keepdim=True)
    # Nearly always the set is among the first few: to sort a whole vocabulary can cost as much as the model.
    for num_candidates in (min(NUM_CANDIDATES, vocab_size), vocab_size):
        ordered = logits.topk(num_candidates).values
        reached = (ordered - log_total).exp().cumsum(-1)
        if (reached[:, -1] >= p).all():
            break
    last = (reached < p).sum(-1, keepdim=True).clamp(max=num_candidates - 1)
    return _keep_from(logits, ordered.gather(-1, last))


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Logits (B, V) with only tokens whose probability is at least min_p times the largest one.

    Source: Nguyen et al. 2024, Turning Up the Heat: Min-p Sampling.
    """
    return _keep_from(logits, logits.amax(-1, keepdim=True) + math.log(min_p))


def _keep_from(logits: Tensor, smallest: Tensor) -> Tensor:
    """Logits below (B, 1) at minus infinity."""
    return torch.where(logits < smallest, -math.inf, logits)


def shape_logits(logits: Tensor, settings: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """The logits whose softmax is the distribution that is drawn from, in the order at the head of this file.

    Args:
        logits: (B, V), any floating type.
        settings: the sampling options.
        seen: (B, V) bool, needed when the repetition penalty is not 1.

    Returns:
        (B, V) float32. With temperature 0 only the repetition penalty has been applied.
    """
    logits = logits.float()
    if settings.repetition_penalty != 1 and seen is not None:
        logits = penalize_repetition(logits, seen, settings.repetition_penalty)
    if settings.temperature == 0:
        return logits
    # Against the maximum, so that a low temperature cannot overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / settings.temperature
    if settings.top_k:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p is not None and settings.top_p < 1:
        logits = keep_top_p(logits, settings.top_p)
    if settings.min_p:
        logits = keep_min_p(logits, settings.min_p)
    return logits


# --- logits to ids ----------------------------------------------------------------------------------------------------


def next_ids(
    logits: Tensor, settings: SamplingConfig, *, keys: Sequence[int], position: int, seen: Tensor | None = None
) -> Tensor:
    """The next token of each row.

    Args:
        logits: (B, V), any floating type.
        settings: the sampling options.
        keys: B numbers from `row_keys`.
        position: how many tokens have been generated before this one.
        seen: (B, V) bool, needed when the repetition penalty is not 1.

    Returns:
        (B,) int64 on the logits' device, or NOT_A_TOKEN in a row whose logits have no finite maximum.
    """
    logits = shape_logits(logits, settings, seen)
    if settings.temperature == 0:
        return take_likeliest(logits)
    return draw(logits, torch.tensor([uniform(key, position) for key in keys], device=logits.device))


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative distribution of softmax(logits) first exceeds the row's uniform number.

    Args:
        logits: (B, V) float32; minus infinity is never drawn.
        uniforms: (B,) float32 in [0, 1).

    Returns:
        (B,) int64, or NOT_A_TOKEN in a row whose logits have no finite maximum.
    """
    probabilities = logits.softmax(-1)
    reached = probabilities.cumsum(-1)
    total = reached[:, -1:]  # in float32 not exactly 1
    ids = torch.searchsorted(reached, uniforms[:, None] * total, right=True).clamp(max=logits.shape[-1] - 1)
    # A sum made in parallel may step up by a rounding error at a token of probability 0, and the draw may fall on it.
    ids = torch.where(probabilities.gather(-1, ids) == 0, probabilities.argmax(-1, keepdim=True), ids)
    return torch.where(total.isfinite(), ids, NOT_A_TOKEN)[:, 0]


def take_likeliest(logits: Tensor) -> Tensor:
    """The largest logit's token, (B, V) to (B,) int64, or NOT_A_TOKEN in a row that has no finite maximum."""
    largest, ids = logits.max(-1)
    return torch.where(largest.isfinite(), ids, NOT_A_TOKEN)


def row_keys(seed: int, prompts: Sequence[Sequence[int]]) -> list[int]:
    """One 64-bit key a row, from the seed, the prompt's tokens, and how often the same prompt stood before it.

    The same prompt twice in a batch gives two texts; a prompt on its own gives the text it gives among others.
    """
    copies: Counter[tuple[int, ...]] = Counter()
    keys = []
    for prompt in map(tuple, prompts):
        digest = hashlib.blake2b(f"{seed} {copies[prompt]} {prompt}".encode(), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little"))
        copies[prompt] += 1
    return keys


def uniform(key: int, position: int) -> float:
    """A number in [0, 1) that depends on key and position only, with 24 random bits: exact in float32 and never 1.

    Source: Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators: SplitMix64.
    """
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & _MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return ((z ^ (z >> 31)) >> 40) / 2**24
