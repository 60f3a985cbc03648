"""Rounding that looks at what a layer reads: GPTQ.

Shapes: N outputs, K inputs, g weights of a group, M groups of a row, X all inputs of a layer, one a row.

Round to nearest makes each weight's own error small. What counts is the error of the product: with H = X^T X / rows it
is  tr(E H E^T)  for an error E (N, K). So columns are rounded one after the other, and the columns not yet rounded take
over what each leaves: with U the upper Cholesky factor of H^-1, column k's error over U[k, k], times U[k, j], is taken
from each later column j. The format does not change, only the integers do.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022,
sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tiny_transformer.layers.linear import Bits, QuantizedLinear, quantize
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.swaps import quantize_layers

DAMPING = 0.01  # of the mean of H's diagonal, added to it: inputs that never vary would leave H without an inverse


def quantize_by_inputs(model: CausalLM, kind: str, batches: Iterable[Any], *, group_size: int | None = None) -> None:
    """`models.swaps.quantize_layers` with integers chosen by what the layers read in these batches. In place.

    A layer that read nothing (an expert that no token went to) is rounded to nearest.

    Args:
        model: of ordinary layers, in evaluation mode.
        kind, group_size: see `quantize_layers`.
        batches: of tokens, with `input_ids`, `positions` and `doc_ids`, on the model's device.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    moments = input_moments(model, layers, batches)
    for name in quantize_layers(model, kind, group_size=group_size):
        layer = model.get_submodule(name)
        if isinstance(layer, QuantizedLinear) and name in moments:
            weight, width = layers[name].weight, layer.group_width
            layer.set_to(*round_by_inputs(weight, moments[name], bits=layer.bits, group_size=width))


@torch.no_grad()
def input_moments(model: CausalLM, layers: dict[str, nn.Linear], batches: Iterable[Any]) -> dict[str, Tensor]:
    """H = X^T X / rows, (K, K) float32, for each layer that reads anything in these batches."""
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).float()
        sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x
        rows[name] = rows.get(name, 0) + len(x)

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            model.backbone(batch.input_ids, batch.positions, batch.doc_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / rows[name] for name, total in sums.items() if rows[name]}


@torch.no_grad()
def round_by_inputs(weight: Tensor, moment: Tensor, *, bits: Bits, group_size: int) -> tuple[Tensor, Tensor]:
    """Integers (N, M g) and scales (N, M) as `layers.linear.quantize` gives them, for inputs of this moment.

    Args:
        weight: (N, K), finite.
        moment: H (K, K) from `input_moments`.
        bits, group_size: see `quantize`. The scale of a group is that of its weights when its turn comes.
    """
    left = weight.float().clone()  # (N, K): what is still to be rounded, errors of earlier columns included
    size, (lowest, highest) = left.shape[1], (-127, 127) if bits == 8 else (-8, 7)
    damping = DAMPING * moment.diagonal().mean().clamp(min=1e-8)
    damped = moment.double() + damping * torch.eye(size, device=moment.device, dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    columns, scales = [], []
    for first in range(0, size, group_size):
        end = min(first + group_size, size)
        scale = quantize(left[:, first:end], bits=bits, group_size=group_size)[1]  # (N, 1)
        divisor = scale.float().masked_fill(scale == 0, 1)[:, 0]
        for k in range(first, end):
            integers = (left[:, k] / divisor).round().clamp(lowest, highest)
            error = (left[:, k] - integers * scale.float()[:, 0]) / factor[k, k]
            left[:, k:] -= error[:, None] * factor[k, k:]
            columns.append(integers)
        columns += [torch.zeros_like(columns[0])] * (first + group_size - end)  # where a short group ends
        scales.append(scale)
    return torch.stack(columns, dim=1).to(torch.int8), torch.cat(scales, dim=1)
