"""What the learning rate, the batch and the clipping of a run did to it. Each check gives one finding or none."""

from __future__ import annotations

import math

import numpy as np

from tiny_transformer.reports.diagnosis.evidence import MIN_ROWS, Evidence, Finding
from tiny_transformer.reports.diagnosis.learning import MIN_STEPS, is_falling, stuck_level
from tiny_transformer.reports.formats import count, loss
from tiny_transformer.reports.run_reader import number

# A smoothed loss this far above its lowest has lost what was learnt; smoothing leaves a fraction of a step's jitter.
CLIMB = 0.1
CLIMB_IN_JITTERS = 4
# Untrained weights guess about evenly, and their loss is that of a blind guess to a hundredth. What ends above it was
# made worse by its training.
WORSE_THAN_BLIND = 0.03
LEAP = 0.2  # above the blind guess: a loss that leapt so far on the way has lost all that was learnt before
# One update that moves the weights by this share of their norm: ten of them replace everything. The usual advice is a
# thousandth; Adam starts near rate / size of a weight, a few hundredths at most.
VIOLENT_UPDATE = 0.1
REPLACED = 0.6  # one that moves them so far leaves little of what they held, whatever the loss does
GOOD_FIRST_UPDATE = 0.02
# All updates of a run together, had they all gone one way, as a share of the weights: below it the weights are still
# what chance made them.
MOVED_NOWHERE = 0.05
# Clipping is for single steps. Where even the usual gradient is twice the limit, nearly each step is cut, and the
# length of the gradient means nothing any more.
CLIPPED_SHARE = 0.95
CLIPPED_BY = 2.0
# The loss of T tokens is sure to 1 / sqrt(T) of itself: 8 % at 150. Tokens of one text resemble each other, so that a
# larger batch of few texts jumps as well, and small models learn well from 1,000 tokens a step; hence both conditions.
NOISY = 0.08
FEW_TOKENS = 256
FEWEST_TOKENS = 64  # need no measuring: their loss is sure to an eighth of itself at best
EARLY = 0.1  # share of the run in which a missing warm-up shows
# Above the loss of the first step: untrained weights guess about evenly, and only a leap makes that worse.
OVERSHOOT = 0.02


def diverged(e: Evidence) -> Finding | None:
    """The run ended because its numbers were none."""
    step = number(e.not_finite, "step")
    if step is None:
        return None
    words = f"Not a number since step {count(step)}: {str(e.not_finite.get('figure'))[:80]}."
    if e.largest_update > VIOLENT_UPDATE or _is_worse_than_blind(e):
        more = f": {violence}" if (violence := _violence(e)) else ""
        return Finding("diverged", f"{words} The learning rate is too high{more}.", _lower_rate(e))
    return Finding(
        "diverged",
        f"{words} Nothing was wrong in the steps that were logged before.",
        f"Look at that step: tiny-transformer replay RUN --step {step:.0f} names the first bad tensor and the texts "
        "of its batch. Then try precision=fp32, or a lower learning rate.",
    )


def rate_too_high(e: Evidence) -> Finding | None:
    """The loss climbed back, ended worse than untrained weights, or never got anywhere because the updates were
    violent."""
    steps, smooth = e.smooth_loss
    if not len(smooth):
        return None
    low = int(np.argmin(smooth))
    is_far = smooth[-1] - smooth[low] > CLIMB_IN_JITTERS * e.jitter
    if len(smooth) >= MIN_ROWS:
        is_far = is_far or smooth[-1] > (1 + CLIMB) * smooth[0]
    is_violent = e.largest_update > VIOLENT_UPDATE
    if _is_worse_than_blind(e):
        words = f"the loss is {loss(smooth[-1])} at the end, and untrained weights that guess blindly have "
        words += loss(e.uniform_nats)
    elif is_far and smooth[-1] > (1 + CLIMB) * smooth[low]:
        words = f"the loss fell to {loss(smooth[low])} by step {count(steps[low])} and is {loss(smooth[-1])} at the end"
    elif is_violent and stuck_level(e) is not None:
        words = f"the loss came no lower than {loss(smooth[low])}"
    elif is_violent and (leap := _late_leap(e)) is not None:
        words = f"at step {count(leap[0])} the loss leapt to {loss(leap[1])}, above that of untrained weights"
    elif e.largest_update > REPLACED:
        words = "a single update replaced most of what a layer held"
    else:
        return None
    more = f". {violence[0].upper()}{violence[1:]}" if (violence := _violence(e)) else ""
    return Finding("rate too high", f"The learning rate is too high: {words}{more}.", _lower_rate(e))


def _is_worse_than_blind(e: Evidence) -> bool:
    """Whether the loss ends above that of a blind guess, and was not above it before any training."""
    _, values = e.loss
    if e.uniform_nats is None or not len(values):
        return False
    limit, end = (1 + WORSE_THAN_BLIND) * e.uniform_nats, float(e.smooth_loss[1][-1])
    if e.largest_update > VIOLENT_UPDATE:
        return end > limit
    return end > limit + 2 * e.sampling_error * e.uniform_nats and float(values[0]) < end


def _late_leap(e: Evidence) -> tuple[float, float] | None:
    """Step and height of a leap far above the blind guess, after a warm-up."""
    steps, values = e.loss
    if e.uniform_nats is None or not e.warmup_steps:
        return None
    peak = int(np.argmax(values))
    is_leap = peak > 0 and values[peak] > (1 + LEAP) * max(e.uniform_nats, float(values[0]))
    return (float(steps[peak]), float(values[peak])) if is_leap else None


def _violence(e: Evidence) -> str:
    """What the largest update did; nothing when that was in order."""
    if e.largest_update <= VIOLENT_UPDATE:
        return ""
    share = e.largest_update
    size = f"by {share:.0%} of their size" if share < 2 else f"by {share:,.0f} times their size"
    if share > 1e6:
        size = "beyond all measure"
    return f"one update changed a layer's weights {size} (a tenth of a percent is usual)"


def _lower_rate(e: Evidence) -> str:
    """The remedy, with a number where the largest update gives one."""
    usual = {"learning_rate": 3e-3} | ({"muon_learning_rate": 1e-2} if e.is_muon else {})
    rates = {key: rate for key in usual if (rate := e.setting(key))}
    if not rates or e.largest_update <= VIOLENT_UPDATE:
        return "Try a third of the learning rate, or a longer warm-up."
    key = max(rates, key=lambda key: rates[key] / usual[key])
    calm = rates[key] * GOOD_FIRST_UPDATE / e.largest_update or usual[key]
    return f"Try training.{key} {calm:.1g}; it was {rates[key]:g}."


def rate_too_low(e: Evidence) -> Finding | None:
    """The weights hardly left where chance put them, and the loss is not done falling."""
    steps, _, ratios = e.by_part("update_ratios", blocks_only=True)
    if len(steps) < 2 or steps[-1] < MIN_STEPS or not len(e.loss[0]) or np.isnan(ratios).all():
        return None
    known = ratios[:, ~np.isnan(ratios).any(axis=0)]
    if not known.size:
        return None
    paths = steps[0] * known[0] + np.trapezoid(known, steps, axis=0)  # as if all updates went one way
    moved = float(np.median(paths))
    if moved >= MOVED_NOWHERE or not (is_falling(e) or stuck_level(e)):
        return None
    return Finding(
        "rate too low",
        f"The learning rate is too low: all {count(steps[-1])} updates together moved the layers' weights by at most "
        f"{100 * moved:.1g}% of their size, and the loss was still at {loss(e.end_loss)}.",
        "Try ten times the learning rate.",
    )


def no_warmup(e: Evidence) -> Finding | None:
    """The first updates made the model worse than it was before any training."""
    steps, values = e.loss
    rates = e.curve("learning_rate")[1]
    if len(values) < 3 or not len(rates) or e.warmup_steps is None or e.warmup_steps > 1:
        return None
    early = values[steps <= max(EARLY * steps[-1], steps[min(4, len(steps) - 1)])]
    peak = int(np.argmax(early))
    start = min(x for x in (float(values[0]), e.uniform_nats) if x is not None)
    if early[peak] - start < max(OVERSHOOT * start, CLIMB_IN_JITTERS * e.jitter):
        return None
    muon = e.setting("muon_learning_rate") if e.is_muon else None
    ran_at = f"{rates[0]:.2g}, the full learning rate" + (f" (and Muon at {muon:g})" if muon else "")
    return Finding(
        "no warm-up",
        f"The loss rose to {loss(early[peak])} at step {count(steps[peak])}, above the {loss(start)} of untrained "
        f"weights: the first steps ran at {ran_at}.",
        "Give it a warm-up (training.warmup_fraction 0.05).",
    )


def small_batch(e: Evidence) -> Finding | None:
    """A step sees so little text that its loss is mostly chance."""
    _, values = e.loss
    tokens = e.tokens_per_step
    if len(values) < 3 or tokens is None or tokens > FEW_TOKENS:
        return None
    level = float(np.median(values[len(values) // 2 :]))
    is_measured = len(values) >= 2 * MIN_ROWS
    if level <= 0 or (tokens > FEWEST_TOKENS and (not is_measured or e.jitter < NOISY * level)):
        return None
    size = f"{count(tokens)} token" + ("" if tokens == 1 else "s")
    words = f"the loss of {size} is sure to about {e.sampling_error:.0%} of itself"
    if is_measured and e.jitter >= NOISY * level:
        words = f"from one step of {size} to the next the loss jumps by {e.jitter / level:.0%} of itself"
    return Finding(
        "batch too small",
        f"The batch is too small: {words}, so each update is mostly chance.",
        "Raise training.micro_batch_size, or training.grad_accum_steps where memory is short.",
    )


def always_clipped(e: Evidence) -> Finding | None:
    """Nearly each gradient is cut, and by much."""
    limit = e.setting("grad_clip")
    steps, norms = e.curve("grad_norm")
    norms = norms[steps > max(e.warmup_steps or 0, 0.1 * steps[-1])] if len(steps) else norms
    if not limit or len(norms) < 3 or steps[-1] < MIN_STEPS:  # the gradients of untrained weights are long
        return None
    share, median = float(np.mean(norms > limit)), float(np.median(norms))
    if share < CLIPPED_SHARE or median < CLIPPED_BY * limit or not math.isfinite(median):
        return None
    return Finding(
        "clipped every step",
        f"The gradient was clipped in {share:.0%} of the steps: its norm is {median:.3g} as a rule, the limit "
        f"{limit:g}.",
        f"Clipping is meant for single steps: raise training.grad_clip above {median:.2g}, or lower the learning rate "
        "if the loss is unsteady.",
    )
