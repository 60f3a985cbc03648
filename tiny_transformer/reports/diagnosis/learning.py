"""What the loss, the gradient and the updates of a run give away. Each check gives one finding or none.

Thresholds are far from what a healthy run does, so that a finding is worth reading; each says where it comes from. No
check asks for a fine log: what a few rows show is told, what they cannot show is not guessed.
"""

from __future__ import annotations

import math

import numpy as np

from tiny_transformer.evaluation.floor import CAUSES, CHANCE
from tiny_transformer.reports.diagnosis.evidence import Evidence, Finding
from tiny_transformer.reports.formats import count, loss
from tiny_transformer.reports.run_reader import number, section

# A validation loss that rises by more than this, while the training loss falls. Evaluations of one run read the same
# texts, so only the weights' own wandering moves them: about a hundredth at a constant rate.
OVERFITTING_RISE = 0.02
STILL_FALLING = 0.01  # of the loss, over the last quarter of the run
# Any context lowers the loss clearly below that of single tokens: in English the letter before is worth a fifth of it.
STUCK = 0.03
MIN_STEPS = 50  # before that a loss may well be where it began
# A healthy small model first learns how often each token occurs, and may stand there, its rate already falling, when a
# run of the default 1e-3 ends after a hundred steps.
MIN_STEPS_FOR_CONTEXT = 120
SILENT_GRADIENT = 1e-7  # of the loudest part's: below it float32 loses it in the sum of squares


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


def stuck(e: Evidence) -> Finding | None:
    """The loss stayed where a model is that does not read what stands before a token."""
    level = stuck_level(e)
    if level is None or len(e.loss[0]) < 3 or is_falling(e) or e.loss[0][-1] < MIN_STEPS_FOR_CONTEXT:
        return None
    name, nats = level
    return Finding(
        "stuck",
        f"The model learnt nothing from context: its loss came to {loss(e.end_loss)}, and {name} has {loss(nats)}.",
        "Look at the data (tiny-transformer inspect) and at the labels: is each one the token that follows? Then at "
        "the learning rate. A run of few steps may just have been too short.",
    )


def is_falling(e: Evidence) -> bool:
    """Whether the loss was still on its way down at the end, by more than chance."""
    _, values = e.curve("val_loss")
    if len(values) >= 2:
        return bool(values[-2] - values[-1] > STILL_FALLING * values[-1])
    late = e.mean_loss(0.75, 1.0)
    return e.mean_loss(0.5, 0.75) - late > STILL_FALLING * late + e.jitter


def stuck_level(e: Evidence) -> tuple[str, float] | None:
    """Which blind guess the loss did not end below, and the loss of that."""
    steps, _ = e.loss
    unigram, uniform = number(section(e.info, "data"), "unigram_nats"), e.uniform_nats
    if not len(steps) or steps[-1] < MIN_STEPS:
        return None
    if uniform and e.end_loss > (1 - STUCK) * uniform:
        return "a guess that finds all tokens equally likely", uniform
    if unigram and e.end_loss > (1 - STUCK) * unigram:
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
    if len(steps) < 3 or not names:
        return None
    late = norms[steps > steps[-1] / 2]  # a projection that starts at zero lets nothing through at first
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
