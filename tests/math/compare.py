"""Compares a page's formulas with the product, its backward with autograd, and both with central differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

FORWARD = 1e-12
AUTOGRAD = 1e-10
DIFFERENCES = 1e-6
STEP = 1e-5  # of a central difference: its error is the step squared, and rounding divided by the step

Array = np.ndarray
Tree = dict[Any, Any]


def draw(*shape: int, seed: int, scale: float = 1.0) -> Array:
    """Normally distributed numbers."""
    return np.random.default_rng(seed).normal(size=shape) * scale


class _Widen(TorchFunctionMode):
    """Where the product asks for float32, it gets float64: the same formulas, with the digits that 1e-10 needs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(_widened(a) for a in args)
        return func(*args, **{key: _widened(a) for key, a in (kwargs or {}).items()})


def _widened(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


@contextmanager
def in_float64() -> Iterator[None]:
    """Everything that the product computes inside is float64."""
    torch.set_default_dtype(torch.float64)
    try:
        with _Widen():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def near(got: Any, expected: Any, tolerance: float, what: str) -> None:
    """Assert that two arrays agree, measured by the larger of one and the largest expected number."""
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, not {expected.shape}"
    if got.size:
        error = np.max(np.abs(got - expected)) / max(1.0, np.max(np.abs(expected)))
        assert error <= tolerance, f"{what}: off by {error:.2e}"  # not a number is not <= either


def check(
    *,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    product: Callable[..., Any],
    inputs: list[Array],
    change: Callable[..., Any] | None = None,
) -> None:
    """Hold one part's formulas against the product and against differences.

    Args:
        forward: the page's way forward: arrays to an array or a tuple of arrays.
        backward: the page's way back: the outputs' gradients, then the inputs, to a tuple of the inputs' gradients.
        product: the product's way forward, tensors to a tensor or a tuple.
        inputs: the arrays to be differentiated by.
        change: the page's change to first order: the inputs' changes, then the inputs, to the outputs' changes.
    """
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    with np.errstate(all="ignore"):
        outputs = as_tuple(forward(*inputs))
        with in_float64():
            theirs = as_tuple(product(*leaves))
        assert len(outputs) == len(theirs)
        for i, (ours, its) in enumerate(zip(outputs, theirs, strict=True)):
            near(ours, its.detach().numpy(), FORWARD, f"output {i} and the product's")
        pushes = [draw(*np.shape(y), seed=1000 + i) for i, y in enumerate(outputs)]
        total = sum((t * torch.tensor(p)).sum() for t, p in zip(theirs, pushes, strict=True))
        gradients = as_tuple(backward(*pushes, *inputs))
        assert len(gradients) == len(inputs)
        for i, (ours, its) in enumerate(zip(gradients, torch.autograd.grad(total, leaves), strict=True)):
            near(ours, its.numpy(), AUTOGRAD, f"gradient {i} and autograd's")
        for seed in (2000, 3000):  # every number of every input moves at once, each time another way
            dots = [draw(*np.shape(y), seed=seed + i) for i, y in enumerate(inputs)]
            _differences(forward, inputs, dots, pushes, gradients, change)


def _differences(forward: Any, inputs: Any, dots: Any, pushes: Any, gradients: Any, change: Any) -> None:
    """Central differences along `dots` against the gradients and against the change to first order."""
    up, down = (as_tuple(forward(*(x + s * STEP * d for x, d in zip(inputs, dots, strict=True)))) for s in (1, -1))
    slopes = [(a - b) / (2 * STEP) for a, b in zip(up, down, strict=True)]
    by_gradient = pairing(gradients, dots)
    near(by_gradient, pairing(pushes, slopes), DIFFERENCES, "gradient and central differences")
    if change is not None:
        changes = as_tuple(change(*dots, *inputs))
        for ours, slope in zip(changes, slopes, strict=True):
            near(ours, slope, DIFFERENCES, "change and central differences")
        near(pairing(pushes, changes), by_gradient, AUTOGRAD, "change and gradient")


def pairing(gradients: Any, changes: Any) -> float:
    """sum(dy * y_dot) over several arrays."""
    return float(sum(np.sum(g * c) for g, c in zip(gradients, changes, strict=True)))


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def scrambled(module: nn.Module, *, seed: int) -> nn.Module:
    """The module in float64: matrices drawn anew, scales and offsets moved off where they start, so that none hides."""
    module = module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            drawn = torch.tensor(draw(*parameter.shape, seed=seed + i))
            if parameter.ndim > 1:
                parameter.copy_(drawn / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(drawn * 0.2)
    return module


def nested(flat: dict[str, Any]) -> Tree:
    """Hugging Face's names as the page writes them: `a.0.b.weight` becomes [a][0][b]."""
    tree: Tree = {}
    for name, value in flat.items():
        *path, last = (int(part) if part.isdigit() else part for part in name.removesuffix(".weight").split("."))
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """The reverse of `nested`, without `.weight`."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def check_module(
    module: nn.Module,
    *,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    product: Callable[..., Any],
    inputs: list[Array],
) -> None:
    """`check`, and the gradients of all weights.

    Args:
        module: the product's, from `scrambled`.
        forward: the page's: inputs and the nested weights.
        backward: the page's: the outputs' gradients, inputs and nested weights, to the inputs' gradients and then the
            nested weights' gradients.
        product: the product's: the module with its weights replaced, as a function; then the inputs.
        inputs: arrays to be differentiated by.
    """
    weights = {name: p.detach().numpy() for name, p in module.named_parameters()}
    names, n = list(weights), len(inputs)

    def tree(arrays: Any) -> Tree:
        return nested(dict(zip(names, arrays, strict=True)))

    def page_backward(*all_: Array) -> list[Array]:
        m = len(all_) - n - len(names)
        *gradients, dw = as_tuple(backward(*all_[: m + n], tree(all_[m + n :])))
        its = flat(dw)
        assert its.keys() == {name.removesuffix(".weight") for name in names}
        return [*gradients, *(its[name.removesuffix(".weight")] for name in names)]

    def call(*all_: torch.Tensor) -> Any:
        replaced = dict(zip(names, all_[n:], strict=True))
        return product(lambda *a, **k: torch.func.functional_call(module, replaced, a, k), *all_[:n])

    check(
        forward=lambda *all_: forward(*all_[:n], tree(all_[n:])),
        backward=page_backward,
        product=call,
        inputs=[*inputs, *weights.values()],
    )
