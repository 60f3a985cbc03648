"""Rows of a frozen table that learn: outputs and gradients beside the whole table written out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tiny_transformer.layers.tied_head import TiedHead
from tiny_transformer.layers.token_rows import RowsEmbedding, RowsHead, rows_slowly

IDS = torch.tensor([[0, 6, 3, 6], [2, 2, 1, 0]])


def table() -> nn.Embedding:
    found = nn.Embedding(7, 5)
    torch.manual_seed(2)
    nn.init.normal_(found.weight)
    return found


def rows(layer):
    layer.start()
    with torch.no_grad():
        layer.token_rows.normal_(generator=torch.Generator().manual_seed(3))
    return layer


def test_at_first_rows_are_those_of_the_table_and_nothing_changes():
    base = table()
    layer, hidden = RowsEmbedding(base, [6, 2]), torch.randn(3, 5)
    layer.start()
    assert torch.equal(layer(IDS), base(IDS)) and torch.equal(layer.merged(), base.weight)
    expected = functional.linear(hidden, base.weight)
    torch.testing.assert_close(TiedHead(layer)(hidden), expected, rtol=0, atol=1e-6)


def test_outputs_and_gradients_equal_the_slow_twins():
    layer, found = rows(RowsEmbedding(table(), [6, 2])), []
    for compute in (lambda: layer(IDS), lambda: rows_slowly(layer, IDS)):
        layer.zero_grad()
        out = compute()
        (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        found.append((out.detach(), layer.token_rows.grad))
    assert torch.equal(found[0][0], found[1][0]) and layer.token_rows.grad.abs().min() > 0
    torch.testing.assert_close(found[0][1], found[1][1])
    assert torch.equal(layer(IDS)[0, 1], layer.token_rows[0])


def test_a_head_alone_or_tied_gives_the_logits_of_the_whole_table():
    embedding, hidden = rows(RowsEmbedding(table(), [6, 2])), torch.randn(2, 3, 5, requires_grad=True)
    linear = nn.Linear(5, 7, bias=False)
    linear.weight = nn.Parameter(table().weight.detach())
    for head, learnt in ((TiedHead(embedding), embedding), (rows(RowsHead(linear, [6, 2])), None)):
        whole, found = learnt or head, []
        for compute in (head, lambda x, whole=whole: functional.linear(x, whole.merged())):
            whole.zero_grad()
            hidden.grad = None
            compute(hidden).square().sum().backward()
            found.append((compute(hidden).detach(), hidden.grad, whole.token_rows.grad))
        for ours, slow in zip(*found, strict=True):
            torch.testing.assert_close(ours, slow, rtol=1e-5, atol=1e-5)
    assert dict(TiedHead(embedding).named_parameters()) == {}


def test_only_the_rows_learn():
    layer = rows(RowsEmbedding(table(), [6, 2]))
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"token_rows"}
    TiedHead(layer)(layer(IDS)).sum().backward()
    assert layer.base.weight.grad is None and layer.token_rows.grad is not None
