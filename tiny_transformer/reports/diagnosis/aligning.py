"""What a run of alignment gives away that its loss does not. Each check gives one finding or none.

They read the evaluations, which are logged whatever `log_steps` says; the thresholds are those of the alarms in the
log (`evaluation/alarms.py`). Of a run without evaluations the training pairs tell whether both answers are forgotten.
"""

from __future__ import annotations

import numpy as np

from tiny_transformer.evaluation.alarms import FALL, GROWTH, KL, alarms
from tiny_transformer.reports.diagnosis.evidence import Evidence, Finding
from tiny_transformer.reports.formats import count

SHIFTS = ("chosen_shift", "rejected_shift", "chosen_logp", "rejected_logp")


def likelihoods_fall(e: Evidence) -> Finding | None:
    """The margin grows, and yet both answers have become less likely."""
    step, chosen, rejected = _rung(e, "alarm_likelihoods", "val_chosen_shift", "val_rejected_shift")
    if not len(e.curve("alarm_likelihoods")[0]):
        step, chosen, rejected = _both_fall_in_training(e)
    if step is None:
        return None
    return Finding(
        "both likelihoods fall",
        f"Both answers are forgotten: by step {count(step)} the chosen answers have lost {-chosen:.1f} nats and the "
        f"rejected ones {-rejected:.1f} against the reference, more than {FALL:.0%} of each. The margin grows all the "
        "same, and what gains likelihood is neither of them.",
        "Try a larger align.beta, a lower learning rate or fewer steps; align.method orpo learns the chosen answers "
        "themselves.",
    )


def kl_runs_away(e: Evidence) -> Finding | None:
    """The model has left its reference."""
    step, divergence, _ = _rung(e, "alarm_kl", "val_kl", "val_kl")
    if step is None:
        return None
    return Finding(
        "far from the reference",
        f"The model runs away from its reference: KL is {divergence:.2f} nats per token at step {count(step)}, and "
        f"{KL:g} is much.",
        "Try a larger align.beta, a lower learning rate or fewer steps, and read its answers.",
    )


def answers_grow(e: Evidence) -> Finding | None:
    """Answers become longer and longer."""
    step, ratio, _ = _rung(e, "alarm_length", "val_length_ratio", "val_length_ratio")
    if step is None:
        return None
    return Finding(
        "answers grow",
        f"The answers grow: at step {count(step)} they are {ratio:.1f} times as long as the reference's (the limit is "
        f"{GROWTH:g}). Where chosen answers are the longer ones, length itself is learnt.",
        "Compare the lengths of chosen and rejected answers in the data; leave out pairs that differ in length alone.",
    )


def _both_fall_in_training(e: Evidence) -> tuple[float | None, float, float]:
    """As `_rung`, by the means over the last quarter of the logged steps."""
    steps, _ = e.curve("chosen_shift")
    if not len(steps):
        return None, 0.0, 0.0
    late = -(-len(steps) // 4)
    means = {f"val_{key}": float(np.mean(e.curve(key)[1][-late:])) for key in SHIFTS}
    if not alarms(means)["alarm_likelihoods"]:
        return None, 0.0, 0.0
    return float(steps[-1]), means["val_chosen_shift"], means["val_rejected_shift"]


def _rung(e: Evidence, alarm: str, *keys: str) -> tuple[float | None, float, float]:
    """The step of the last evaluation, if its alarm rings, and two figures of it."""
    steps, values = e.curve(alarm)
    if not len(steps) or not values[-1]:
        return None, 0.0, 0.0
    first, second = (e.curve(key)[1] for key in keys)
    return (float(steps[-1]), float(first[-1]), float(second[-1])) if len(first) and len(second) else (None, 0.0, 0.0)
