"""What a model is trained to make small. A loss returns a sum and a count; the loop divides once, by the count of the
whole batch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tiny_transformer.data.batches import IGNORE_INDEX, Batch


def language_modelling_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int, dict[str, float]]:
    """Cross-entropy of each next token.

    Args:
        model: `model(input_ids (B, T), positions=, doc_ids=)` gives logits (B, T, V).
        batch: `input_ids` and `labels` (B, T); labels equal to `IGNORE_INDEX` do not count.

    Returns:
        The summed loss in nats (a scalar with a graph), the number of targets, and no further metrics.
    """
    logits = model(batch.input_ids, positions=batch.positions, doc_ids=batch.doc_ids)  # (B, T, V)
    loss_sum = F.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return loss_sum, batch.num_tokens, {}
