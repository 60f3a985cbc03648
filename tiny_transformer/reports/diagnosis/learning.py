"""What the loss, the gradient and the updates of a run give away. Each check gives one finding or none.

Thresholds are far from what a healthy run does, so that a finding is worth reading; each says where it comes from.
"""

from __future__ import annotations

import math

import numpy as np

from tiny_transformer.evaluation.floor import CAUSES, CHANCE
from tiny_transformer.reports.diagnosis.evidence import MIN_ROWS, Evidence, Finding
from tiny_transformer.reports.formats import count, loss
from tiny_transformer.reports.run_reader import number, section

# A validation loss that rises by more than this, while the training loss falls. Evaluations of one run read the same
# texts, so only the weights' own wandering moves them: about a hundredth at a constant rate.
OVERFITTING_RISE = 0.02
# A smoothed loss this far above its lowest has lost what was learnt; smoothing leaves a fraction of a step's jitter.
CLIMB = 0.1
CLIMB_IN_JITTERS = 4
# One update that moves the weights by this share of their norm: ten of them replace everything. The usual advice is a
# thousandth; Adam starts near rate / size of a weight, a few hundredths at most.
VIOLENT_UPDATE = 0.1
# All updates of a run together, had they all gone one way, as a share of the weights: below it the weights are still
# what chance made them.
MOVED_NOWHERE = 0.05
STILL_FALLING = 0.01  # of the loss, over the last quarter of the run
# Any context lowers the loss clearly below that of single tokens: in English the letter before is worth a fifth of it.
STUCK = 0.03
MIN_STEPS = 50  # before that a loss may well be where it began
# A healthy small model first learns how often each token occurs, and may stand there, its rate already falling, when a
# run of the default 1e-3 ends after a hundred steps.
MIN_STEPS_FOR_CONTEXT = 120
SILENT_GRADIENT = 1e-7  # of the loudest part's: below it float32 loses it in the sum of squares
# Clipping is for single steps. Where even the usual gradient is twice the limit, nearly each step is cut, and the
# length of the gradient means nothing any more.
CLIPPED_SHARE = 0.95
CLIPPED_BY = 2.0
# The loss of one token spreads about as widely as its mean (a third as widely before much is learnt), so that of T
# independent tokens by 1 / sqrt(T) of it: 8 % at 150. Tokens of one text resemble each other, so that a larger batch of
# few texts jumps as well, and small models learn well from 1,000 tokens a step; hence both conditions.
NOISY = 0.08
FEW_TOKENS = 256
EARLY = 0.1  # share of the run in which a missing warm-up shows
# Above the loss of the first step: untrained weights guess about evenly, and only a leap makes that worse.
OVERSHOOT = 0.02


def overfitting(e: Evidence) -> Finding | None:
    """The validation loss rose while the training loss went on falling."""
    steps, values = e.curve("val_loss")
    at, smooth = e.smooth_loss
    if len(values) < 3 or not len(smooth):
        return None
    best = int(np.argmin(values))
    rise = values[-1] - values[best]
    then, now = np.interp([steps[best], steps[-1]], at, smooth)
    if rise <= OVERFITTING_RISE * values[best] or now >= then:
        return None
    return Finding(
        "overfitting",
        f"Overfitting since step {count(steps[best])}: the validation loss was {loss(values[best])} there and is "
        f"{loss(values[-1])} at the end, while the training loss fell from {loss(then)} to {loss(now)}.",
        "Use the checkpoint `best`, which is from before. More text helps most; then fewer steps, a smaller model, or "
        "training.dropout.",
    )


def rate_too_high(e: Evidence) -> Finding | None:
    """The loss climbed back, or never got anywhere because the first updates were violent."""
    steps, smooth = e.smooth_loss
    if len(smooth) < MIN_ROWS:
        return None
    low = int(np.argmin(smooth))
    is_far = smooth[-1] - smooth[low] > CLIMB_IN_JITTERS * e.jitter or smooth[-1] > (1 + CLIMB) * smooth[0]
    climbed = is_far and smooth[-1] > (1 + CLIMB) * smooth[low]
    _, _, ratios = e.by_part("update_ratios", blocks_only=True)
    largest = float(np.nanmax(np.nanmedian(ratios, axis=1))) if ratios.size and not np.isnan(ratios).all() else 0.0
    violent = largest > VIOLENT_UPDATE and _stuck_level(e) is not None
    if not climbed and not violent:
        return None
    words = f"The learning rate is too high: the loss fell to {loss(smooth[low])} by step {count(steps[low])} and is "
    words += f"{loss(smooth[-1])} at the end."
    if not climbed:
        words = f"The learning rate is too high: the loss came no lower than {loss(smooth[low])}."
    if largest > VIOLENT_UPDATE:
        words += (
            f" One update changed a layer's weights by {largest:.0%} of their size (a tenth of a percent is usual)."
        )
    return Finding("rate too high", words, "Try a third of the learning rate, or a longer warm-up.")


def rate_too_low(e: Evidence) -> Finding | None:
    """The weights hardly left where chance put them, and the loss is not done falling."""
    steps, _, ratios = e.by_part("update_ratios", blocks_only=True)
    _, smooth = e.smooth_loss
    if len(steps) < MIN_ROWS or steps[-1] < MIN_STEPS or len(smooth) < MIN_ROWS or np.isnan(ratios).all():
        return None
    moved = float(np.nanmedian(np.nanmean(ratios, axis=0)) * steps[-1])
    if moved >= MOVED_NOWHERE or not (_is_falling(e) or _stuck_level(e)):
        return None
    return Finding(
        "rate too low",
        f"The learning rate is too low: all {count(steps[-1])} updates together moved the layers' weights by at most "
        f"{100 * moved:.1g}% of their size, and the loss was still at {loss(smooth[-1])}.",
        "Try ten times the learning rate.",
    )


def stuck(e: Evidence) -> Finding | None:
    """The loss stayed where a model is that does not read what stands before a token."""
    level = _stuck_level(e)
    if level is None or _is_falling(e) or e.loss[0][-1] < MIN_STEPS_FOR_CONTEXT:
        return None
    name, nats = level
    return Finding(
        "stuck",
        f"The model learnt nothing from context: its loss came to {loss(e.smooth_loss[1][-1])}, and {name} has "
        f"{loss(nats)}.",
        "Look at the data (tiny-transformer inspect) and at the labels: is each one the token that follows? Then at "
        "the learning rate. A run of few steps may just have been too short.",
    )


def _is_falling(e: Evidence) -> bool:
    """Whether the loss was still on its way down at the end."""
    steps, smooth = e.smooth_loss
    late = np.interp(steps[-1] - 0.25 * (steps[-1] - steps[0]), steps, smooth)
    return bool(late - smooth[-1] > STILL_FALLING * smooth[-1])


def _stuck_level(e: Evidence) -> tuple[str, float] | None:
    """Which blind guess the loss did not get below, and the loss of that."""
    steps, smooth = e.smooth_loss
    unigram, uniform = number(section(e.info, "data"), "unigram_nats"), e.uniform_nats
    if len(smooth) < MIN_ROWS or steps[-1] < MIN_STEPS:
        return None
    lowest = float(smooth.min())
    if uniform and lowest > (1 - STUCK) * uniform:
        return "a guess that finds all tokens equally likely", uniform
    if unigram and lowest > (1 - STUCK) * unigram:
        return "a guess that only knows how often each token occurs", unigram
    return None


def below_floor(e: Evidence) -> Finding | None:
    """The validation loss beats the best possible by more than luck; see `evaluation.floor`."""
    floor = number(section(e.info, "floor"), "nats_per_token")
    data = section(e.info, "data")
    tokens, documents = number(data, "val_tokens"), number(data, "val_documents")
    _, values = e.curve("val_loss")
    if floor is None or not tokens or documents is None or e.uniform_nats is None or not len(values):
        return None
    packed = section(e.config, "data").get("packing") == "documents"
    unscored = documents if packed else 1.0  # a first token has nothing to be predicted from: charged as a blind guess
    gain = floor * tokens - values.min() * (tokens - unscored) - unscored * e.uniform_nats
    if gain <= math.log(1 / CHANCE):
        return None
    causes = "; ".join(f"({i}) {cause}" for i, cause in enumerate(CAUSES, 1))
    return Finding(
        "below the floor",
        f"Too good to be true: the validation loss of {loss(values.min())} is below the best possible, {loss(floor)}.",
        f"Something leaks. Look for one of these: {causes}.",
    )


def dead_parts(e: Evidence) -> Finding | None:
    """A layer that no gradient reaches."""
    steps, names, norms = e.by_part("part_grad_norms")
    if len(steps) < MIN_ROWS or not names:
        return None
    late = norms[len(norms) // 2 :]  # a projection that starts at zero lets nothing through at first
    loudest = np.nanmax(late, axis=1, keepdims=True, initial=0.0)
    silent = np.all(late <= SILENT_GRADIENT * loudest, axis=0) & (loudest.max() > 0)
    dead = [name for name, is_silent in zip(names, silent, strict=True) if is_silent]
    if not dead:
        return None
    shown = ", ".join(dead[:6]) + (f" and {len(dead) - 6} more" if len(dead) > 6 else "")
    return Finding(
        "dead layers",
        f"Dead: no gradient reaches {shown}; these weights do not learn.",
        "Are they frozen, left out of the forward pass, or behind an activation that is always zero? tiny-transformer "
        "replay shows each weight's gradient.",
    )


def always_clipped(e: Evidence) -> Finding | None:
    """Nearly each gradient is cut, and by much."""
    limit, warmup = e.setting("grad_clip"), number(section(e.config, "training"), "warmup_steps") or 0
    steps, norms = e.curve("grad_norm")
    norms = norms[steps > max(warmup, 0.1 * steps[-1])] if len(steps) else norms
    if not limit or len(norms) < MIN_ROWS:
        return None
    share, median = float(np.mean(norms > limit)), float(np.median(norms))
    if share < CLIPPED_SHARE or median < CLIPPED_BY * limit:
        return None
    return Finding(
        "clipped every step",
        f"The gradient was clipped in {share:.0%} of the steps: its norm is {median:.3g} as a rule, the limit "
        f"{limit:g}.",
        f"Clipping is meant for single steps: raise training.grad_clip above {median:.2g}, or lower the learning rate "
        "if the loss is unsteady.",
    )


def small_batch(e: Evidence) -> Finding | None:
    """A step sees so little text that its loss is mostly chance."""
    _, values = e.loss
    tokens = np.diff(e.curve("num_tokens")[1]) / np.maximum(np.diff(e.curve("num_tokens")[0]), 1)
    if len(values) < 2 * MIN_ROWS:
        return None
    level, size = float(np.median(values[len(values) // 2 :])), float(np.median(tokens)) if len(tokens) else math.inf
    if level <= 0 or e.jitter < NOISY * level or size > FEW_TOKENS:
        return None
    return Finding(
        "batch too small",
        f"The batch is too small: from one step of {count(size)} tokens to the next the loss jumps by "
        f"{e.jitter / level:.0%} of itself, so each update is mostly chance.",
        "Raise training.micro_batch_size, or training.grad_accum_steps where memory is short.",
    )


def no_warmup(e: Evidence) -> Finding | None:
    """The first updates made the model worse than it was before any training."""
    steps, values = e.loss
    rates = e.curve("learning_rate")[1]
    if len(values) < 2 * MIN_ROWS or not len(rates) or rates[0] < 0.9 * rates.max():
        return None  # there was a warm-up
    early = values[steps <= max(EARLY * steps[-1], steps[4])]
    peak = int(np.argmax(early))
    start = min(x for x in (float(values[0]), e.uniform_nats) if x is not None)
    if early[peak] - start < max(OVERSHOOT * start, CLIMB_IN_JITTERS * e.jitter):
        return None
    return Finding(
        "no warm-up",
        f"The loss rose to {loss(early[peak])} at step {count(steps[peak])}, above the {loss(start)} of untrained "
        f"weights: the first steps ran at {rates[0]:.2g}, the full learning rate.",
        "Give it a warm-up (training.warmup_fraction 0.05).",
    )
