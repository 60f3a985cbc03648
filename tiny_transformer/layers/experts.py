"""Sparse mixture of experts: a router sends each token to a few of many feed-forward blocks.

Shapes: N tokens (all rows of a batch together), C hidden_size, E experts, k experts per token.

No token is dropped and no expert has a limit. Sources: Shazeer et al., "Outrageously Large Neural Networks: The
Sparsely-Gated Mixture-of-Experts Layer", 2017; the balance loss is that of Fedus, Zoph and Shazeer, "Switch
Transformers", 2021, eq. 4 to 6, as transformers computes it for Qwen's models: over all layers together, for k experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class Routing(NamedTuple):
    """Where one layer's router sent its tokens.

    Attributes:
        probabilities: (N, E) at least float32, the router's softmax over all experts.
        chosen: (N, k) int64, each token's experts.
        weights: (N, k), the share of each in the token's result.
    """

    probabilities: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor


def route(logits: torch.Tensor, num_experts_per_tok: int) -> Routing:
    """Choose the most probable experts of each token; their weights are their probabilities.

    Args:
        logits: (N, E).
        num_experts_per_tok: k.
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    weights, chosen = probabilities.topk(num_experts_per_tok, dim=-1)
    return Routing(probabilities, chosen, weights)


def mix_experts(hidden: torch.Tensor, routing: Routing, experts: Sequence[nn.Module] | nn.ModuleList) -> torch.Tensor:
    """Each token's weighted sum of its experts' outputs: tokens are sorted by expert, and each expert runs once.

    An expert without tokens runs on an empty group, so that its gradient is zero and not absent.

    Args:
        hidden: (N, C).
        routing: `chosen` and `weights` of the tokens.
        experts: E modules, (n, C) to (n, C).

    Returns:
        (N, C).
    """
    k = routing.chosen.shape[1]
    assigned = routing.chosen.flatten()  # (N k,)
    order = assigned.argsort(stable=True)
    sizes = torch.bincount(assigned, minlength=len(experts)).tolist()
    groups = hidden[order // k].split(sizes)
    outputs = torch.cat([expert(group) for expert, group in zip(experts, groups, strict=True)])  # (N k, C)
    outputs = outputs[order.argsort()].unflatten(0, (-1, k))  # (N, k, C)
    return (outputs * routing.weights[..., None].to(outputs.dtype)).sum(dim=1)


def mix_experts_slowly(
    hidden: torch.Tensor, routing: Routing, experts: Sequence[nn.Module] | nn.ModuleList
) -> torch.Tensor:
    """What `mix_experts` computes, written out: every expert sees every token, and most results weigh nothing."""
    out = torch.zeros_like(hidden)
    for e, expert in enumerate(experts):
        weight = (routing.weights * (routing.chosen == e)).sum(dim=1)  # (N,), 0 where the token did not choose it
        out = out + weight[:, None].to(hidden.dtype) * expert(hidden)
    return out


def balance_loss(routings: Sequence[Routing], doc_ids: torch.Tensor | None) -> torch.Tensor:
    """E sum_e f_e P_e over all layers together: a scalar, k when every expert gets the same, more when not.

    f_e is the number of assignments to expert e per token (it has no gradient), P_e the mean probability the router
    gave it. Pressing P_e down where f_e is large moves tokens away from busy experts.

    Args:
        routings: one per sparse layer, at least one.
        doc_ids: (B, T) of the N = B T tokens, -1 for padding, from which nothing is learnt; None: no padding.
    """
    num_experts = routings[0].probabilities.shape[1]
    counted = _is_token(routings[0], doc_ids)
    num_tokens = counted.sum().clamp(min=1) * len(routings)
    mean = sum((r.probabilities * counted[:, None]).sum(dim=0) for r in routings) / num_tokens  # (E,)
    share = expert_load(routings, doc_ids).sum(dim=0) * routings[0].chosen.shape[1] / len(routings)  # (E,)
    return num_experts * (share * mean).sum()


@torch.no_grad()
def expert_load(routings: Sequence[Routing], doc_ids: torch.Tensor | None) -> torch.Tensor:
    """The share of each sparse layer's assignments that went to each expert, (layers, E); each row sums to one.

    Arguments of `balance_loss`.
    """
    rows = []
    for routing in routings:
        chosen = routing.chosen[_is_token(routing, doc_ids)]
        counts = torch.bincount(chosen.flatten(), minlength=routing.probabilities.shape[1])
        rows.append(counts.to(routing.probabilities.dtype) / counts.sum().clamp(min=1))
    return torch.stack(rows)


def _is_token(routing: Routing, doc_ids: torch.Tensor | None) -> torch.Tensor:
    """(N,) bool, False for padding."""
    if doc_ids is None:
        return torch.ones_like(routing.chosen[:, 0], dtype=torch.bool)
    return (doc_ids >= 0).flatten()
