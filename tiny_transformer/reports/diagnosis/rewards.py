"""What the rewards of a run give away that learns from them. Each check gives one finding or none.

A logged row tells its own step alone, so that early and late are means over rows, and a coarse log has few: what a
change is compared with is its standard error as far as the rows tell it. A run without rewards has no finding here.
"""

from __future__ import annotations

import math

import numpy as np

from tiny_transformer.reports.diagnosis.evidence import Evidence, Finding
from tiny_transformer.reports.formats import count
from tiny_transformer.reports.run_reader import number, section

FEWEST_STEPS = 20  # before that rewards may well be where they began
SURE = 3.0  # standard errors
NO_SIGNAL = 0.9  # of the groups, from beginning to end: nine tenths of what is written teaches nothing
SOLVED = 0.9  # of the highest reward ever logged: groups that are equal there have learnt what there was
MOSTLY = 0.75  # of the groups are equal there
GROWN = 2.0  # times as long as at first
SAME, DIFFERENT = 0.9, 0.5  # of the answers share their words late, and did not early
# Nats per token: at 0.5 an average token is e^0.5 = 1.6 times as likely, or less likely, as the reference finds it; ten
# tokens in a row 150 times. Runs that learn a task in earnest stay below a tenth of that for hundreds of steps.
FAR = 0.5
READ = "read the newest files of RUN/rollouts"


def unjudged(e: Evidence) -> Finding | None:
    """Answers that the verifier could not judge."""
    steps, values = e.curve("unjudged")
    if not len(values) or values.max() <= 0:
        return None
    return Finding(
        "unjudged answers",
        f"The verifier could not judge {values.mean():.1%} of the answers of the logged steps, the first of them in "
        f"step {count(steps[np.argmax(values > 0)])}; each counts as reward 0.",
        "The lines of RUN/rollouts say why (problem). Mend the verifier, or end such a run: --verifier_failure stop.",
    )


def no_signal(e: Evidence) -> Finding | None:
    """Nearly all groups had equal rewards all the way, so that nothing could be learnt from them."""
    steps, equal = e.curve("equal_groups")
    reward = _halves(e, "reward")
    if len(equal) < 3 or steps[-1] < FEWEST_STEPS or reward is None:
        return None
    early = equal[steps <= steps[-1] / 2]
    if not len(early) or early.mean() < NO_SIGNAL or equal.mean() < NO_SIGNAL:
        return None
    return Finding(
        "no signal",
        f"In {equal.mean():.0%} of the groups all answers had the same reward ({reward[1]:.3g} on average at the end): "
        "where all are alike, none is better than the others, and nothing is learnt.",
        "Questions that the model answers neither always nor never teach most: choose easier or harder ones, a "
        "verifier that gives parts of the reward, a higher grpo.temperature, or more answers to a question "
        "(grpo.group_size).",
    )


def rewards_stuck(e: Evidence) -> Finding | None:
    """Rewards did not rise, and there was room above."""
    found = _halves(e, "reward")
    steps, values = e.curve("reward")
    if found is None or len(values) < 4 or steps[-1] < 5 * FEWEST_STEPS:
        return None
    early, late, error = found
    held_out = e.curve("val_reward")[1]
    has_risen = late - early > SURE * error or (len(held_out) > 1 and held_out[-1] > held_out[0] + 0.02)
    is_full = late >= SOLVED * values.max() and e.curve("equal_groups")[1][-1:].sum() >= MOSTLY
    if has_risen or is_full:
        return None
    return Finding(
        "rewards stuck",
        f"Rewards did not rise: {early:.3g} on average in the first quarter of the run, {late:.3g} in the last.",
        "Is the learning rate too low (training.learning_rate), or grpo.kl_weight too high? Is a step's batch large "
        "enough that groups differ? The verifier may also pay for what the model cannot find by itself.",
    )


def lengths_growing(e: Evidence) -> Finding | None:
    """Answers became much longer while rewards rose."""
    found = _halves(e, "answer_tokens")
    steps, values = e.curve("answer_tokens")
    if found is None or len(values) < 3 or steps[-1] < FEWEST_STEPS:
        return None
    early, late, error = found
    if late < GROWN * early or late - early <= SURE * error:
        return None
    ended = e.curve("ended")[1]
    cut = f"; {1 - ended[-1]:.0%} of the last were cut off at the limit" if len(ended) and ended[-1] < 1 else ""
    return Finding(
        "lengths growing",
        f"Answers grew from {early:.0f} tokens to {late:.0f}{cut}{_with_rewards(e)}.",
        f"Is that more thought, or a verifier that pays for length? Then {READ}; let it judge the answer alone, or "
        "take grpo.loss_type dr_grpo, which does not favour long wrong answers.",
    )


def same_words(e: Evidence) -> Finding | None:
    """Answers to different questions came to share their words while rewards rose."""
    found = _halves(e, "same_words")
    steps, values = e.curve("same_words")
    if found is None or len(values) < 3 or steps[-1] < FEWEST_STEPS:
        return None
    early, late, _ = found
    if late < SAME or min(early, values[0]) > DIFFERENT:
        return None
    return Finding(
        "same words",
        f"Different questions get the same words: one run of tokens stands in {late:.0%} of the answers of a step, "
        f"and stood in {values[0]:.0%} at first{_with_rewards(e)}.",
        f"If it is the form of an answer, all is well. If not, the verifier pays for a phrase: {READ}, and let it "
        "judge what the answer says.",
    )


def kl_running_away(e: Evidence) -> Finding | None:
    """The model left its reference far behind."""
    steps, values = e.curve("kl")
    late = values[steps > 0.75 * steps[-1]] if len(steps) else values
    if not len(late) or np.median(late) < FAR or steps[-1] < FEWEST_STEPS:
        return None
    return Finding(
        "KL running away",
        f"The model has left its reference: {np.median(late):.2g} nats per token apart in the last quarter of the run, "
        f"{FAR:g} is far{_with_rewards(e)}.",
        f"What it writes may be no language any more: {READ}. Raise grpo.kl_weight (it was "
        f"{number(section(e.config, 'grpo'), 'kl_weight') or 0:g}), lower training.learning_rate, or take a checkpoint "
        "from before.",
    )


def _halves(e: Evidence, key: str) -> tuple[float, float, float] | None:
    """The means of a figure in the first and the last quarter of the run, and the standard error of their difference;
    of a quarter without a row the row nearest to it."""
    steps, values = e.curve(key)
    if len(steps) < 2:
        return None
    early, late = values[steps <= 0.25 * steps[-1]], values[steps > 0.75 * steps[-1]]
    early, late = (part if len(part) else values[[place]] for part, place in ((early, 0), (late, -1)))
    jitter = float(np.std(np.diff(values)) / math.sqrt(2))  # of a single row
    return float(early.mean()), float(late.mean()), jitter * math.sqrt(1 / len(early) + 1 / len(late))


def _with_rewards(e: Evidence) -> str:
    """That rewards rose at the same time, where they did: then this is what they pay for."""
    found = _halves(e, "reward")
    if found is None or found[1] <= found[0]:
        return ""
    return f", and rewards rose with it, from {found[0]:.3g} to {found[1]:.3g}"
