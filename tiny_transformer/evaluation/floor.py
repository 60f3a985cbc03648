"""The alarm: no honest model beats the floor by more than luck.

Where the exact probability p of each text is known, a model q that has never seen the texts satisfies E[q / p] <= 1,
because the probabilities that q gives to all texts sum to at most 1. By Markov's inequality, then,

    P(gain >= ln(1 / a)) <= a,    gain = (-ln p) - (-ln q) in nats,

for one text, or for all texts together (the gains add up). So luck has a size that needs no assumption about how the
gains are spread: with a = 0.001, an honest model beats the floor by more than 6.9 nats *in total* once in a thousand
evaluations, however many texts are scored. The mean difference and its standard error are told beside it; they say how
far a model is from the floor, but as an alarm they would be blunter, for a model near the floor has a tiny spread.

A sum can hide a few memorised texts among many that cost more than they must, so the largest single gain has a bound of
its own, widened by the number of texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tiny_transformer.data.meta import SplitMeta

CHANCE = 0.001  # of a false alarm, in all
CAUSES = (
    "attention sees tokens that come later (the mask leaks)",
    "labels are not the next token (they are not shifted by one)",
    "the model was trained on these very texts (training and validation overlap)",
)


@dataclass(frozen=True)
class FloorCheck:
    """A model beside the floor, on texts whose exact probability is known.

    Attributes:
        num_texts: how many.
        nats_per_text, exact_per_text: what the model pays, and the least one can pay, on average.
        standard_error: of the mean of their paired difference; None for fewer than two texts.
        total_gain: nats by which the model beats the floor over all texts; negative for every honest model but a lucky
            one.
        largest_gain: the same on the text where it is largest; None where single texts were not measured.
    """

    num_texts: int
    nats_per_text: float
    exact_per_text: float
    standard_error: float | None
    total_gain: float
    largest_gain: float | None

    @property
    def lost_per_text(self) -> float:
        """Mean paired difference in nats: what is still to learn."""
        return self.nats_per_text - self.exact_per_text

    @property
    def rings(self) -> bool:
        """Whether this is better than luck allows."""
        if self.largest_gain is None:
            return self.total_gain > math.log(1 / CHANCE)
        share = CHANCE / 2  # half the chance for the sum, half for the best of all texts
        return self.total_gain > math.log(1 / share) or self.largest_gain > math.log(self.num_texts / share)

    def warning(self) -> str:
        """The alarm in words; only to be shown when it rings."""
        if self.total_gain > 0:
            what = f"{self.total_gain:,.1f} nats in all on {self.num_texts:,} stories"
        else:
            what = f"{self.largest_gain:,.1f} nats on one of {self.num_texts:,} stories"
        causes = "; ".join(f"({i}) {cause}" for i, cause in enumerate(CAUSES, 1))
        return f"too good to be true: this loss beats the best one possible by {what}. Look for one of these: {causes}."


def check_texts(model_nats: np.ndarray, exact_nats: np.ndarray) -> FloorCheck:
    """Compare what a model pays for each text with the text's exact -log p; both (texts,) in nats."""
    gains = exact_nats - model_nats
    count = len(gains)
    return FloorCheck(
        num_texts=count,
        nats_per_text=float(model_nats.mean()),
        exact_per_text=float(exact_nats.mean()),
        standard_error=float(gains.std(ddof=1) / math.sqrt(count)) if count > 1 else None,
        total_gain=float(gains.sum()),
        largest_gain=float(gains.max()),
    )


def check_split(loss_sum: float, num_scored: int, split: SplitMeta, vocab_size: int) -> FloorCheck | None:
    """Compare the loss of a whole split with its floor; None where the floor is not known.

    A token that is no target (the first of a split, or of each document when documents are packed) is charged to the
    model as a blind guess among `vocab_size` tokens. That is still a probability, so the bound holds.

    Args:
        loss_sum: nats over all targets.
        num_scored: how many targets that were; the whole split, each once.
        split: what meta.json says of it.
        vocab_size: of the model.
    """
    if split.floor is None:
        return None
    exact = split.floor["nats_per_story"]
    paid = loss_sum + (split.num_tokens - num_scored) * math.log(vocab_size)
    return FloorCheck(
        num_texts=split.num_documents,
        nats_per_text=paid / split.num_documents,
        exact_per_text=exact,
        standard_error=None,
        total_gain=exact * split.num_documents - paid,
        largest_gain=None,
    )
