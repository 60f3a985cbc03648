"""What changes how a model is trained and not what it computes: memory for time, another form of attention, compiled
code, and fading dropout."""

from __future__ import annotations

from copy import copy
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.layers.blocked_attention import attend_in_blocks
from tiny_transformer.models.contract import CausalLM

KEY = "training.attention"  # which form, of the two


def checkpoint_gradients(model: CausalLM) -> None:
    """Keep only each block's input for the backward pass, which computes the block again (with the same dropout).

    Args:
        model: has its blocks in `model.model.layers`.

    Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.
    """
    for block in model.model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def use_blocked_attention(model: CausalLM) -> None:
    """Let every softmax attention of the model find its gradient in blocks of queries.

    Raises:
        UserError: no module of the model has an `attend` to be exchanged.
    """
    modules = [module for module in model.modules() if hasattr(module, "attend")]
    if not modules:
        raise no_blocks(model.config.model_type)
    for module in modules:
        module.attend = attend_in_blocks  # ty: ignore[invalid-assignment]


def no_blocks(family: str) -> UserError:
    """What to say where a family's attention cannot be exchanged."""
    return UserError(
        f"the attention of {family} cannot be computed in blocks: it has no `attend` to be exchanged",
        where=KEY,
        remedy="leave it out; docs/ADD_A_MODEL.md says what a family needs for it",
    )


def compile_backbone(model: CausalLM) -> CausalLM:
    """The same weights behind a compiled backbone; the model itself stays as it is."""
    compiled = copy(model)
    compiled.backbone = torch.compile(compiled.backbone)  # ty: ignore[invalid-assignment]
    return compiled


def compile_failure(error: RuntimeError) -> UserError | None:
    """What to tell when a model could not be compiled; None for any other error."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import, and needed by who compiles alone

    if not isinstance(error, TorchDynamoException):
        return None
    return UserError(
        f"the model could not be compiled: {str(error).strip().partition(chr(10))[0][:200]}",
        where="training.compile",
        remedy="leave out --compile; on a CPU, compiling needs a C++ compiler (g++ or clang)",
        exit_code=ExitCode.IO,
    )


def set_dropout(model: CausalLM, rate: float) -> None:
    """Let every dropout of the model drop this share from now on."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
