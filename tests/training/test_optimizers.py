"""Muon against PyTorch's own, who gets decay, and the state by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.models import build_model
from tiny_transformer.training.muon import Muon, orthogonalise
from tiny_transformer.training.optimizers import Optimizers

SHAPE = Qwen3Config(
    vocab_size=17,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def trained(config: TrainingConfig, steps: int) -> tuple[nn.Module, Optimizers]:
    model = build_model(SHAPE, seed=1)
    optimizers = Optimizers(model, config)
    for step in range(steps):
        ids = torch.arange(10).view(2, 5) + step
        model(ids).logsumexp(-1).sum().backward()
        optimizers.step(1.0)
    return model, optimizers


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_muon_equals_pytorchs_in_its_precision(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], 0.02, weight_decay=0.1, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1),
    ]
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalised_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(3)), full_matrices=False)
    matrix = u @ torch.linspace(1.0, 0.2, min(shape)).diag() @ v
    result = orthogonalise(matrix, torch.float32)
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.6
    assert singular.max() < 1.25
    aligned = (u.T @ result @ v.T).diagonal()  # the same directions, lengths near 1
    torch.testing.assert_close(aligned.sort().values, singular.sort().values, rtol=0, atol=1e-4)


def test_muon_refuses_what_is_not_a_matrix() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        Muon([nn.Parameter(torch.zeros(3))], 0.1)


def test_decay_shrinks_matrices_and_leaves_norms_alone() -> None:
    model = build_model(SHAPE, seed=1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = Optimizers(model, TrainingConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(1.0)
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.ndim == 2 else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)


def test_the_rate_factor_scales_every_group() -> None:
    model, optimizers = trained(TrainingConfig(optimizer="muon"), 1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.arange(4)[None]).sum().backward()
    optimizers.step(0.0)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_loaded_state_continues_bit_for_bit(kind: str) -> None:
    config = TrainingConfig(optimizer=kind)  # ty: ignore[invalid-argument-type]
    model, optimizers = trained(config, 3)
    twin = build_model(SHAPE, seed=2)
    twin.load_state_dict(model.state_dict())
    twin_optimizers = Optimizers(twin, config)
    twin_optimizers.load_state({name: value.clone() for name, value in optimizers.state().items()})
    for one, its in ((model, optimizers), (twin, twin_optimizers)):
        one(torch.arange(6)[None]).logsumexp(-1).sum().backward()
        its.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert {name.rpartition("/")[2] for name in optimizers.state()} == (
        {"step", "exp_avg", "exp_avg_sq"} | ({"momentum_buffer"} if kind == "muon" else set())
    )


def test_state_that_does_not_fit_is_refused() -> None:
    model, optimizers = trained(TrainingConfig(), 1)
    state = optimizers.state()
    with pytest.raises(KeyError, match="belongs to no weight"):
        Optimizers(model, TrainingConfig()).load_state({**state, "nobody/exp_avg": torch.zeros(1)})
    del state["model.norm.weight/step"], state["model.norm.weight/exp_avg"], state["model.norm.weight/exp_avg_sq"]
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        Optimizers(model, TrainingConfig()).load_state(state)
