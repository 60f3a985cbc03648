"""The gated delta rule as a float64 loop, put in the place of transformers' own: theirs rounds to four digits.

Their float32 sums of log decays reach -1000, so the difference of two neighbours keeps four digits; logits then differ
by about 1e-4 from this loop, which shares no line with the product code.
"""

from __future__ import annotations

from typing import Any

import torch


def exact_chunk_rule(query, key, value, g, beta, initial_state=None, output_final_state=False, **_):
    """In their words: (B, T, heads, width) tensors, keys and queries not normalised yet."""
    q, k, v, g, beta = (x.double() for x in (query, key, value, g, beta))
    q, k = ((x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()) for x in (q, k))
    repeats = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(repeats, 2) / k.shape[-1] ** 0.5, k.repeat_interleave(repeats, 2)
    memory = torch.zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1], dtype=torch.float64)
    if initial_state is not None:
        memory = initial_state.double()
    out = torch.empty_like(v)
    for t in range(v.shape[1]):
        memory = memory * g[:, t].exp()[..., None, None]
        wrong_by = v[:, t] - (memory * k[:, t, ..., None]).sum(2)
        memory = memory + k[:, t, ..., None] * (beta[:, t, :, None] * wrong_by)[:, :, None]
        out[:, t] = (memory * q[:, t, ..., None]).sum(2)
    return out.to(value.dtype), memory.float() if output_final_state else None


def replacements(transformers: Any) -> list[tuple[Any, str]]:
    """The module and name of every place where an installed transformers has its own form."""
    names = ("qwen3_next", "qwen3_5")
    modules = [getattr(getattr(transformers.models, n, None), f"modeling_{n}", None) for n in names]
    rules = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")
    return [(module, rule) for module in modules if module is not None for rule in rules]
