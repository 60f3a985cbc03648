"""Group-relative policy optimisation: rewards of a group of answers become advantages, and these a loss.

Sources: Shao et al. 2024, DeepSeekMath, section 4.1 (`grpo`); Yu et al. 2025, DAPO (`dapo`); Liu et al. 2025,
Understanding R1-Zero-Like Training (`dr_grpo`); the ratio before the distance: DeepSeek-V3.2, 2025, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tiny_transformer.models.contract import CausalLM

LossType = Literal["dapo", "grpo", "dr_grpo"]
Scale = Literal["group", "batch", "none"]
TINY_SPREAD = 1e-4  # added to a standard deviation before it divides


@dataclass(frozen=True)
class PolicyBatch:
    """Answers that a model wrote, with what is needed to learn from them: B rows of T tokens, N of them written.

    Attributes:
        input_ids: (B, T) int64, question and answer, padded on the right.
        is_written: (B, T) bool: the tokens of answers.
        old: (N,) float32, their log-probabilities when they were written, row after row.
        reference: (N,) float32, those under the reference; None without one.
        advantages: (B,) float32.
        sample_ids: (B,) int64, which question each row answers.
        facts: what else is logged of each row, (B,) float32 by name.
        of_step: rows and written tokens of the whole batch of the step, all processes together.
        counts_tokens: whether the loss is a mean over tokens; else over answers.
    """

    input_ids: Tensor
    is_written: Tensor
    old: Tensor
    reference: Tensor | None
    advantages: Tensor
    sample_ids: Tensor
    facts: dict[str, Tensor]
    of_step: tuple[int, int]
    counts_tokens: bool

    @property
    def num_targets(self) -> int:
        """The divisor: the written tokens, or the answers."""
        return len(self.old) if self.counts_tokens else len(self.input_ids)

    def to(self, device: torch.device | str) -> PolicyBatch:
        """The same batch on a device."""
        names = ("input_ids", "is_written", "old", "advantages")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        reference = None if self.reference is None else self.reference.to(device, non_blocking=True)
        return replace(self, **moved, reference=reference)


@dataclass(frozen=True)
class PolicySettings:
    """The loss.

    Attributes:
        loss_type: `dapo`: the mean over the tokens of all answers; `grpo`: the mean over answers of each one's mean;
            `dr_grpo`: each answer's sum divided by `max_new_tokens`, and the mean of that over answers.
        low, high: a ratio of probabilities counts between 1 - low and 1 + high.
        kl_weight: of the distance to the reference.
        temperature: that the answers were drawn at; logits are divided by it.
        max_new_tokens: the longest answer.
    """

    loss_type: LossType
    low: float
    high: float
    kl_weight: float
    temperature: float
    max_new_tokens: int


def advantages_of(rewards: Tensor, scale: Scale) -> Tensor:
    """How much better each answer is than its group's mean.

    Args:
        rewards: (groups, k) float32.
        scale: `group` divides by the standard deviation of the group (with k - 1 in its divisor), `batch` by that of
            all rewards, `none` by nothing.

    Returns:
        (groups, k); 0 in a group whose rewards are all equal.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    centred = torch.where((rewards == rewards[:, :1]).all(dim=1, keepdim=True), 0.0, centred)  # and no rounding error
    if scale == "group":
        return centred / (rewards.std(dim=1, keepdim=True) + TINY_SPREAD)
    return centred / (rewards.std() + TINY_SPREAD) if scale == "batch" else centred


def written_log_probs(model: CausalLM, input_ids: Tensor, is_written: Tensor, temperature: float) -> Tensor:
    """The log-probability (nats) of each written token, (N,) float32, row after row.

    The head is applied to no other place.

    Args:
        model: see the contract.
        input_ids: (B, T) int64, padded on the right with anything: attention looks back only.
        is_written: (B, T) bool; no first token of a row.
        temperature: divides the logits.
    """
    return _scored(model.backbone(input_ids).hidden, model, input_ids, is_written, temperature)


def _scored(hidden: Tensor, model: CausalLM, input_ids: Tensor, is_written: Tensor, temperature: float) -> Tensor:
    before = hidden[:, :-1][is_written[:, 1:]]  # (N, C)
    logits = model.lm_head(before).float() / temperature
    return logits.log_softmax(-1).gather(-1, input_ids[is_written][:, None])[:, 0]


def policy_loss(model: CausalLM, batch: PolicyBatch, settings: PolicySettings) -> tuple[Tensor, dict[str, float]]:
    """The clipped objective of each written token, with the distance to the reference beside it; see the sources.

    Returns:
        The loss summed over the batch's targets, and figures for the log as sums over them: how far the policy is from
        the reference (`kl`, nats per token), the share of tokens whose ratio was clipped, and the batch's facts.
    """
    hidden, auxiliary, _ = model.backbone(batch.input_ids)
    log_probs = _scored(hidden, model, batch.input_ids, batch.is_written, settings.temperature)  # (N,)
    row = batch.is_written.nonzero()[:, 0]  # (N,), the answer that each token belongs to
    advantages = batch.advantages[row]
    ratio = (log_probs - batch.old).exp()
    clipped = ratio.clamp(1 - settings.low, 1 + settings.high)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    figures = {"clipped": (clipped * advantages < ratio * advantages).sum().item()}
    if batch.reference is not None:
        distance = batch.reference - log_probs
        kl = distance.exp() - distance - 1  # Schulman's estimator: never negative, right on average
        losses = losses + settings.kl_weight * ratio * kl  # with the ratio its gradient is that of the distance itself
        figures["kl"] = kl.sum().item()
    if settings.loss_type == "grpo":
        losses = losses / batch.is_written.sum(dim=1)[row]
    elif settings.loss_type == "dr_grpo":
        losses = losses / settings.max_new_tokens
    return losses.sum() + auxiliary * batch.num_targets, _as_sums(batch, figures)


def _as_sums(batch: PolicyBatch, of_tokens: dict[str, float]) -> dict[str, float]:
    """Figures as sums over targets: those of tokens become means over tokens, those of rows means over rows, whatever
    the loss divides by."""
    rows, tokens = batch.of_step
    targets = tokens if batch.counts_tokens else rows
    sums = {name: total * targets / tokens for name, total in of_tokens.items()}
    return sums | {name: values.sum().item() * targets / rows for name, values in batch.facts.items()}
