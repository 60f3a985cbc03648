"""A plain-words diagnosis of a run: what went wrong, with the numbers, and what to do.

Pure functions of what the run wrote. A healthy run has no finding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tiny_transformer.errors import in_words
from tiny_transformer.reports.diagnosis import aligning, learning, rates, rewards, running
from tiny_transformer.reports.diagnosis.evidence import Evidence, Finding
from tiny_transformer.reports.run_reader import RunFiles, state_of

# The most important first.
CHECKS: tuple[Callable[[Evidence], Finding | None], ...] = (
    rates.diverged,
    learning.below_floor,
    rates.rate_too_high,
    rates.rate_too_low,
    learning.stuck,
    running.loss_scale_collapsed,
    learning.overfitting,
    learning.dead_parts,
    rates.no_warmup,
    rates.small_batch,
    rates.always_clipped,
    running.data_repeated,
    running.stopped_before_decay,
    running.slowed_down,
    running.overhead,
    running.small_validation,
    rewards.unjudged,
    rewards.no_signal,
    rewards.rewards_stuck,
    rewards.lengths_growing,
    rewards.same_words,
    rewards.kl_running_away,
)
# Those that a stage must name to have them.
OF_STAGES: tuple[Callable[[Evidence], Finding | None], ...] = (
    aligning.likelihoods_fall,
    aligning.kl_runs_away,
    aligning.answers_grow,
)
# What follows from a finding is not told beside it.
RATE_TOO_HIGH = {"stuck", "no warm-up", "batch too small", "clipped every step", "overfitting", "dead layers"}
EXPLAINS = {
    "diverged": {*RATE_TOO_HIGH, "rate too high"},
    "below the floor": {"overfitting", "rate too high", "batch too small"},
    "rate too high": RATE_TOO_HIGH,
    "rate too low": {"stuck", "clipped every step"},
    "batch too small": {"clipped every step", "stuck"},
    "no signal": {"rewards stuck"},
}
HEALTHY = (
    "Nothing unusual in the training: no check of loss, updates, data and time found anything wrong. "
    "How good the model is, the loss tells."
)
TOO_SHORT = "Nothing unusual in what was logged, but that is too few steps to call this run healthy."


def diagnose(evidence: Evidence) -> list[Finding]:
    """What is wrong with a run, the most important first."""
    with np.errstate(all="ignore"):  # absurd numbers in a damaged log give absurd comparisons, not warnings
        found = [finding for check in _checks(evidence) if (finding := _guarded(check, evidence)) is not None]
    explained = set[str]().union(*(EXPLAINS.get(finding.key, set()) for finding in found))
    return [finding for finding in found if finding.key not in explained]


def _checks(evidence: Evidence) -> list[Callable[[Evidence], Finding | None]]:
    """Those that apply to the run's stage: all, or those it names in run_info.json."""
    named = evidence.info.get("checks")
    if not isinstance(named, list):
        return list(CHECKS)
    return [check for check in (*CHECKS, *OF_STAGES) if getattr(check, "__name__", "") in named]


def _guarded(check: Callable[[Evidence], Finding | None], evidence: Evidence) -> Finding | None:
    """What a check finds; one that fails says so, and takes neither the others nor the run with it."""
    try:
        return check(evidence)
    except Exception as error:
        name = getattr(check, "__name__", "").replace("_", " ")
        return Finding(
            f"check failed: {name}",
            f"The check \u201c{name}\u201d failed: {in_words(error)}.",
            "The run is not harmed, and all other checks were made. Please report this line.",
        )


def diagnose_run(run: RunFiles) -> list[Finding]:
    """The diagnosis of a run directory; what was read from it is not trusted."""
    info = run.newest.info if run.newest else {}
    return diagnose(Evidence(run.log, run.config, info, state_of(run.path, run.checkpoints), run.not_finite))
