"""Whether two models differ, judged by what each pays for the same documents: paired bootstrap intervals.

A figure of two models is a ratio of sums over documents, nats to bytes. Documents are drawn with replacement, always
the same ones for both models, so what makes a document hard for every model cancels. The interval is studentized
(bootstrap-t): each resampled difference is divided by its own standard error, which keeps the promised coverage where
documents differ much in length, and with as few as twenty of them. Only numpy is needed.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 12.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tiny_transformer.evaluation.studentized_range import studentized_range

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MIN_DOCUMENTS = 20  # with fewer, the interval no longer holds what it promises
_CHUNK_ELEMENTS = 2**22  # of a table of resampled counts


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval; NaN where there are too few documents for one."""

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether there were documents enough."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Difference:
    """What one model pays more than another, in bits per byte, or nats per case.

    Attributes:
        interval: of the difference between these very weights, over documents.
        seed_margin: the difference that seeds of one config stay below in 95 % of cases; 0 where that is no question,
            as for two checkpoints of one run.
        num_models: among which these two were found to be the best and another: of many equal ones, the best and the
            worst lie further apart than any two.
    """

    interval: Interval
    seed_margin: float = 0.0
    num_models: int = 2

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference`, or `not known` with too few documents.

        Chance of documents and chance of the seed are independent, so their widths add as the sides of a right angle.
        """
        value, low, high = self.interval.value, self.interval.low, self.interval.high
        if not self.interval.is_known:
            return "not known"
        towards_zero = value - low if value > 0 else high - value
        widened = towards_zero * studentized_range(self.num_models) / studentized_range(2)
        if abs(value) <= math.hypot(widened, self.seed_margin):
            return "no difference"
        return "worse" if value > 0 else "better"


def ratio_interval(values: np.ndarray, weights: np.ndarray, *, seed: int = 0) -> Interval:
    """sum(values) / sum(weights) with its 95 % interval over documents.

    Args:
        values: (N,) of each document, such as the nats that one model pays more than another.
        weights: (N,) positive, such as its bytes.
        seed: of the resampling.
    """
    values, weights = values.astype(np.float64), weights.astype(np.float64)
    count, ratio = len(values), float(values.sum() / weights.sum())
    if count < MIN_DOCUMENTS:
        return Interval(ratio, math.nan, math.nan)
    centred = values - ratio * weights  # what is left of each document; sums to 0
    error = float(_error(centred @ centred, weights.sum(), count))
    if error <= 1e-12 * max(abs(ratio), float(np.abs(values).max() / weights.mean())):  # all documents say the same
        return Interval(ratio, ratio, ratio)
    # Of a resample only these sums are needed: the deviation of its ratio, and that ratio's own standard error.
    sums = np.stack([centred, weights, centred**2, centred * weights, weights**2], axis=1)  # (N, 5)
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK_ELEMENTS // count)
    found = []
    for first in range(0, NUM_RESAMPLES, size):
        rows = min(size, NUM_RESAMPLES - first)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)  # how often each was drawn
        c, w, cc, cw, ww = (counts @ sums).T
        shift = c / w  # the resampled ratio less the ratio
        left = np.maximum(cc - 2 * shift * cw + shift**2 * ww, 0.0)  # squares about the resampled ratio
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(shift / _error(left, w, count))
    studentized = np.concatenate(found)
    studentized = studentized[np.isfinite(studentized)]
    low, high = np.quantile(studentized, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(ratio, ratio - float(high) * error, ratio - float(low) * error)


def _error(squares: np.ndarray | float, total: np.ndarray | float, count: int) -> np.ndarray:
    """The standard error of a ratio, by its squared residuals (linearised)."""
    return np.sqrt(np.asarray(squares) * count / (count - 1)) / total


@dataclass(frozen=True)
class SeedSpread:
    """How much seeds of one config differ.

    Attributes:
        share: the standard deviation of bits per byte, as a share of them.
        degrees: of freedom, where it was measured; None where it is taken as known.
    """

    share: float
    degrees: int | None = None

    def margin(self, bits_per_byte: float, num_seeds: int = 2) -> float:
        """What the best and the worst of so many seeds of one config differ by in at most 95 of 100 cases."""
        return studentized_range(num_seeds, self.degrees) * self.share * bits_per_byte


# On ten seeds of the demo: docs/LOG.md, "Ten seeds of one config"; as uncertain as a spread of ten is.
ASSUMED_SPREAD = SeedSpread(0.0088, 9)


def measured_spread(groups: Sequence[Sequence[float]]) -> SeedSpread | None:
    """The spread from the bits per byte of runs that differ in their seed alone, a list for each config; None where no
    config has two."""
    shares = [np.array(group) / np.mean(group) for group in groups if len(group) > 1]
    degrees = sum(len(one) - 1 for one in shares)
    if not degrees:
        return None
    return SeedSpread(math.sqrt(sum(float(((one - 1) ** 2).sum()) for one in shares) / degrees), degrees)
