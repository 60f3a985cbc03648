"""Experts: routing, the grouped form against the loop, the balance loss against its formula."""

from __future__ import annotations

import pytest
import torch

from tiny_transformer.layers.experts import (
    Routing,
    balance_loss,
    expert_load,
    mix_experts,
    mix_experts_slowly,
    route,
)
from tiny_transformer.layers.feed_forward import SwiGLU


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_experts(count: int) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    return torch.nn.ModuleList(SwiGLU(6, 7) for _ in range(count)).double()


@pytest.mark.parametrize("num_tokens", [1, 2, 65])
@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (4, 1), (4, 2), (4, 4), (33, 3)])
def test_groups_equal_the_loop_in_outputs_and_gradients(num_tokens, num_experts, k):
    experts, found = some_experts(num_experts), []
    for function in (mix_experts, mix_experts_slowly):
        hidden, logits = (
            random(num_tokens, 6).requires_grad_(),
            random(num_tokens, num_experts, seed=1).requires_grad_(),
        )
        experts.zero_grad(set_to_none=True)
        out = function(hidden, route(logits, k), experts)
        (out * random(*out.shape, seed=2)).sum().backward()
        found.append([out, hidden.grad, logits.grad, *(p.grad for p in experts.parameters())])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7)  # the softmax is float32


def test_no_token_is_dropped_when_all_choose_the_same_experts():
    hidden, experts = random(50, 6), some_experts(4)
    routing = Routing(torch.zeros(50, 4), torch.tensor([[2, 0]]).expand(50, 2), torch.full((50, 2), 0.5).double())
    expected = (experts[2](hidden) + experts[0](hidden)) / 2
    torch.testing.assert_close(mix_experts(hidden, routing, experts), expected)


def test_an_expert_without_tokens_has_a_gradient_of_zeros():
    experts = some_experts(3)
    routing = Routing(torch.zeros(5, 3), torch.ones(5, 1, dtype=torch.long), torch.ones(5, 1).double())
    mix_experts(random(5, 6), routing, experts).sum().backward()
    for e, expert in enumerate(experts):
        for parameter in expert.parameters():
            assert parameter.grad is not None and bool(parameter.grad.abs().max() > 0) == (e == 1)


def test_the_router_takes_the_most_probable_experts_of_all():
    routing = route(torch.tensor([[0.0, 2.0, 1.0, -1.0]]), 2)
    probabilities = torch.tensor([0.0, 2.0, 1.0, -1.0]).exp() / torch.tensor([0.0, 2.0, 1.0, -1.0]).exp().sum()
    assert routing.chosen.tolist() == [[1, 2]]
    torch.testing.assert_close(routing.probabilities[0], probabilities)
    torch.testing.assert_close(routing.weights[0], probabilities[[1, 2]])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_uniform_router_gives_k(k):
    chosen = torch.arange(10 * k).view(10, k) % 5  # every expert as often as any other
    routing = Routing(torch.full((10, 5), 0.2), chosen, torch.ones(10, k))
    assert balance_loss([routing, routing], None).item() == pytest.approx(k)


def test_the_balance_loss_is_its_formula_over_all_layers_without_padding():
    doc_ids = torch.tensor([[0, 0, 1, -1], [-1, 2, 2, 2]])
    routings = [route(random(8, 5, seed=seed), 2) for seed in (1, 2, 3)]
    rows, assignments, mean = 0, [0] * 5, [0.0] * 5
    for routing in routings:
        for n in range(8):
            if doc_ids.flatten()[n] >= 0:
                rows += 1
                for e in routing.chosen[n].tolist():
                    assignments[e] += 1
                for e in range(5):
                    mean[e] += routing.probabilities[n, e].item()
    expected = 5 * sum(a / rows * p / rows for a, p in zip(assignments, mean, strict=True))
    assert balance_loss(routings, doc_ids).item() == pytest.approx(expected, rel=1e-6)


def test_the_balance_loss_equals_transformers():
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    logits = tuple(random(12, 6, seed=seed).float() for seed in (1, 2))
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]])
    for attention_mask, doc_ids in ((None, None), (mask, mask - 1)):
        theirs = modeling.load_balancing_loss_func(logits, 6, 3, attention_mask)
        ours = balance_loss([route(x, 3) for x in logits], doc_ids)
        torch.testing.assert_close(ours, theirs)


def test_the_balance_loss_presses_down_busy_experts_alone():
    logits = torch.tensor([[2.0, 1.0, 0.0]] * 4).requires_grad_()
    balance_loss([route(logits, 1)], None).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_load_is_each_layers_share_of_assignments():
    chosen = torch.tensor([[0, 1], [0, 2], [0, 1], [3, 3]])
    routing = Routing(torch.zeros(4, 4), chosen, torch.ones(4, 2))
    load = expert_load([routing, routing], torch.tensor([[0, 0, 0, -1]]))
    torch.testing.assert_close(load, torch.tensor([[3, 2, 1, 0]] * 2) / 6)


def test_double_precision_stays_double():
    logits = random(7, 5)
    routing = route(logits, 2)
    assert routing.probabilities.dtype == routing.weights.dtype == torch.float64
    torch.testing.assert_close(routing.probabilities, logits.exp() / logits.exp().sum(-1, True), rtol=1e-14, atol=0)
    assert route(logits.half(), 2).probabilities.dtype == torch.float32
    load = expert_load([routing], None)
    assert load.dtype == torch.float64 and load.sum().item() == pytest.approx(1.0, abs=1e-15)
