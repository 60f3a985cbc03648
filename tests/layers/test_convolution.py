"""The causal convolution against its formula, with documents and in pieces."""

from __future__ import annotations

import pytest
import torch

from tiny_transformer.layers.convolution import causal_convolution, next_window


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("segments", [None, [[0, 0, 1, 1, 1, 2, 3], [0, 0, 0, 0, 0, 0, 1]]])
def test_it_is_its_formula(taps, segments):
    inputs, weight, window = random(2, 7, 3), random(3, 1, taps, seed=1), random(2, taps - 1, 3, seed=2)
    rows = segments or [[0] * 7] * 2
    tensor = None if segments is None else torch.tensor(segments)
    out = causal_convolution(inputs, weight, window=window, segments=tensor)
    for b in range(2):
        for t in range(7):
            expected = torch.zeros(3, dtype=torch.float64)
            for j in range(taps):
                place = t - (taps - 1) + j
                token = inputs[b, place] if place >= 0 else window[b, place]
                if (rows[b][place] if place >= 0 else 0) == rows[b][t]:
                    expected += weight[:, 0, j] * token
            torch.testing.assert_close(out[b, t], expected)


def test_it_equals_pytorchs_depthwise_convolution():
    inputs, weight = random(2, 9, 5), random(5, 1, 4, seed=1)
    theirs = torch.nn.functional.conv1d(inputs.mT, weight, groups=5, padding=3)[..., :9].mT
    torch.testing.assert_close(causal_convolution(inputs, weight, window=None, segments=None), theirs)


@pytest.mark.parametrize("splits", [[9], [1] * 9, [2, 5, 2], [4, 4, 1]])
def test_pieces_with_a_window_equal_the_whole(splits):
    inputs, weight, window = random(2, 9, 3), random(3, 1, 4, seed=1), torch.zeros(2, 3, 3, dtype=torch.float64)
    doc_ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0] * 9])
    whole = causal_convolution(inputs, weight, window=None, segments=doc_ids)
    parts, start = [], 0
    for part in inputs.split(splits, dim=1):
        ids = doc_ids[:, start : start + part.shape[1]]
        segments = ids - doc_ids[:, max(start - 1, 0)][:, None]
        parts.append(causal_convolution(part, weight, window=window, segments=segments))
        window = next_window(part, window=window, segments=segments)
        start += part.shape[1]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    assert window.shape == (2, 3, 3)
