"""What a training costs on many GPUs: memory of each, and bytes that each sends in a step.

The counts are those of `accounting`, which runs the training code without contents; here they are divided as
`parallel/sharing.py` divides them. Its choices decide the figures: weights, gradients and optimizer state are
float32; `ddp` exchanges gradients once a step, in a ring; `fsdp` gathers the weights of each block for the forward and
again for the backward pass and exchanges gradients in every micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.costs.accounting import StepCost, count_step
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import empty_model

FLOAT = 4  # bytes
STATE_KINDS = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class ModelCost:
    """What does not depend on the number of GPUs.

    Attributes:
        num_parameters: shared ones once.
        block_parameters: of the largest block.
        root_parameters: outside the blocks: embedding, head, last norm.
        state_bytes: weights, gradients and optimizer state.
        work_bytes: activations and logits of one micro-batch.
        micro_batch_flops: forward and backward.
    """

    num_parameters: int
    block_parameters: int
    root_parameters: int
    state_bytes: int
    work_bytes: int
    micro_batch_flops: int


def count_model(config: RunConfig, hardware: Hardware) -> ModelCost:
    """Count the parameters and one micro-batch of a config; `model.vocab_size` must be set."""
    model = empty_model(config.model, device="meta")
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.model.layers]
    total = sum(p.numel() for p in model.parameters())
    step: StepCost = count_step(config, hardware)
    state = FLOAT * total * 2 + step.most["optimizer"]
    work = step.memory.total() - sum(step.memory[kind] for kind in STATE_KINDS)
    return ModelCost(total, max(blocks), total - sum(blocks), state, work, step.training.total())


def gpu_memory(cost: ModelCost, num_gpus: int, parallelism: str) -> float:
    """Bytes of tensors on each GPU at the highest point of a step.

    With `fsdp` a GPU holds, besides its part of the state, whole weights of the root and of two blocks (the one at work
    and the next), and whole gradients of the root and of one block on their way to their owners.
    """
    if parallelism == "ddp" or num_gpus == 1:
        return cost.state_bytes + cost.work_bytes
    whole = FLOAT * (2 * cost.root_parameters + 3 * cost.block_parameters)
    return cost.state_bytes / num_gpus + whole + cost.work_bytes


def sent_bytes(cost: ModelCost, num_gpus: int, micro_batches: int, parallelism: str) -> float:
    """Bytes that each GPU sends in a step of so many micro-batches a GPU.

    A ring moves every byte past all GPUs but its owner: once for a gathering, once for a sum that stays scattered,
    twice for a sum that everybody gets. Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009.
    """
    past = (num_gpus - 1) / num_gpus
    if parallelism == "ddp":
        return 2 * FLOAT * cost.num_parameters * past
    blocks = cost.num_parameters - cost.root_parameters
    return micro_batches * FLOAT * (3 * blocks + 2 * cost.root_parameters) * past
