"""A plain-words diagnosis of a run: what went wrong, with the numbers, and what to do.

Pure functions of what the run wrote. A healthy run has no finding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tiny_transformer.reports.diagnosis import learning, running
from tiny_transformer.reports.diagnosis.evidence import Evidence, Finding
from tiny_transformer.reports.run_reader import RunFiles, state_of

# The most important first.
CHECKS: tuple[Callable[[Evidence], Finding | None], ...] = (
    learning.below_floor,
    learning.rate_too_high,
    learning.rate_too_low,
    learning.stuck,
    running.loss_scale_collapsed,
    learning.overfitting,
    learning.dead_parts,
    learning.no_warmup,
    learning.small_batch,
    learning.always_clipped,
    running.data_repeated,
    running.stopped_before_decay,
    running.slowed_down,
    running.overhead,
    running.small_validation,
)
# What follows from a finding is not told beside it.
EXPLAINS = {
    "below the floor": {"overfitting", "rate too high", "batch too small"},
    "rate too high": {"stuck", "no warm-up", "batch too small", "clipped every step", "overfitting"},
    "rate too low": {"stuck", "clipped every step"},
    "batch too small": {"clipped every step"},
}
HEALTHY = f"Nothing unusual: {len(CHECKS)} checks of the loss, the updates, the data and the time found nothing wrong."
TOO_SHORT = "Too few steps were logged to judge this run."


def diagnose(evidence: Evidence) -> list[Finding]:
    """What is wrong with a run, the most important first."""
    with np.errstate(all="ignore"):  # absurd numbers in a damaged log give absurd comparisons, not warnings
        found = [finding for check in CHECKS if (finding := check(evidence)) is not None]
    explained = set[str]().union(*(EXPLAINS.get(finding.key, set()) for finding in found))
    return [finding for finding in found if finding.key not in explained]


def diagnose_run(run: RunFiles) -> list[Finding]:
    """The diagnosis of a run directory; what was read from it is not trusted."""
    info = run.newest.info if run.newest else {}
    return diagnose(Evidence(run.log, run.config, info, state_of(run.path, run.checkpoints)))
