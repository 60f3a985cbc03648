"""Muon: momentum, with each matrix's update replaced by the nearest orthogonal matrix.

A gradient of a weight matrix is dominated by a few directions; made orthogonal, it moves all of them equally far. The
nearest orthogonal matrix of M = U S V^T is U V^T; an odd polynomial applied a few times to the singular values drives
them towards 1 without an SVD.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the same update as
`torch.optim.Muon`, which is the oracle of its test. That one always orthogonalises in bf16, which a CPU without bf16
arithmetic does five times slower than fp32; here the type is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tiny_transformer.parallel.sharing import local_part, whole

# a x + b x^3 + c x^5 with the slope at 0 made as large as possible: singular values end between about 0.7 and 1.2
COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Muon for two-dimensional weights.

    Args:
        params: matrices only.
        lr: length of one update, for a square matrix; a tall one (more rows than columns) moves sqrt(rows / columns)
            further.
        weight_decay: as in AdamW, decoupled from the gradient.
        momentum: of the running mean of gradients, which is looked at one step ahead (Nesterov).
        dtype: arithmetic of the orthogonalisation.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype
        for group in self.param_groups:
            if any(parameter.ndim != 2 for parameter in group["params"]):
                raise ValueError("Muon takes matrices only; give other parameters to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # ty: ignore[incompatible-method-override]
        """One update of every parameter that has a gradient. An orthogonal matrix is no matter of parts: of a sharded
        weight every process computes the whole update and keeps its part."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(mean, group["momentum"])
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = local_part(orthogonalise(whole(ahead), self._dtype), parameter)
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def orthogonalise(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix near the closest (semi-)orthogonal one, (rows, columns), computed and returned in `dtype`."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if is_tall else x  # the Gram matrix below is then the smaller one
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
