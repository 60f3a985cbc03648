"""What the clock, the data and the plan of a run give away. Each check gives one finding or none."""

from __future__ import annotations

import math

import numpy as np

from tiny_transformer.reports.diagnosis.evidence import Evidence, Finding, time_spent
from tiny_transformer.reports.formats import count, duration
from tiny_transformer.reports.run_reader import number, section

# Muennighoff et al., "Scaling data-constrained language models", 2023: up to four passes over a text are almost as good
# as new text; after that each is worth less, and sixteen are worth little more than eight.
WORTHWHILE_EPOCHS = 4.0
SLOWDOWN = 0.5  # half the speed of before: no cache and no clock rate explains that
MIN_SHARE = 0.1  # of the run, on both sides of a change of speed
LEAST_ROWS = 2  # likewise: a single one may be a hiccup
SOMETIMES = 0.2
MOST_OF_THE_TIME = 0.5
MIN_SECONDS = 1.0  # shorter runs are tests; nobody waits for them
# The loss of one token spreads about as widely as its mean, so the mean over n tokens is sure to 1 / sqrt(n) of it: one
# part in a hundred at 10,000 tokens, and less sure than that since neighbours in a text are alike.
ENOUGH_VALIDATION_TOKENS = 10_000
LARGE_SHARE = 0.05  # of the text: validation has enough of it, and there is little text
# fp16 reaches 65,504. Gradients of a healthy run leave room for a scale of a thousand and more; at 4 there is none
# left, and small gradients round to zero.
COLLAPSED_SCALE = 4.0
UNDECAYED = 2.0  # times the rate the schedule would have ended with


def data_repeated(e: Evidence) -> Finding | None:
    """The same text again and again."""
    _, epochs = e.curve("epoch")
    if not len(epochs) or epochs[-1] <= WORTHWHILE_EPOCHS:
        return None
    seen = _times(float(epochs[-1]))
    return Finding(
        "data repeated",
        f"The data was seen {seen}: after four passes, the same text teaches little more.",
        "More text, or fewer steps.",
    )


def _times(number_of_times: float) -> str:
    words = ("four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    whole = round(number_of_times)
    if abs(number_of_times - whole) > 0.05 * number_of_times or not 4 <= whole <= 12:
        return f"{number_of_times:,.1f} times"
    return f"{words[whole - 4]} times"


def slowed_down(e: Evidence) -> Finding | None:
    """From some step on, the run had half its speed or less."""
    steps, speed = e.curve("tokens_per_second")
    if len(speed) < 2 * LEAST_ROWS or time_spent(e.log).get("forward_backward", math.inf) < MIN_SECONDS:
        return None
    done = steps / steps[-1]
    weights, values = np.diff(steps, prepend=0.0), np.log(np.maximum(speed, 1e-9))
    places = [i for i in range(LEAST_ROWS, len(speed) - LEAST_ROWS + 1) if MIN_SHARE <= done[i - 1] <= 1 - MIN_SHARE]
    if not places:
        return None
    at = max(places, key=lambda i: _contrast(values, weights, i))
    before, after = float(np.median(speed[:at])), float(np.median(speed[at:]))
    was_ever_slow = np.quantile(speed[:at], SOMETIMES) <= np.quantile(speed[at:], 1 - SOMETIMES)
    if after > SLOWDOWN * before or was_ever_slow:  # a machine that is busy now and then
        return None
    return Finding(
        "slowed down",
        f"Since step {count(steps[at])} the run makes {count(after)} {e.target}s a second; before, it made "
        f"{count(before)}.",
        "Something else uses the machine, or it is too hot, or memory is being swapped.",
    )


def _contrast(values: np.ndarray, weights: np.ndarray, at: int) -> float:
    """How much of the spread of some weighted values is explained by a change of their mean at one place."""
    before, after = float(weights[:at].sum()), float(weights[at:].sum())
    if before <= 0 or after <= 0:
        return 0.0
    means = np.average(values[:at], weights=weights[:at]), np.average(values[at:], weights=weights[at:])
    return before * after * float(means[0] - means[1]) ** 2


def overhead(e: Evidence) -> Finding | None:
    """Evaluating or saving takes longer than training."""
    spent = time_spent(e.log)
    steps = sum(spent.get(kind, 0.0) for kind in ("data", "forward_backward", "optimizer"))
    evaluations, saves = spent.get("evaluations", 0.0), spent.get("saves", 0.0)
    total = steps + evaluations + saves + spent.get("samples", 0.0) + spent.get("logging", 0.0)
    if total < MIN_SECONDS or evaluations + saves <= MOST_OF_THE_TIME * total:
        return None
    what, key, seconds = ("Evaluation", "eval_steps", evaluations)
    if saves > evaluations:
        what, key, seconds = ("Saving", "save_steps", saves)
    return Finding(
        "overhead",
        f"{what} took {seconds / total:.0%} of the time: {duration(seconds)} of {duration(total)}.",
        f"Raise training.{key}" + ("." if key == "save_steps" else ", or keep less text for validation."),
    )


def loss_scale_collapsed(e: Evidence) -> Finding | None:
    """fp16 gradients that overflow at any scale."""
    steps, scales = e.curve("loss_scale")
    if not len(scales) or scales[-1] > COLLAPSED_SCALE or scales[-1] >= scales[0]:
        return None
    at = int(np.argmax(scales <= COLLAPSED_SCALE))
    return Finding(
        "loss scale collapsed",
        f"The loss scale of fp16 collapsed from {scales[0]:g} to {scales[-1]:g} (at {COLLAPSED_SCALE:g} since step "
        f"{count(steps[at])}): gradients overflow again and again, and small ones are lost.",
        "Use bf16 or fp32 (training.precision), or a lower learning rate.",
    )


def small_validation(e: Evidence) -> Finding | None:
    """A validation loss that is not sure to a hundredth."""
    data = section(e.info, "data")
    tokens, train = number(data, "val_tokens"), number(data, "train_tokens")
    _, values = e.curve("val_loss")
    if not tokens or tokens < 1 or not len(values) or tokens >= ENOUGH_VALIDATION_TOKENS:
        return None
    return Finding(
        "validation split tiny",
        f"The validation split is tiny: {count(tokens)} tokens make the validation loss sure to about "
        f"{1 / math.sqrt(tokens):.1%}, so smaller differences mean nothing.",
        "Prepare the data again with a larger data.val_fraction."
        if not train or tokens < LARGE_SHARE * (train + tokens)
        else "More text would make it surer; so would a larger data.val_fraction, at the cost of training text.",
    )


def stopped_before_decay(e: Evidence) -> Finding | None:
    """The run ended while its learning rate was still high."""
    rates = e.curve("learning_rate")[1]
    final = e.setting("final_rate_fraction")
    step, total = number(e.log[-1], "step") if e.log else None, number(e.info, "total_steps")
    schedule = section(e.config, "training").get("schedule")
    if e.state != "stopped" or not len(rates) or step is None or not total or step >= total or schedule == "constant":
        return None
    peak = e.setting("learning_rate") or float(rates.max())
    if rates[-1] <= UNDECAYED * peak * (final if final is not None else 0.0) or rates[-1] <= 0.05 * peak:
        return None
    return Finding(
        "stopped before the decay ended",
        f"Stopped before the decay ended: at step {count(step)} of {count(total)} the learning rate was still at "
        f"{rates[-1] / peak:.0%} of its peak, and much of what a model gains comes from the last, small steps.",
        "Go on with --resume; or plan a run of this length (training.max_train_minutes, training.steps).",
    )
