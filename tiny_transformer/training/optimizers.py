"""AdamW for everything, or Muon for the hidden matrices and AdamW for the rest; saved and loaded by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.models.contract import CausalLM, trainable
from tiny_transformer.parallel.sharing import local_part
from tiny_transformer.training.muon import Muon

# Routers, and the projection that only gates the delta rule: each row decides for itself, so a matrix of equal singular
# values is no better a step.
_GATES = ("gate.weight", "in_proj_ba.weight", "in_proj_b.weight", "in_proj_a.weight")


def _is_for_muon(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and ".layers." in name and not name.endswith(_GATES)


class Optimizers:
    """The optimizers of one model behind one `step`.

    Weight decay acts on matrices only: norms and biases are scales and offsets, not directions to be shrunk.
    Muon takes the two-dimensional weights inside the blocks; embeddings, the output head, routers and other gates,
    convolutions, norms and biases always go to AdamW (Loshchilov and Hutter, 2019). Frozen weights go to neither.

    Args:
        model: whose trainable weights.
        config: which optimizer, and its settings.
        dtype: arithmetic of Muon's products, see `Hardware.update_dtype`.
    """

    def __init__(self, model: CausalLM, config: TrainingConfig, dtype: torch.dtype = torch.float32) -> None:
        named = trainable(model)
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in named}
        hidden = [p for name, p in named if config.optimizer == "muon" and _is_for_muon(name, p)]
        taken = set(hidden)
        rest = [p for _, p in named if p not in taken]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._all: list[torch.optim.Optimizer] = []
        if groups:
            betas = (config.beta1, config.beta2)
            self._all.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True))
        if hidden:
            self._all.append(Muon(hidden, config.muon_learning_rate, weight_decay=config.weight_decay, dtype=dtype))
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["peak_lr"] = group["lr"]

    def step(self, factor: float) -> None:
        """Update the weights with `factor` of each group's peak learning rate, then forget the gradients."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor the optimizers remember, as `parameter name/key`."""
        return {
            f"{self._names[parameter]}/{key}": value
            for optimizer in self._all
            for parameter, entries in optimizer.state.items()
            for key, value in entries.items()
            if torch.is_tensor(value)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what `state` gives after the first step."""
        found: dict[str, tuple[int, ...]] = {}
        for optimizer in self._all:
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                name, shape = self._names[parameter], tuple(parameter.shape)
                if isinstance(optimizer, Muon):
                    found[f"{name}/momentum_buffer"] = shape
                else:
                    found |= {f"{name}/step": (), f"{name}/exp_avg": shape, f"{name}/exp_avg_sq": shape}
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave: whole tensors, of which each process takes its part.

        Raises:
            KeyError: a tensor is missing or belongs to no parameter.
        """
        remaining = dict(tensors)
        for optimizer in self._all:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    prefix = self._names[parameter] + "/"
                    keys = [key for key in remaining if key.startswith(prefix)]
                    if not keys:
                        raise KeyError(f"the optimizer state has nothing for {self._names[parameter]}")
                    for key in keys:
                        value = remaining.pop(key).to(parameter.device)
                        is_like_it = value.shape == parameter.shape  # other values count for all parts of a weight
                        value = local_part(value, parameter) if is_like_it else value
                        optimizer.state[parameter][key.removeprefix(prefix)] = value
        if remaining:
            raise KeyError(f"the optimizer state has {next(iter(remaining))}, which belongs to no weight of this model")
