"""Causal depthwise convolution: each channel becomes a weighted sum of its own last few values.

Shapes: B batch, T tokens, C channels, K taps (kernel width).

Documents as in `layers.delta_rule`: `segments` (B, T) is 0 for tokens that go on with what was read before, and rises
by one where a document begins; nothing before such a place is seen after it.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def causal_convolution(
    inputs: torch.Tensor, weight: torch.Tensor, *, window: torch.Tensor | None, segments: torch.Tensor | None
) -> torch.Tensor:
    """out_t = sum_j weight_j * input_{t - (K - 1) + j}, the last tap on the token itself; zeros before the start.

    Args:
        inputs: (B, T, C).
        weight: (C, 1, K), as `torch.nn.Conv1d` holds it.
        window: (B, K - 1, C) inputs before the first token; None: zeros.
        segments: (B, T), or None: one document.

    Returns:
        (B, T, C).
    """
    T, K = inputs.shape[1], weight.shape[2]
    taps = weight[:, 0].unbind(-1)  # K of (C,)
    padded = _with_window(inputs, window, K)  # (B, K - 1 + T, C)
    out = inputs * taps[-1]
    for back in range(1, K):
        earlier = padded[:, K - 1 - back : K - 1 - back + T]
        if segments is not None:
            earlier = earlier * (functional.pad(segments, (back, 0))[:, :T] == segments)[..., None]
        out = torch.addcmul(out, earlier, taps[-1 - back])
    return out


def next_window(
    inputs: torch.Tensor,
    *,
    window: torch.Tensor,
    segments: torch.Tensor | None,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """The window (B, K - 1, C) for the tokens after `inputs`: zeros where another document stood.

    Args:
        inputs: (B, T, C).
        window: (B, K - 1, C) before them.
        segments: (B, T), or None: one document. What a row holds beyond its count has the segment of its last token.
        counts: (B,) how many of the T each row really holds, the first ones; None: all.
    """
    size, T = window.shape[1], inputs.shape[1]
    latest, padded = torch.cat((window, inputs), dim=1), segments
    if segments is not None:
        padded = functional.pad(segments, (size, 0))
    if counts is None:
        latest = latest[:, T:].contiguous()  # a view would keep all the inputs in memory
        padded = None if padded is None else padded[:, T:]
    else:
        index = counts[:, None] + torch.arange(size, device=inputs.device)  # (B, K - 1)
        latest = latest.gather(1, index[..., None].expand(-1, -1, inputs.shape[2]))
        padded = None if padded is None else padded.gather(1, index)
    return latest if padded is None or segments is None else latest * (padded == segments[:, -1:])[..., None]


def _with_window(inputs: torch.Tensor, window: torch.Tensor | None, K: int) -> torch.Tensor:
    if window is None:
        return functional.pad(inputs, (0, 0, K - 1, 0))
    return torch.cat((window, inputs), dim=1)
