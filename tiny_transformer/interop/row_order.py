"""The two orders in which the rows of a rotated projection stand, and the way from one to the other.

Shapes: H heads, D head_dim, C hidden_size.

RoPE turns pairs of features. Hugging Face pairs j with j + D/2; llama2.c and llama.cpp's `llama` pair 2j with 2j + 1.
A query or key projection (or its bias) is the same layer in both when the rows of each head change places.
"""

from __future__ import annotations

import torch


def interleaved(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head from the order 0 2 4 ... 1 3 5 ... to 0 1 2 3 ...: (H*D, C) or (H*D,) to the same shape."""
    halves = tensor.view(-1, 2, head_dim // 2, *tensor.shape[1:])  # (H, 2, D/2, C)
    return halves.transpose(1, 2).reshape(tensor.shape)


def half_split(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head from the order 0 1 2 3 ... to 0 2 4 ... 1 3 5 ...; undoes `interleaved`."""
    pairs = tensor.view(-1, head_dim // 2, 2, *tensor.shape[1:])  # (H, D/2, 2, C)
    return pairs.transpose(1, 2).reshape(tensor.shape)


def is_rotated(name: str) -> bool:
    """Whether a parameter, by its Hugging Face name, is one whose rows change places."""
    return ".q_proj." in name or ".k_proj." in name
