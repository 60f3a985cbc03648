"""Rounding by what a layer reads: what it minimises, and that it is rounding to nearest where inputs are unrelated."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.layers.linear import QuantizedLinear, quantize
from tiny_transformer.models import build_model
from tiny_transformer.models.swaps import quantize_layers
from tiny_transformer.quantization.gptq import input_moments, quantize_by_inputs, round_by_inputs


def values(integers: torch.Tensor, scale: torch.Tensor, group_size: int, columns: int) -> torch.Tensor:
    groups = integers.unflatten(1, (-1, group_size)) * scale.float()[..., None]
    return groups.flatten(1)[:, :columns]


def weight_and_inputs(columns: int = 45) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 6, generator=generator) @ torch.randn(6, columns, generator=generator)
    return torch.randn(24, columns, generator=generator), inputs + 0.1 * torch.randn(400, columns, generator=generator)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 6), (4, 46), (8, 46)])
def test_the_error_of_the_product_is_far_smaller_than_by_rounding_to_nearest(bits, group_size):
    weight, inputs = weight_and_inputs()
    moment = inputs.T @ inputs / len(inputs)
    errors = [
        ((values(*found, group_size, 45) - weight) @ inputs.T).square().mean()
        for found in (
            quantize(weight, bits=bits, group_size=group_size),
            round_by_inputs(weight, moment, bits=bits, group_size=group_size),
        )
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 45)])
def test_inputs_that_have_nothing_to_do_with_each_other_leave_rounding_to_nearest(bits, group_size):
    weight = weight_and_inputs()[0]
    found = round_by_inputs(weight, torch.eye(45), bits=bits, group_size=group_size)
    nearest = quantize(weight, bits=bits, group_size=group_size)
    assert all(torch.equal(a, b) for a, b in zip(found, nearest, strict=True))


def test_inputs_that_are_always_zero_do_no_harm():
    weight = weight_and_inputs()[0]
    integers, _ = round_by_inputs(weight, torch.zeros(45, 45), bits=4, group_size=32)
    assert torch.equal(integers, quantize(weight, bits=4, group_size=32)[0])


def test_a_model_is_swapped_by_what_its_own_layers_read():
    shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = build_model(Qwen3Config(**shape, num_attention_heads=4, initializer_range=0.2), seed=0).eval()
    ids = torch.randint(0, 40, (8, 24), generator=torch.Generator().manual_seed(1))
    batches = [SimpleNamespace(input_ids=half, positions=None, doc_ids=None) for half in ids.chunk(2)]
    layer = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        read = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids)).flatten(0, 1)
        before = model(ids)
    moments = input_moments(model, {"q": layer}, batches)
    torch.testing.assert_close(moments["q"], read.T @ read / len(read), rtol=1e-4, atol=1e-4)
    nearest = build_model(model.config, seed=0).eval()
    quantize_layers(nearest, "int4")
    quantize_by_inputs(model, "int4", batches)
    assert isinstance(model.model.layers[0].self_attn.q_proj, QuantizedLinear)
    with torch.no_grad():
        worse, better = ((one(ids) - before).square().mean() for one in (nearest, model))
    assert better < worse
