"""The built-in corpus: short children's stories from a probabilistic grammar, each with its exact log-probability.

`story(seed, index)` is a function of its two numbers and of nothing else: no file, no network, no end. Since the
grammar is known, so is the best loss any language model can reach on it: `entropy()` nats per story.

Read `template` for the language the plots are written in, then one of `plots/`; `words/` holds the word lists.
`sampler` writes stories, `parser` reads them, `proofreader` reads what is nearly one, `analysis` proves that the
numbers are exact. To add a plot, write yours beside the others and name it in `plots/__init__.py`; the tests tell what
it breaks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from . import analysis
from .parser import SKILLS, Choice, Parser
from .plots import RULES
from .proofreader import Proof, Proofreader
from .sampler import Sampler
from .template import Node, Reader
from .words import LISTS

__all__ = [
    "GRAMMAR_VERSION",
    "LICENCE",
    "SKILLS",
    "Choice",
    "Proof",
    "Score",
    "Story",
    "documents",
    "entropy",
    "log_probability",
    "proofread",
    "score",
    "story",
    "tree",
]

LICENCE = "CC0-1.0: told by a grammar of our own; the stories may be used for anything"
_SAMPLING = 1  # to be raised when the way from random bytes to choices changes
# Changes when any story can change.
GRAMMAR_VERSION = hashlib.sha256(repr((_SAMPLING, RULES, LISTS)).encode()).hexdigest()[:16]
_START = "story"


class Story(NamedTuple):
    """A story and the natural logarithm of its probability."""

    text: str
    log_probability: float

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The story cut into pieces, each with the skill it takes and what it costs in nats; see `Choice`."""
        return _parser().derivations(self.text)[0].choices


class Score(NamedTuple):
    """How probable a text is, and where it stops being a story (an offset in characters), or None if it is one."""

    log_probability: float
    failure_offset: int | None


def story(seed: int, index: int) -> Story:
    """Story number `index` of the endless collection `seed`."""
    return Story(*_sampler().sample(seed, index))


def documents(seed: int, start: int = 0) -> Iterator[Story]:
    """The stories of `seed` from number `start` on, without end."""
    sample = _sampler().sample
    while True:
        yield Story(*sample(seed, start))
        start += 1


def score(text: str) -> Score:
    """The exact log-probability (nats) of any text; -inf, and the first character no story has there, if it is none."""
    found = _parser().derivations(text)
    if not found:
        return Score(-math.inf, _parser().reach(text))
    best = max(derivation.log_probability for derivation in found)
    return Score(best + math.log(sum(math.exp(d.log_probability - best) for d in found)), None)


def log_probability(text: str) -> float:
    """The exact log-probability (nats) of any text; -inf if it is not a story."""
    return score(text).log_probability


def proofread(text: str) -> Proof:
    """How any text reads: its sentences, and each word that should have been another; see `proofreader`."""
    return _proofreader().read(text)


@cache
def entropy() -> float:
    """The expected -log p of a story in nats, exactly: the best loss per story that any model can reach."""
    return analysis.entropy(tree())


@cache
def tree() -> tuple[Node, ...]:
    """The whole grammar, read."""
    return Reader(RULES, LISTS).read(_START)


@cache
def _sampler() -> Sampler:
    return Sampler(tree())


@cache
def _parser() -> Parser:
    return Parser(tree())


@cache
def _proofreader() -> Proofreader:
    return Proofreader(tree())
