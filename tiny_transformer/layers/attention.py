"""Causal attention: who may see whom, the fast operator, and its slow readable twin.

Shapes: B batch, T queries, S keys (S >= T: without a `query_index` the queries are the last T of the S tokens), H query
heads, G key/value heads (H a multiple of G), D head_dim.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def attention_mask(
    num_queries: int,
    num_keys: int,
    *,
    window: int | None,
    doc_ids: torch.Tensor | None,
    device: torch.device,
    query_index: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Which keys each query may see: those not after it, inside its window, and of its own document.

    Args:
        num_queries: T.
        num_keys: S.
        window: a query sees this many tokens at most, itself included; None: no limit.
        doc_ids: (B, S) document of each key; None: all one document. Padding is a document of its own (-1 by
            convention): real tokens never see it, and it sees itself, so that no row of the softmax is empty.
        device: of the mask.
        query_index: (B, T) which of the S tokens each query is; None: the last T, in every row.

    Returns:
        (B or 1, 1, T, S) bool, True where the query may look; or None where no mask is needed, because T = S and only
        the order limits the view, or T = 1 and nothing does. `attend` then takes the operator's own causal path.
    """
    if window is not None and window >= num_keys:
        window = None
    if doc_ids is None and window is None and query_index is None and num_queries in (1, num_keys):
        return None
    key_index = torch.arange(num_keys, device=device)  # (S,)
    if query_index is None:
        query_index = key_index[None, num_keys - num_queries :]  # (1, T)
    allowed = key_index <= query_index[..., None]  # (B or 1, T, S)
    if window is not None:
        allowed &= key_index > query_index[..., None] - window
    if doc_ids is not None:
        own = doc_ids.gather(1, query_index.expand(len(doc_ids), -1))  # (B, T)
        allowed = allowed & (own[..., None] == doc_ids[:, None])
    return allowed[:, None]


def attend(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(query key^T / sqrt(D)) value, by the fused operator; query head h reads key/value head h // (H/G).

    Args:
        query: (B, H, T, D).
        key, value: (B, G, S, D).
        mask: from `attention_mask`; None: plain causal (T = S), or a single query that sees everything (T = 1).
        dropout: share of the attention weights set to zero.

    Returns:
        (B, H, T, D).

    Raises:
        ValueError: None as mask where the meaning depends on it (1 < T < S).
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    if mask is None and num_queries not in (1, num_keys):
        raise ValueError(f"{num_queries} queries over {num_keys} keys need an explicit mask")
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and num_queries > 1,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def attend_slowly(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """What `attend` computes, written out: the reference for it, and the way to look at the weights."""
    weights = attention_weights(query=query, key=key, mask=mask)  # (B, H, T, S)
    weights = functional.dropout(weights, p=dropout)
    value = value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # (B, H, S, D)
    return weights @ value


def attention_weights(*, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The softmax weights (B, H, T, S), computed in float32 at least and returned in the queries' dtype.

    Args:
        query: (B, H, T, D).
        key: (B, G, S, D).
        mask: as in `attend`.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    if mask is None:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(diagonal=num_keys - num_queries)  # query t is token S - T + t
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # (B, H, S, D)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
