"""How well a model predicts a split: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch.nn import functional as F

from tiny_transformer.data.batches import IGNORE_INDEX, TokenBatch
from tiny_transformer.data.meta import SplitMeta
from tiny_transformer.hardware import Hardware
from tiny_transformer.layers.norm import at_least_float32
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.sharing import NOT_SHARED, Sharing


@dataclass(frozen=True)
class SplitLoss:
    """The loss of a model on a whole split.

    Attributes:
        loss_sum: nats, summed over all targets.
        num_tokens: how many targets.
        num_bytes: bytes of text they stand for.
    """

    loss_sum: float
    num_tokens: int
    num_bytes: int

    @property
    def nats_per_token(self) -> float:
        """The mean loss; depends on the tokenizer."""
        return self.loss_sum / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text: comparable between tokenizers."""
        return self.loss_sum / math.log(2) / self.num_bytes


def num_targets(meta: SplitMeta, packing: str) -> int:
    """Targets of a whole split: every token but the first one, or, packed by documents, but the first of each."""
    return meta.num_tokens - (1 if packing == "concat" else meta.num_documents)


def scored_bytes(meta: SplitMeta, num_scored: int, packing: str) -> int:
    """Bytes of text that the scored targets stand for: of a part, as many a target as the whole split has."""
    targets = num_targets(meta, packing)
    return meta.num_bytes if num_scored >= targets else max(1, math.ceil(meta.num_bytes * num_scored / targets))


def perplexity_in_words(nats: float) -> str:
    """exp of a mean loss, as a number one can read: 12.345, 2,150, 1.8e+117."""
    value = math.exp(min(nats, 700.0))
    return f"{value:.3f}" if value < 1_000 else f"{value:,.0f}" if value < 1e7 else f"{value:.2g}"


@torch.no_grad()  # not inference_mode: weights that processes put together here are used in training afterwards
def evaluate_split(
    model: CausalLM,
    batches: Iterable[TokenBatch],
    *,
    num_bytes: int,
    hardware: Hardware,
    sharing: Sharing = NOT_SHARED,
) -> SplitLoss:
    """The loss over all batches, without dropout; the model is left in the mode it was in.

    Args:
        model: gives logits (B, T, V).
        batches: the whole split, each target once.
        num_bytes: size of the split's text in bytes.
        hardware: where and in which precision to compute.
        sharing: the processes that take turns with the batches. The result does not depend on their number: the sums of
            all batches are added in the batches' order.
    """
    was_training, processes = model.training, sharing.processes
    model.eval()
    mine, sizes, num_tokens = [], [], 0
    for turn in _turns(batches, processes.world_size):
        batch = turn[min(processes.rank, len(turn) - 1)]  # nobody may stay away: the last batch is computed by several
        losses = sharing.run(lambda batch=batch: token_losses(model, batch, hardware), "evaluation")
        mine.append(losses.double().sum().item())
        sizes.append(len(turn))
        num_tokens += sum(batch.num_targets for batch in turn)
    model.train(was_training)
    everybodys = processes.gather(mine)
    in_order = [everybodys[rank][turn] for turn, size in enumerate(sizes) for rank in range(size)]
    return SplitLoss(sum(in_order), num_tokens, num_bytes)


def _turns(batches: Iterable[TokenBatch], size: int) -> Iterator[list[TokenBatch]]:
    rest = iter(batches)
    while turn := list(islice(rest, size)):
        yield turn


def token_losses(model: CausalLM, batch: TokenBatch, hardware: Hardware) -> torch.Tensor:
    """Nats lost on each target of a batch: (B, T), at least float32, 0 where there is no target."""
    batch = batch.to(hardware.device)
    with hardware.autocast():
        logits = model(batch.input_ids, positions=batch.positions, doc_ids=batch.doc_ids)
    wide = at_least_float32(logits.flatten(0, 1))
    losses = F.cross_entropy(wide, batch.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return losses.view_as(batch.labels)
