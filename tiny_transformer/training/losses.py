"""What a model is trained to make small. A loss returns a sum; the loop divides once, by the whole batch's targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_transformer.data.batches import IGNORE_INDEX, TokenBatch
from tiny_transformer.layers.norm import at_least_float32
from tiny_transformer.models.contract import CausalLM, MultiTokenLM, has_mtp_head


def language_modelling_loss(model: CausalLM, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of each next token, and what else the model wants to be trained on.

    That is its auxiliary loss, times the number of targets, and, with an MTP head, `mtp_loss_coef` times the
    cross-entropy of each token after the next. The auxiliary loss is computed from one micro-batch: it alone depends on
    how a batch is cut.

    Args:
        model: see the contract.
        batch: `input_ids` and `labels` (B, T); labels equal to `IGNORE_INDEX` do not count.

    Returns:
        The summed loss in nats (a scalar with a graph); further figures as sums over the targets: none for a model that
        is trained on next tokens alone.
    """
    hidden, auxiliary, load = model.backbone(batch.input_ids, batch.positions, batch.doc_ids)  # (B, T, C)
    next_token = _cross_entropy(model.lm_head(hidden), batch.labels)
    loss_sum, figures = next_token + auxiliary * batch.num_targets, {}
    if has_mtp_head(model):
        second_token, its_auxiliary = _mtp_loss(model, hidden, batch)
        auxiliary = auxiliary + its_auxiliary
        loss_sum = loss_sum + model.config.mtp_loss_coef * second_token + its_auxiliary * batch.num_targets
        figures["second_token_loss"] = second_token.item()
    if load is not None:  # (layers, E)
        figures["auxiliary_loss"] = auxiliary.item() * batch.num_targets
        figures["busiest_expert_load"] = load.max().item() * load.shape[1] * batch.num_targets
        figures["idlest_expert_load"] = load.min().item() * load.shape[1] * batch.num_targets
    if figures:
        figures["next_token_loss"] = next_token.item()
    return loss_sum, figures


def _mtp_loss(model: MultiTokenLM, hidden: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of the tokens t + 2, and the MTP head's auxiliary loss."""
    positions = None if batch.positions is None else batch.positions[:, :-1]
    doc_ids, labels = None, batch.labels[:, 1:]
    if batch.doc_ids is not None:  # a text's last token says nothing about the next text's second
        doc_ids = batch.doc_ids[:, :-1]
        labels = torch.where(doc_ids == batch.doc_ids[:, 1:], labels, IGNORE_INDEX)
    drafted, auxiliary, _ = model.draft(
        hidden=hidden[:, :-1], next_ids=batch.input_ids[:, 1:], positions=positions, doc_ids=doc_ids
    )
    return _cross_entropy(model.lm_head(drafted), labels), auxiliary


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over labels (B, T), of logits (B, T, V), in float32 at least."""
    wide = at_least_float32(logits.flatten(0, 1))
    return F.cross_entropy(wide, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
