"""The validation loss of a run: on the whole split, or on its beginning where that would take too long."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.batches import TokenBatch, evaluation_batches
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.evaluation.loss import SplitLoss, evaluate_split, scored_bytes
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.sharing import Sharing


def validation_batches(config: RunConfig, dataset: Dataset) -> Iterator[TokenBatch]:
    """The split in order, `eval_tokens` of it, rounded up to whole batches."""
    data, size, wanted = config.data, config.training.micro_batch_size, config.training.eval_tokens
    batches = evaluation_batches(dataset.val, seq_len=data.seq_len, batch_size=size, packing=data.packing)
    return islice(batches, None if wanted is None else math.ceil(wanted / (size * data.seq_len)))


def validation_loss(
    model: CausalLM,
    batches: Iterable[TokenBatch],
    config: RunConfig,
    dataset: Dataset,
    hardware: Hardware,
    sharing: Sharing,
) -> SplitLoss:
    """The loss over batches; see `scored_bytes` for a part of the split."""
    meta = dataset.meta.val
    loss = evaluate_split(model, batches, num_bytes=meta.num_bytes, hardware=hardware, sharing=sharing)
    return replace(loss, num_bytes=scored_bytes(meta, loss.num_tokens, config.data.packing))
