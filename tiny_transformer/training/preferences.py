"""What alignment with pairs makes small: DPO and ORPO. Sums over pairs; the loop divides by the pairs of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_transformer.data.preferences import PairBatch
from tiny_transformer.evaluation.preferences import token_logps
from tiny_transformer.models.contract import CausalLM


def dpo_loss(model: CausalLM, batch: PairBatch, beta: float) -> tuple[Tensor, dict[str, float]]:
    """Direct preference optimisation (Rafailov et al., 2023): -log sigmoid(margin), where the margin is `beta` times
    how much more the chosen answer has gained over the reference than the rejected one.

    Raises:
        ValueError: the batch has no reference.
    """
    if batch.reference is None:
        raise ValueError("DPO needs the log-probabilities of a reference")
    each, auxiliary = token_logps(model, batch.rows)
    logps = (each * batch.rows.is_answer[:, 1:]).sum(-1)
    chosen, rejected = (logps - batch.reference).chunk(2)
    margin = beta * (chosen - rejected)
    loss = -F.logsigmoid(margin).sum()
    return loss + auxiliary * batch.num_targets, _figures(batch, margin, logps)


def orpo_loss(model: CausalLM, batch: PairBatch, beta: float) -> tuple[Tensor, dict[str, float]]:
    """Odds ratio preference optimisation (Hong et al., 2024): the cross-entropy of the chosen text, question included,
    as a mean over its tokens in the whole batch, and `beta` times -log sigmoid of how much larger the odds of the
    chosen answer are, each answer by its mean log-probability per token."""
    each, auxiliary = token_logps(model, batch.rows)
    is_answer = batch.rows.is_answer[:, 1:]
    logps = (each * is_answer).sum(-1)
    chosen, rejected = (logps / is_answer.sum(-1)).chunk(2)
    margin = (chosen - rejected) - (log_one_minus_exp(chosen) - log_one_minus_exp(rejected))
    is_chosen_text = batch.rows.is_text[: batch.num_targets, 1:]
    cross_entropy = -(each[: batch.num_targets] * is_chosen_text).sum() * batch.token_weight
    loss = cross_entropy - beta * F.logsigmoid(margin).sum()
    figures = _figures(batch, margin, logps) | {"cross_entropy": cross_entropy.item()}
    return loss + auxiliary * batch.num_targets, figures


def log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without loss of digits at either end (Maechler, 2012); an answer that is certain
    counts as one in ten million is not."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _figures(batch: PairBatch, margin: Tensor, logps: Tensor) -> dict[str, float]:
    """For the log, as sums over the pairs: margin, share with a positive one, log-probabilities, and how far these are
    from the reference's."""
    chosen, rejected = logps.detach().chunk(2)
    figures = {
        "margin": margin.sum().item(),
        "accuracy": float((margin > 0).sum()),
        "chosen_logp": chosen.sum().item(),
        "rejected_logp": rejected.sum().item(),
    }
    if batch.reference is not None:
        before = batch.reference.chunk(2)
        figures["chosen_shift"] = (chosen - before[0]).sum().item()
        figures["rejected_shift"] = (rejected - before[1]).sum().item()
    return figures
