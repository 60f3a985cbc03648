"""Attention in blocks of queries equals its slow twin: what is mixed, and every gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tiny_transformer.layers import blocked_attention
from tiny_transformer.layers.attention import attend, attend_slowly, attention_mask
from tiny_transformer.layers.blocked_attention import Block, attend_in_blocks, block_size, cut, read_in_blocks

CPU = torch.device("cpu")
LENGTHS = (1, 2, 63, 64, 65, 129, 200)


def heads(B: int, H: int, G: int, T: int, D: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values as the models have them: heads inside tokens in memory."""
    generator = torch.Generator().manual_seed(T)
    sizes = [(B, T, number, D) for number in (H, G, G)]
    return [torch.randn(size, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for size in sizes]


def outputs(form: Any, tensors: list[Tensor], mask: Tensor | None, **more: Any) -> list[Tensor]:
    """What a form mixes, and the gradients of queries, keys and values."""
    query, key, value = tensors
    mixed = form(query=query, key=key, value=value, mask=mask, **more)
    grad = torch.linspace(-1, 2, mixed.numel(), dtype=torch.float64).view(mixed.shape).sin()
    return [mixed, *torch.autograd.grad(mixed, tensors, grad.to(mixed.dtype))]


def doc_ids_of(kind: str, T: int) -> Tensor | None:
    """(3, T): rows with borders of their own, padding before or behind, an id that comes back."""
    places = torch.arange(T)
    rows = {
        "documents": [places // 50, (places + 17) // 90, places // (T + 1)],
        "padding": [torch.where(places < T // 3, -1, 0), torch.where(places >= T // 2, -1, 0), places * 0],
        "documents that come back": [places // 20 % 2, places // 70 % 3, places % 2],
    }
    return torch.stack(rows[kind]) if kind in rows else None


@pytest.mark.parametrize("kind", ["causal", "window", "documents", "padding", "documents that come back", "both"])
@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize(("num_heads", "num_groups"), [(4, 2), (2, 2), (3, 1)])
def test_blocks_equal_the_slow_twin_in_outputs_and_gradients(kind, num_tokens, num_heads, num_groups):
    tensors = heads(3, num_heads, num_groups, num_tokens, 4)
    doc_ids = doc_ids_of("documents" if kind == "both" else kind, num_tokens)
    window = {"window": 70, "both": 9}.get(kind)
    mask = attention_mask(num_tokens, num_tokens, window=window, doc_ids=doc_ids, device=CPU)
    for fast, slow in zip(outputs(attend_in_blocks, tensors, mask), outputs(attend_slowly, tensors, mask), strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["causal", "window", "documents", "padding"])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_a_prompt_read_in_blocks_is_a_rounding_away_from_float64(kind, num_tokens):
    query, key, value = (tensor.detach().bfloat16() for tensor in heads(3, 4, 2, num_tokens, 16))
    window = 70 if kind == "window" else None
    doc_ids = doc_ids_of(kind, num_tokens)
    mask = attention_mask(num_tokens, num_tokens, window=window, doc_ids=doc_ids, device=CPU)
    exact = attend_slowly(query=query.double(), key=key.double(), value=value.double(), mask=mask)
    with torch.inference_mode():
        found, fused = (form(query=query, key=key, value=value, mask=mask) for form in (read_in_blocks, attend))
    assert (found - exact).norm() <= 2**-7 * exact.norm() and found.shape == fused.shape
    assert torch.equal(found, fused) == (num_tokens <= block_size(1, 1, torch.bfloat16))


def test_what_is_no_prompt_in_bf16_is_read_by_the_fused_operator():
    query, key, value = (tensor.detach() for tensor in heads(2, 2, 1, 70, 4, torch.float32))
    assert torch.equal(*(form(query=query, key=key, value=value, mask=None) for form in (read_in_blocks, attend)))
    query, key, value = query[:, :, :3].bfloat16(), key.bfloat16(), value.bfloat16()
    mask = attention_mask(3, 70, window=None, doc_ids=None, device=CPU)
    assert torch.equal(*(form(query=query, key=key, value=value, mask=mask) for form in (read_in_blocks, attend)))


@pytest.mark.parametrize("window", [None, 300])
def test_blocks_equal_the_slow_twin_at_2048_tokens(window):
    tensors = heads(1, 1, 1, 2048, 4)
    mask = attention_mask(2048, 2048, window=window, doc_ids=None, device=CPU)
    for fast, slow in zip(outputs(attend_in_blocks, tensors, mask), outputs(attend_slowly, tensors, mask), strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "roundings"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("num_tokens", [65, 511])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_are_as_near_to_float64_as_their_precision(dtype, roundings, num_tokens, packed):
    """A few times the rounding of a number, relative to the whole tensor; bf16 is rounded once at each product."""
    rounded = [t.detach().requires_grad_() for t in heads(3, 4, 2, num_tokens, 32, dtype)]
    doc_ids = doc_ids_of("documents", num_tokens) if packed else None
    mask = attention_mask(num_tokens, num_tokens, window=None, doc_ids=doc_ids, device=CPU)
    exact = outputs(attend, [tensor.detach().double().requires_grad_() for tensor in rounded], mask)
    for fast, slow in zip(outputs(attend_in_blocks, rounded, mask), exact, strict=True):
        assert fast.dtype == dtype
        assert (fast.double() - slow).norm() <= roundings * torch.finfo(dtype).eps * slow.norm()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_weights_computed_anew_give_the_same_bits_as_kept_ones(packed, dropout, monkeypatch):
    tensors = heads(3, 4, 2, 150, 16, torch.float32)
    mask = attention_mask(150, 150, window=None, doc_ids=doc_ids_of("documents", 150) if packed else None, device=CPU)
    found = []
    for most in (2**30, 0):
        monkeypatch.setattr(blocked_attention, "KEPT_BYTES", most)
        torch.manual_seed(1)
        found.append(outputs(attend_in_blocks, tensors, mask, dropout=dropout))
    assert all(torch.equal(kept, anew) for kept, anew in zip(*found, strict=True))


def test_what_is_dropped_is_scaled_and_the_gradient_is_that_of_what_is_left():
    size, share = 130, 0.25
    query, key, _ = heads(2, 2, 1, size, 8)
    value = torch.eye(size, dtype=torch.float64).expand(2, 1, size, size)  # what is mixed are the weights themselves
    weights = attend_slowly(query=query, key=key, value=value, mask=None)
    torch.manual_seed(0)
    left = attend_in_blocks(query=query, key=key, value=value, mask=None, dropout=share)
    is_kept = left > 0
    torch.testing.assert_close(left, weights * is_kept / (1 - share), rtol=0, atol=1e-12)
    num_weights = 4 * size * (size + 1) // 2
    assert abs(is_kept.sum() / num_weights - (1 - share)) < 4 * (share * (1 - share) / num_weights) ** 0.5
    assert not torch.equal(is_kept[0, 0], is_kept[0, 1])
    tensors = heads(2, 2, 1, 70, 2)
    for packed in (False, True):
        doc_ids = doc_ids_of("documents", 70) if packed else None
        mask = attention_mask(70, 70, window=None, doc_ids=None if doc_ids is None else doc_ids[:2], device=CPU)

        def form(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = mask) -> Tensor:
            torch.manual_seed(0)  # the same ones dropped each time
            return attend_in_blocks(query=query, key=key, value=value, mask=mask, dropout=0.4)

        assert torch.autograd.gradcheck(form, tensors, fast_mode=True)


def test_the_numbers_of_dropout_come_from_the_run_s_generator():
    tensors = heads(1, 2, 2, 70, 4)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(outputs(attend_in_blocks, tensors, None, dropout=0.5))
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


def test_checkpointed_blocks_have_the_same_gradients():
    tensors = heads(2, 2, 1, 70, 4, torch.float32)

    def saving(**arguments: Any) -> Tensor:
        return checkpoint(partial(attend_in_blocks, **arguments), use_reentrant=False)

    found = []
    for form in (attend_in_blocks, saving):
        torch.manual_seed(0)
        found.append(outputs(form, tensors, None, dropout=0.2))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_keys_that_a_whole_block_may_not_see_are_left_out():
    size = block_size(256, 4, torch.float32)
    assert size == 64
    shape = torch.Size((2, 2, 256, 4))
    window = attention_mask(256, 256, window=10, doc_ids=None, device=CPU)
    everybody = slice(0, 2)
    assert cut(shape, torch.float32, window) == [
        Block(everybody, 0, 64, 0),
        Block(everybody, 64, 128, 55),
        Block(everybody, 128, 192, 119),
        Block(everybody, 192, 256, 183),
    ]
    same = torch.arange(256).expand(2, -1) // 128
    together = attention_mask(256, 256, window=None, doc_ids=same, device=CPU)
    assert [block.first for block in cut(shape, torch.float32, together)] == [0, 0, 128, 128]
    own = torch.arange(256) // torch.tensor([256, 16, 16, 16])[:, None]
    alone = cut(
        torch.Size((4, 2, 256, 4)), torch.float32, attention_mask(256, 256, window=None, doc_ids=own, device=CPU)
    )
    assert [(block.rows.start, block.first) for block in alone if block.rows.start == 1] == [
        (1, first) for first in (0, 64, 128, 192)
    ]


def test_a_half_precision_context_decides_the_type():
    tensors = heads(1, 2, 1, 70, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, *grads = outputs(attend_in_blocks, tensors, None)
    assert mixed.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_without_a_gradient_or_over_a_cache_it_is_the_fused_operator():
    query, key, value = heads(2, 2, 1, 70, 4, torch.float32)
    with torch.no_grad():
        assert torch.equal(
            attend_in_blocks(query=query, key=key, value=value, mask=None),
            attend(query=query, key=key, value=value, mask=None),
        )
    mask = attention_mask(3, 70, window=None, doc_ids=None, device=CPU)
    few = {"query": query[:, :, :3], "key": key, "value": value, "mask": mask}
    assert torch.equal(attend_in_blocks(**few), attend(**few))
    with pytest.raises(ValueError, match="explicit mask"):
        attend_in_blocks(**{**few, "mask": None})


def test_the_operator_is_what_a_compiler_needs():
    query, key, value = heads(2, 4, 2, 70, 4, torch.float32)
    doc_ids = doc_ids_of("documents", 70)
    assert doc_ids is not None
    mask = attention_mask(70, 70, window=None, doc_ids=doc_ids[:2], device=CPU)
    for given in (None, mask):
        torch.library.opcheck(blocked_attention._attend, (query, key, value, given, 0.1, torch.tensor(5)))
