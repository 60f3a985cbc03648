"""Two things that change how a model is trained and not what it computes: memory for time, and fading dropout."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from tiny_transformer.models.contract import CausalLM


def checkpoint_gradients(model: CausalLM) -> None:
    """Keep only each block's input for the backward pass, which computes the block again (with the same dropout).

    Args:
        model: has its blocks in `model.model.layers`.

    Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.
    """
    for block in model.model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def set_dropout(model: CausalLM, rate: float) -> None:
    """Let every dropout of the model drop this share from now on."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
