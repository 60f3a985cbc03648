"""When a model in alignment has gone wrong in a way that its loss does not show: limits of an evaluation's figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# Both answers have lost more than this share of their log-probability: the margin grows by forgetting both, and what
# gains is neither. Small falls are common and harmless.
FALL = 0.05
KL = 0.5  # nats per token: the reference's own answers have become 1.6 times as surprising, token by token
GROWTH = 1.5  # times as long as the reference's answers
TOLD = {
    "alarm_likelihoods": "both answers lose likelihood while the margin grows",
    "alarm_kl": "the model runs away from its reference",
    "alarm_length": "its answers grow longer and longer",
}


def alarms(figures: Mapping[str, float]) -> dict[str, float]:
    """1 where something goes wrong that the loss does not show, else 0: both answers lose likelihood while the margin
    grows, the model runs away from its reference, its answers grow longer."""
    chosen, rejected = figures["val_chosen_shift"], figures["val_rejected_shift"]
    before = figures["val_chosen_logp"] - chosen, figures["val_rejected_logp"] - rejected
    both_fall = chosen < FALL * before[0] and rejected < FALL * before[1]
    rung = (
        both_fall and chosen > rejected,
        figures.get("val_kl", 0.0) > KL,
        figures.get("val_length_ratio", 0.0) > GROWTH,
    )
    return {name: float(rings) for name, rings in zip(TOLD, rung, strict=True)}


def rings(figures: Mapping[str, float], told: Collection[str]) -> list[str]:
    """The alarms that ring and were not told yet."""
    return [name for name in TOLD if figures.get(name) and name not in told]
