"""Which skill a model still lacks, and where in the story: its loss beside the exact cost of each choice.

A story is cut into pieces, each a choice of the grammar with the skill it takes and its exact cost (`stories.Choice`).
What the model pays is charged to them in three steps:

1. A token's loss is spread evenly over the characters it stands for, since a token may reach over several pieces.
   Blanks get no part of it, unless the token is nothing else: many tokens begin with the space before their word.
2. A piece gets what falls on its characters.
3. A choice without characters of its own shows in the next piece that has some (which plot it is shows in the plot's
   first words). All choices that show in one piece share equally what was lost there beyond their exact costs: the loss
   does not tell them apart.

The end token is a piece of its own, `stop`, after the last. So the charges of a story sum to the model's loss on it,
and what is lost (charge minus exact cost) to its distance from the floor. A single piece can come out below zero: a
model may pay for a choice a few characters before or after the grammar does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tiny_transformer.data.stories import Choice
from tiny_transformer.evaluation.floor import FloorCheck, check_texts
from tiny_transformer.evaluation.meanings import MEANINGS, STOP
from tiny_transformer.evaluation.stories import Reading, TokenCosts, ToldStory, story_costs
from tiny_transformer.models.contract import CausalLM

NUM_PARTS = 10


@dataclass(frozen=True)
class Loss:
    """What is lost on one skill or one part of the story, in nats per story.

    Attributes:
        name: the skill, or the part as `20-30 %`.
        pieces: how many pieces of this kind a story has on average.
        exact: the least one can pay.
        lost: what the model pays beyond it.
        standard_error: of `lost`; NaN for a single story.
        share: of everything that is lost.
    """

    name: str
    pieces: float
    exact: float
    lost: float
    standard_error: float
    share: float


@dataclass(frozen=True)
class SkillReport:
    """Where a model stands on a set of stories: all of it, by skill (the worst first), and by tenths of the story."""

    check: FloorCheck
    skills: list[Loss]
    parts: list[Loss]


class Charge(NamedTuple):
    """What one piece costs, exactly and in this model, and where in the story it shows (a share of its length)."""

    tag: str
    exact: float
    paid: float
    start: float
    end: float


def measure_skills(model: CausalLM, told: Sequence[ToldStory], reading: Reading) -> SkillReport:
    """What the model, in evaluation mode, loses on each skill and in each tenth of the stories.

    Raises:
        UserError: see `story_costs`.
    """
    costs = story_costs(model, [story.text for story in told], reading)
    return report([charge(story, cost) for story, cost in zip(told, costs, strict=True)])


def chances(model: CausalLM, told: Sequence[ToldStory], reading: Reading) -> dict[str, float]:
    """For each skill the chance that a model gives what is right beyond what it must leave open: exp of minus the nats
    lost on a piece, 1 for what is known for certain. Its training mode is put back.

    Raises:
        UserError: see `story_costs`.
    """
    was_training = model.training
    model.eval()
    try:
        rows = measure_skills(model, told, reading).skills
    finally:
        model.train(was_training)
    return {row.name: min(1.0, math.exp(-max(0.0, row.lost / row.pieces))) for row in rows}


def charge(story: ToldStory, costs: TokenCosts) -> list[Charge]:
    """What the model pays for each piece of a story, as the head of this module says.

    Characters of a token that the model never predicts are taken to cost what is missing to the exact cost of the
    choices that show there, if anything is.
    """
    length = len(story.text)
    by_character = _spread(story.text, costs)
    charges: list[Charge] = []
    together: list[Choice] = []
    for piece in (*story.choices, Choice(length, length, STOP, 0.0)):
        together.append(piece)
        if piece.start == piece.end and piece.tag != STOP:
            continue
        here = costs.nats[-1:] if piece.tag == STOP else by_character[piece.start : piece.end]
        exact = math.fsum(choice.cost for choice in together)
        paid = float(np.nansum(here))
        if np.isnan(here).any():
            paid = max(paid, exact)
        extra = (paid - exact) / len(together)
        charges += [
            Charge(choice.tag, choice.cost, choice.cost + extra, piece.start / length, piece.end / length)
            for choice in together
        ]
        together = []
    return charges


def _spread(text: str, costs: TokenCosts) -> np.ndarray:
    """The loss of each character of `text`, in nats; a token without characters (half of one) counts with the next."""
    ends, count = costs.ends, len(costs.ends)
    lengths = np.diff(ends, prepend=0)
    shown_in = np.minimum(np.searchsorted(ends, ends - lengths, side="right"), count - 1)
    nats = np.bincount(shown_in, weights=costs.nats[:-1], minlength=count)
    token = np.repeat(np.arange(count), lengths)  # of each character
    weights = np.array([not character.isspace() for character in text], dtype=float)
    only_blanks = np.bincount(token, weights, minlength=count) == 0
    weights[only_blanks[token]] = 1.0
    return weights * nats[token] / np.bincount(token, weights, minlength=count)[token]


def report(stories: Sequence[Sequence[Charge]]) -> SkillReport:
    """The charges of many stories as means with standard errors."""
    names = list(MEANINGS)
    count = len(stories)
    pieces, exact, lost = (np.zeros((count, len(names))) for _ in range(3))
    part_exact, part_lost = (np.zeros((count, NUM_PARTS)) for _ in range(2))
    for i, charges in enumerate(stories):
        for item in charges:
            skill = names.index(item.tag)
            pieces[i, skill] += 1
            exact[i, skill] += item.exact
            lost[i, skill] += item.paid - item.exact
            overlap = _overlap(item.start, item.end)
            part_exact[i] += overlap * item.exact
            part_lost[i] += overlap * (item.paid - item.exact)
    seen = [i for i in np.argsort(-lost.mean(axis=0), kind="stable") if pieces[:, i].any()]
    parts = [f"{100 * i // NUM_PARTS}-{100 * (i + 1) // NUM_PARTS} %" for i in range(NUM_PARTS)]
    ones = np.ones((count, NUM_PARTS))
    return SkillReport(
        check=check_texts((exact + lost).sum(axis=1), exact.sum(axis=1)),
        skills=_losses([names[i] for i in seen], pieces[:, seen], exact[:, seen], lost[:, seen]),
        parts=_losses(parts, ones, part_exact, part_lost),
    )


def _losses(names: list[str], pieces: np.ndarray, exact: np.ndarray, lost: np.ndarray) -> list[Loss]:
    """Columns of (stories, names) arrays as their means."""
    count = len(lost)
    means = lost.mean(axis=0)
    errors = lost.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(names), np.nan)
    total = float(means.sum())
    return [
        Loss(
            name=name,
            pieces=float(pieces[:, i].mean()),
            exact=float(exact[:, i].mean()),
            lost=float(means[i]),
            standard_error=float(errors[i]),
            share=float(means[i]) / total if total else math.nan,
        )
        for i, name in enumerate(names)
    ]


def _overlap(start: float, end: float) -> np.ndarray:
    """Which share of start..end lies in each part of the story; a place without length lies in one part."""
    edges = np.arange(NUM_PARTS + 1) / NUM_PARTS
    if end > start:
        return np.clip(np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1]), 0, None) / (end - start)
    share = np.zeros(NUM_PARTS)
    share[min(int(start * NUM_PARTS), NUM_PARTS - 1)] = 1.0
    return share
