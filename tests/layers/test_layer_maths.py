"""Each formula in layers/ against the same formula written the slow way."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from tiny_transformer.layers.attention import attend, attend_slowly, attention_mask, attention_weights
from tiny_transformer.layers.feed_forward import SwiGLU
from tiny_transformer.layers.norm import (
    GatedRMSNorm,
    LateCastRMSNorm,
    LayerNorm,
    RMSNorm,
    UnitRMS,
    ZeroCentredRMSNorm,
    unit_rms_slowly,
)
from tiny_transformer.layers.rope import apply_rope, rope_cos_sin

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_is_its_formula():
    norm, hidden = RMSNorm(5, eps=0.1), random(3, 4, 5)
    with torch.no_grad():
        norm.weight.copy_(random(5, seed=1))
        for got, row in zip(norm(hidden).view(-1, 5), hidden.view(-1, 5), strict=True):
            root = math.sqrt(sum(float(x) ** 2 for x in row) / 5 + 0.1)
            expected = torch.tensor([float(w) * float(x) / root for w, x in zip(norm.weight, row, strict=True)])
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_gradient_of_unit_rms_is_that_of_its_slow_twin():
    hidden = random(3, 4, 6).double()
    hidden[0, 0] = 0.0  # only eps keeps this row's gradient finite
    hidden.requires_grad_()
    torch.testing.assert_close(UnitRMS.apply(hidden, 0.1), unit_rms_slowly(hidden, 0.1), rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: UnitRMS.apply(x, 0.1), hidden)
    grad = random(3, 4, 6, seed=1).double()
    (ours,) = torch.autograd.grad(UnitRMS.apply(hidden, 0.1), hidden, grad)
    (slow,) = torch.autograd.grad(unit_rms_slowly(hidden, 0.1), hidden, grad)
    torch.testing.assert_close(ours, slow, rtol=1e-13, atol=1e-13)


def test_rms_norm_of_large_half_precision_numbers_does_not_overflow():
    hidden = torch.tensor([[300.0, -400.0]], dtype=torch.float16)  # 400^2 is beyond float16
    expected = torch.tensor([[300.0, -400.0]]) / math.sqrt((300**2 + 400**2) / 2)
    torch.testing.assert_close(RMSNorm(2, 1e-6).half()(hidden).float(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [RMSNorm, LateCastRMSNorm, ZeroCentredRMSNorm, GatedRMSNorm])
def test_a_norm_of_a_float64_model_computes_in_float64(kind):
    hidden, gate = random(3, 4, 6).double(), random(3, 4, 6, seed=1).double()
    norm = kind(6, 1e-5).double()
    with torch.no_grad():
        norm.weight.copy_(random(6, seed=2))
    expected = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = expected * (1 + norm.weight if kind is ZeroCentredRMSNorm else norm.weight)
    inputs = (hidden,)
    if kind is GatedRMSNorm:
        inputs, expected = (hidden, gate), expected * gate * gate.sigmoid()
    torch.testing.assert_close(norm(*inputs), expected, rtol=1e-12, atol=1e-12)


def test_layer_norm_is_its_formula():
    norm, hidden = LayerNorm(5, eps=0.1), random(4, 5)
    with torch.no_grad():
        norm.weight.copy_(random(5, seed=1))
        norm.bias.copy_(random(5, seed=2))
        mean = hidden.mean(-1, keepdim=True)
        variance = (hidden - mean).square().mean(-1, keepdim=True)
        expected = norm.weight * (hidden - mean) / torch.sqrt(variance + 0.1) + norm.bias
        torch.testing.assert_close(norm(hidden), expected, rtol=1e-6, atol=1e-6)


def test_swiglu_is_its_formula():
    block, hidden = SwiGLU(4, 6), random(2, 3, 4)
    with torch.no_grad():
        gate, up, down = block.gate_proj.weight, block.up_proj.weight, block.down_proj.weight
        x = hidden @ gate.T
        expected = (x / (1 + torch.exp(-x)) * (hidden @ up.T)) @ down.T
        torch.testing.assert_close(block(hidden), expected, rtol=1e-6, atol=1e-6)
    assert sorted(block.state_dict()) == ["down_proj.weight", "gate_proj.weight", "up_proj.weight"]


def test_rope_turns_each_pair_in_the_complex_plane():
    positions = torch.tensor([[0, 1, 7, 1000]])
    heads = random(1, 4, 2, 6)
    cos, sin = rope_cos_sin(positions, head_dim=6, theta=50.0, dtype=torch.float32)
    got = apply_rope(heads, cos, sin)
    for t, position in enumerate(positions[0].tolist()):
        for h in range(2):
            for j in range(3):
                pair = complex(heads[0, t, h, j], heads[0, t, h, j + 3])
                turned = pair * cmath.exp(1j * position * 50.0 ** (-2 * j / 6))
                assert got[0, t, h, j].item() == pytest.approx(turned.real, abs=1e-4)
                assert got[0, t, h, j + 3].item() == pytest.approx(turned.imag, abs=1e-4)


def test_rope_scores_depend_on_the_distance_alone():
    query, key = random(1, 1, 1, 8), random(1, 1, 1, 8, seed=1)

    def score(query_position: int, key_position: int) -> float:
        turned = [
            apply_rope(x, *rope_cos_sin(torch.tensor([[p]]), head_dim=8, theta=100.0, dtype=torch.float32))
            for x, p in ((query, query_position), (key, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


def test_rope_angles_are_float32_in_half_precision_models():
    positions = torch.tensor([[256, 257]])
    cos, sin = rope_cos_sin(positions, head_dim=4, theta=10_000.0, dtype=torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    for t, position in enumerate((256, 257)):  # bfloat16 would round both positions to 256
        assert cos[0, t, 0, 0].item() == pytest.approx(math.cos(position), abs=4e-3)


def brute_force_mask(num_queries, num_keys, window, doc_ids):
    rows = doc_ids.tolist() if doc_ids is not None else [[0] * num_keys]
    mask = torch.zeros(len(rows), 1, num_queries, num_keys, dtype=torch.bool)
    for b, documents in enumerate(rows):
        for t in range(num_queries):
            place = num_keys - num_queries + t
            for s in range(num_keys):
                near = window is None or place - s < window
                mask[b, 0, t, s] = s <= place and near and documents[s] == documents[place]
    return mask


@pytest.mark.parametrize("window", [None, 1, 3, 7, 8])
@pytest.mark.parametrize("num_queries", [1, 2, 7])
@pytest.mark.parametrize("documents", [None, [[0, 0, 0, 1, 1, 1, 1], [-1, -1, 0, 0, 1, 2, 2]]])
def test_attention_mask_is_who_may_see_whom(window, num_queries, documents):
    doc_ids = torch.tensor(documents) if documents else None
    mask = attention_mask(num_queries, 7, window=window, doc_ids=doc_ids, device=CPU)
    expected = brute_force_mask(num_queries, 7, window, doc_ids)
    if mask is None:  # plain causal: the operator's own path
        assert num_queries in (1, 7) and expected.equal(brute_force_mask(num_queries, 7, None, None))
    else:
        assert mask.equal(expected)


def test_no_mask_is_built_where_the_operator_needs_none():
    for num_queries, num_keys, window in ((7, 7, None), (1, 7, None), (7, 7, 7), (1, 7, 9)):
        assert attention_mask(num_queries, num_keys, window=window, doc_ids=None, device=CPU) is None


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1), (3, 1)])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 9), (5, 5), (3, 9), (33, 33), (129, 129)])
@pytest.mark.parametrize("kind", ["causal", "window", "documents"])
def test_fast_attention_equals_the_slow_twin_in_outputs_and_gradients(heads, groups, num_queries, num_keys, kind):
    doc_ids = (torch.arange(num_keys) // 4)[None] if kind == "documents" else None
    window = 3 if kind == "window" else None
    mask = attention_mask(num_queries, num_keys, window=window, doc_ids=doc_ids, device=CPU)
    found = []
    for function in (attend, attend_slowly):
        tensors = [random(2, heads, num_queries, 6), random(2, groups, num_keys, 6, seed=1)]
        tensors.append(random(2, groups, num_keys, 6, seed=2))
        query, key, value = (t.requires_grad_() for t in tensors)
        out = function(query=query, key=key, value=value, mask=mask)
        (out * random(*out.shape, seed=3)).sum().backward()
        found.append((out, query.grad, key.grad, value.grad))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)


def test_slow_attention_is_its_formula_for_one_query():
    query, key, value = random(1, 2, 1, 4), random(1, 1, 3, 4, seed=1), random(1, 1, 3, 4, seed=2)
    out = attend_slowly(query=query, key=key, value=value, mask=None)
    for h in range(2):
        scores = [math.exp(float(query[0, h, 0] @ key[0, 0, s]) / 2) for s in range(3)]
        expected = sum(x / sum(scores) * value[0, 0, s] for s, x in enumerate(scores))
        torch.testing.assert_close(out[0, h, 0], expected, rtol=0, atol=1e-6)


def test_attention_weights_sum_to_one_and_respect_the_mask():
    mask = attention_mask(5, 5, window=2, doc_ids=None, device=CPU)
    weights = attention_weights(query=random(1, 2, 5, 4), key=random(1, 1, 5, 4, seed=1), mask=mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 5))
    assert (weights[~mask.expand_as(weights)] == 0).all() and (weights[mask.expand_as(weights)] > 0).all()


def test_attention_without_a_mask_is_refused_where_it_would_be_ambiguous():
    with pytest.raises(ValueError, match="3 queries over 5 keys"):
        attend(query=random(1, 1, 3, 4), key=random(1, 1, 5, 4), value=random(1, 1, 5, 4), mask=None)


@pytest.mark.parametrize("function", [attend, attend_slowly])
def test_attention_dropout_zeroes_its_share_and_rescales_the_rest(function):
    torch.manual_seed(0)
    size = 200
    out = function(  # equal scores and one-hot values: the output is the row of weights after dropout
        query=torch.zeros(1, 1, 1, size),
        key=torch.zeros(1, 1, size, size),
        value=torch.eye(size)[None, None],
        mask=torch.ones(1, 1, 1, size, dtype=torch.bool),
        dropout=0.25,
    )
    kept = out[out > 0]
    assert 0.65 < len(kept) / size < 0.85
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / size / 0.75))
