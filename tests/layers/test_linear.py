"""Quantized and low-rank linear layers: each against its slow twin, and what rounding may cost at most."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tiny_transformer.layers.dora import DoRALinear, dora_slowly
from tiny_transformer.layers.linear import (
    LoRALinear,
    QuantizedLinear,
    lora_slowly,
    pack,
    quantize,
    quantized_product_slowly,
    unpack,
)

CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = [(8, None), (8, 32), (8, 7), (4, None), (4, 32), (4, 6)]


def linear(inputs: int = 45, outputs: int = 9, *, bias: bool = True) -> nn.Linear:
    generator, layer = torch.Generator().manual_seed(inputs), nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(generator=generator))
    return layer


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("bits", "group_size"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_quantized_equals_its_slow_twin(bits, group_size, bias):
    old, x = linear(bias=bias), inputs(2, 3, 45)
    layer = QuantizedLinear.of(old, bits=bits, group_size=group_size)
    got = layer(x)
    torch.testing.assert_close(got, quantized_product_slowly(layer, x), **CLOSE)
    torch.testing.assert_close(got, functional.linear(x, layer.weight_in(torch.float32), old.bias), **CLOSE)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert {"quantized", "scale"} == dict(layer.named_buffers()).keys()


@pytest.mark.parametrize(("bits", "group_size"), KINDS)
def test_no_weight_moves_more_than_half_a_step(bits, group_size):
    old = linear()
    layer = QuantizedLinear.of(old, bits=bits, group_size=group_size)
    width = group_size or 46
    groups = functional.pad(old.weight, (0, -45 % width)).unflatten(1, (-1, width))
    step = groups.abs().amax(2, keepdim=True) / (127 if bits == 8 else 8)
    moved = functional.pad(layer.weight_in(torch.float32) - old.weight, (0, -45 % width)).unflatten(1, (-1, width))
    # With 4 bits the range is -8 to 7: what lies opposite the farthest weight may be cut at 7, a whole step. Scales in
    # float16 are off by 2^-11, times 8 steps.
    assert (moved.abs() / step).max() <= (0.5001 if bits == 8 else 1.01)
    assert (moved.abs() / step).mean() < 0.3
    farthest = groups.abs() == groups.abs().amax(2, keepdim=True)
    assert (moved.abs() / step)[farthest].max() < 0.01  # the farthest weight itself is kept


def test_what_integers_can_say_is_kept_to_the_bit():
    for bits, top in ((8, 127), (4, 7)):
        integers = torch.randint(-top, top + 1, (5, 24), generator=torch.Generator().manual_seed(0)).float()
        integers[:, 0] = integers[:, 12] = -127 if bits == 8 else -8
        got, scale = quantize(integers * 0.25, bits=bits, group_size=12)
        assert torch.equal(got.float(), integers) and torch.equal(scale.float(), torch.full((5, 2), 0.25))


def test_zeros_stay_zeros():
    old = linear()
    nn.init.zeros_(old.weight)
    for bits in (8, 4):
        assert QuantizedLinear.of(old, bits=bits, group_size=None).weight_in(torch.float32).abs().max() == 0


def test_two_integers_share_a_byte():
    integers = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    assert pack(integers).tolist() == [[0xF0, 0x78]]
    assert torch.equal(unpack(pack(integers)), integers)


def test_casting_a_model_leaves_the_scales_alone():
    layer = QuantizedLinear.of(linear(), bits=8, group_size=None)
    before = layer.scale.clone()
    model = nn.Sequential(layer).to(torch.bfloat16)
    assert torch.equal(layer.scale, before) and layer.bias.dtype == torch.bfloat16
    assert model(inputs(2, 45).bfloat16()).dtype == torch.bfloat16
    assert QuantizedLinear.of(linear(), bits=4, group_size=32).float().scale.dtype == torch.float16


@pytest.mark.parametrize(("bits", "group_size"), [(3, None), (4, 5), (8, -1)])
def test_impossible_groups_are_refused(bits, group_size):
    with pytest.raises(ValueError, match="8 or 4 bits"):
        QuantizedLinear(4, 4, bits=bits, group_size=group_size, bias=False)


# --- low-rank additions
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "int8", "int4"])
def base(request) -> nn.Linear | QuantizedLinear:
    if request.param == "plain":
        return linear()
    return QuantizedLinear.of(linear(), bits=8 if request.param == "int8" else 4, group_size=None)


def lora(base, *, dropout: float = 0.0) -> LoRALinear:
    layer, generator = LoRALinear(base, rank=3, alpha=6.0, dropout=dropout), torch.Generator().manual_seed(2)
    layer.start(generator)
    with torch.no_grad():
        layer.lora_B.normal_(generator=generator)
    return layer


def test_at_first_an_addition_changes_nothing(base):
    layer, x = LoRALinear(base, rank=3, alpha=6.0), inputs(2, 45)
    layer.start(torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), base(x))
    assert 0.9 * 45**-0.5 < layer.lora_A.abs().max() <= 45**-0.5


def test_outputs_and_gradients_equal_the_slow_twins(base):
    layer, found = lora(base), []
    for compute in (lambda x: layer(x), lambda x: lora_slowly(layer, x)):
        layer.zero_grad()
        x = inputs(2, 5, 45).requires_grad_(True)
        out = compute(x)
        out.square().sum().backward()
        found.append([out.detach(), x.grad, layer.lora_A.grad, layer.lora_B.grad])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    x = inputs(2, 5, 45)
    torch.testing.assert_close(found[0][0], base(x) + 2 * x @ layer.lora_A.T @ layer.lora_B.T)


def test_only_the_addition_learns(base):
    layer = lora(base)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    layer(inputs(2, 45)).sum().backward()
    assert all(parameter.grad is None for parameter in base.parameters())


def test_dropout_acts_on_the_addition_alone_and_while_training():
    base = linear()
    layer, x = lora(base, dropout=0.5), inputs(4, 45)
    torch.testing.assert_close(layer.eval()(x), lora_slowly(layer, x), **CLOSE)
    torch.manual_seed(0)
    moved = layer.train()(x) - base(x)
    torch.manual_seed(0)
    torch.testing.assert_close(moved, 2 * functional.dropout(x, 0.5) @ layer.lora_A.T @ layer.lora_B.T, **CLOSE)


@pytest.mark.parametrize("kind", ["plain", "bias", "int8"])
def test_dora_is_the_weight_of_its_slow_twin_and_at_first_the_layer_itself(kind: str) -> None:
    torch.manual_seed(4)
    base: nn.Linear | QuantizedLinear = nn.Linear(45, 30, bias=kind == "bias")
    if kind == "int8":
        base = QuantizedLinear.of(base, bits=8, group_size=None)
    layer, x = DoRALinear(base, rank=3, alpha=6.0), torch.randn(2, 45)
    layer.start(torch.Generator().manual_seed(2))
    assert torch.equal(layer(x), base(x))
    with torch.no_grad():
        layer.lora_B.normal_()
        layer.lora_magnitude_vector.mul_(1.5)
    torch.testing.assert_close(layer(x), dora_slowly(layer, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.merged(), base.bias), rtol=1e-5, atol=1e-5)
    layer(x).square().sum().backward()
    learning = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert learning == {"lora_A", "lora_B", "lora_magnitude_vector"}
