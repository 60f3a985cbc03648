"""From a config to a model: which class, which memory, which initial weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tiny_transformer.config.shapes import DecoderConfig
from tiny_transformer.layers.norm import ZeroCentredRMSNorm
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.previous_token import look_back

_DECAY_RATES = (0.01, 16.0)  # of the delta rule's memories at the start; a rate of 0 would have no logarithm


def empty_model(
    config: DecoderConfig,
    *,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> CausalLM:
    """A model whose weights are allocated but not set. Leaves the global random-number generator alone."""
    family = import_module(f"tiny_transformer.models.{config.model_type}")  # not before it is asked for
    with torch.device(device), _NoInitialisation():
        return family.Model(config, dropout=dropout).to(dtype)


def build_model(
    config: DecoderConfig,
    *,
    seed: int,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    zero_residual: bool = False,
    previous_token_init: bool = False,
) -> CausalLM:
    """A model with fresh weights: matrices N(0, initializer_range), scales 1, biases 0, decay rates uniform.

    The weights are drawn on the CPU in float32 from a generator of their own: they depend on the seed and the config,
    not on the device, the dtype or the global random state, which is left alone.

    Args:
        config: the shape; `vocab_size` must be set.
        seed: of the initial weights.
        dropout: see the model class.
        dtype, device: of the weights.
        zero_residual: start the last weight of each residual branch at zero, so that each block begins as the identity.
        previous_token_init: start the first layer with heads that look at the token before; see `look_back`.
    """
    model = empty_model(config, dropout=dropout, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(seed)
    zero_centred = {module.weight for module in model.modules() if isinstance(module, ZeroCentredRMSNorm)}
    for name, parameter in model.named_parameters():
        if parameter in zero_centred or (zero_residual and name.endswith(config.residual_outputs)):
            nn.init.zeros_(parameter)
        else:
            initialise(name, parameter, std=config.initializer_range, generator=generator)
    if previous_token_init:
        look_back(model, generator=generator)
    return model


def has_exchangeable_attention(model_type: str) -> bool:
    """Whether another form of attention can stand in the place of a family's own: a class of its model.py has an
    `attend`."""
    family = import_module(f"tiny_transformer.models.{model_type}")
    classes = vars(sys.modules[family.Model.__module__]).values()
    return any(isinstance(one, type) and hasattr(one, "attend") for one in classes)


class _NoInitialisation(TorchFunctionMode):
    """Leave out what `torch.nn.init` does while layers are constructed: it costs time and draws random numbers."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@torch.no_grad()
def initialise(name: str, parameter: nn.Parameter, *, std: float, generator: torch.Generator) -> None:
    """Set one parameter's initial value in place; see `build_model`."""
    if name.endswith("A_log"):
        parameter.copy_(torch.empty(parameter.shape).uniform_(*_DECAY_RATES, generator=generator).log())
    elif parameter.ndim == 1:
        parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
    else:
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


def tensors_of(model: CausalLM) -> dict[str, torch.Tensor]:
    """Weights and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def copy_tensors(
    tensors: Mapping[str, torch.Tensor],
    model: CausalLM,
    part_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Overwrite those weights of a model that `tensors` has, by name; `part_of`: see `load_weights`."""
    for name, target in tensors_of(model).items():
        if name in tensors:
            target.copy_(tensors[name] if part_of is None else part_of(tensors[name], target))
