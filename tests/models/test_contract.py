"""What every model promises, over one table of all models and variants."""

from __future__ import annotations

import pytest
import torch

from tiny_transformer.layers.attention import attend_slowly
from tiny_transformer.models import build_model, load_model, save_model

CLOSE = {"rtol": 0, "atol": 2e-5}  # logits are of size one


def same(model) -> dict[str, float]:
    """Equal to the bit; but a matrix product over an expert's tokens rounds by how many there are."""
    return {"rtol": 0, "atol": 3e-6 if getattr(model.config, "num_experts", 0) else 0}


def logits_of(model, *arguments, **keywords) -> torch.Tensor:
    with torch.no_grad():
        return model(*arguments, **keywords)


def test_a_later_token_does_not_change_earlier_logits(model, input_ids):
    before = logits_of(model, input_ids)
    changed = input_ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % model.config.vocab_size
    after = logits_of(model, changed)
    torch.testing.assert_close(after[:, :9], before[:, :9], **same(model))
    assert (after[:, 9] - before[:, 9]).abs().amax(-1).min() > 1e-3


def test_a_window_hides_what_lies_before_it(model, input_ids):
    config = model.config
    windowed = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    reach = (
        config.num_hidden_layers * (config.sliding_window - 1)
        if getattr(config, "sliding_window", None) and set(windowed) == {"sliding_attention"}
        else input_ids.shape[1]
    )
    changed = input_ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % config.vocab_size
    moved = (logits_of(model, changed) - logits_of(model, input_ids)).abs().amax((0, 2))
    assert moved[: reach + 1].min() > 0
    assert moved[reach + 1 :].numel() == 0 or moved[reach + 1 :].max() == 0


@pytest.mark.parametrize("splits", [[17], [1] * 17, [8, 9], [16, 1], [1, 16], [5, 1, 1, 7, 3]])
def test_cached_logits_equal_full_forward(model, input_ids, splits):
    cache = model.make_cache(3, 17)
    parts = [logits_of(model, part, cache=cache) for part in input_ids.split(splits, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), logits_of(model, input_ids), **CLOSE)
    assert cache.length == 17


def test_packed_documents_equal_separate_documents(model, input_ids):
    lengths = [5, 1, 11]
    doc_ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(3, -1)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)
    packed = logits_of(model, input_ids, positions=positions, doc_ids=doc_ids)
    separate = [logits_of(model, document) for document in input_ids.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(separate, dim=1), **CLOSE)


def test_packed_documents_through_the_cache_equal_separate_documents(model, input_ids):
    lengths = [5, 1, 11]
    doc_ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(3, -1)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)
    cache = model.make_cache(3, 17)
    parts = [
        logits_of(model, input_ids[:, a:b], positions=positions[:, a:b], doc_ids=doc_ids[:, a:b], cache=cache)
        for a, b in ((0, 4), (4, 6), (6, 7), (7, 17))
    ]
    separate = [logits_of(model, document) for document in input_ids.split(lengths, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), torch.cat(separate, dim=1), **CLOSE)


def test_batch_rows_are_independent(model, input_ids):
    together = logits_of(model, input_ids)
    changed = input_ids.clone()
    changed[0] = 0
    torch.testing.assert_close(logits_of(model, changed)[1:], together[1:], **same(model))
    alone = torch.cat([logits_of(model, row[None]) for row in input_ids])
    torch.testing.assert_close(alone, together, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_single_rows(model, input_ids, side):
    lengths = (11, 4, 1)
    padded, positions = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.long)
    doc_ids = torch.full_like(padded, -1)
    spans = [slice(11 - n, 11) if side == "left" else slice(0, n) for n in lengths]
    for row, span in enumerate(spans):
        padded[row, span] = input_ids[row, : lengths[row]]
        positions[row, span] = torch.arange(lengths[row])
        doc_ids[row, span] = 0
    got = logits_of(model, padded, positions=positions, doc_ids=doc_ids)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(got[row, spans[row]], logits_of(model, input_ids[row : row + 1, :n])[0], **CLOSE)


# --- a cache by row
# ---------------------------------------------------------------------------------------------------------------


def read(model, cache, *parts: torch.Tensor) -> list[torch.Tensor]:
    """Feed each row its own tokens, as many as there are, in one call; each row's logits."""
    longest = max(map(len, parts))
    ids, doc_ids = torch.zeros(len(parts), longest, dtype=torch.long), torch.full((len(parts), longest), -1)
    for row, part in enumerate(parts):
        ids[row, : len(part)], doc_ids[row, : len(part)] = part, 0
    logits = logits_of(model, ids, doc_ids=doc_ids, cache=cache)
    return [logits[row, : len(part)] for row, part in enumerate(parts)]


def read_ahead(model, cache, texts: torch.Tensor, *counts: int) -> None:
    """Feed each row the next so many tokens of its text, and compare with the text read whole and alone."""
    begins = cache.lengths
    parts = [text[n : n + count] for text, n, count in zip(texts, begins, counts, strict=True)]
    for text, n, count, got in zip(texts, begins, counts, read(model, cache, *parts), strict=True):
        expected = logits_of(model, text[None, : n + count])[0, n:]
        torch.testing.assert_close(got, expected, **CLOSE)
    assert cache.lengths == [n + count for n, count in zip(begins, counts, strict=True)]


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_any_length_equal_single_rows(model, input_ids, fixed):
    cache = model.make_cache(3, 17, fixed=fixed)
    for counts in ((9, 4, 1), (1, 1, 1), (2, 0, 5), (0, 1, 1), (1, 1, 1), (4, 4, 4), (0, 6, 4)):
        read_ahead(model, cache, input_ids, *counts)
    assert cache.lengths == [17, 17, 17]


def test_a_fixed_cache_says_what_a_growing_one_says(model, input_ids):
    growing, fixed = model.make_cache(3, 20), model.make_cache(3, 20, fixed=True)
    for part in input_ids.split([8, 1, 1, 5, 2], dim=1):
        got = logits_of(model, part, cache=fixed)
        torch.testing.assert_close(got, logits_of(model, part, cache=growing), **CLOSE)
    assert fixed.lengths == growing.lengths == [17] * 3
    with pytest.raises(ValueError, match="21 tokens do not fit into a cache made for 20"):
        logits_of(model, input_ids[:, :4], cache=fixed)


@pytest.mark.parametrize("fixed", [False, True])
def test_rollback_by_row_equals_a_fresh_run(model, input_ids, fixed):
    cache, wrong = model.make_cache(3, 17, fixed=fixed), (input_ids + 1) % model.config.vocab_size
    read_ahead(model, cache, input_ids, 6, 2, 4)
    cache.snapshot()
    read_ahead(model, cache, input_ids, 3, 1, 2)  # right so far
    read(model, cache, wrong[0, :4], wrong[1, :0], wrong[2, :1])
    read(model, cache, *wrong[:, 5:6])
    cache.rollback([3, 0, 2])
    assert cache.lengths == [9, 2, 6]
    read_ahead(model, cache, input_ids, 2, 3, 1)
    cache.rollback(1, rows=[0, 2])  # the other row stays where it is
    assert cache.lengths == [7, 5, 5]
    read_ahead(model, cache, input_ids, 10, 12, 12)
    cache.rollback(0)
    assert cache.lengths == [6, 2, 4]
    read_ahead(model, cache, input_ids, 1, 1, 1)


def test_an_emptied_row_equals_a_fresh_run(model, input_ids):
    cache, other = model.make_cache(3, 17), input_ids.flip(0, 1)
    read_ahead(model, cache, input_ids, 7, 5, 9)
    cache.snapshot()
    read_ahead(model, cache, input_ids, 1, 2, 3)
    cache.reset([1])
    assert cache.lengths == [8, 0, 12]
    texts = torch.stack((input_ids[0], other[1], input_ids[2]))  # another text begins in the row
    read_ahead(model, cache, texts, 1, 4, 1)
    cache.rollback([2, 3, 0])
    assert cache.lengths == [9, 3, 9]
    read_ahead(model, cache, texts, 2, 2, 2)
    cache.rollback([0, 0, 1])
    assert cache.lengths == [7, 0, 10]
    read_ahead(model, cache, texts, 3, 3, 3)
    cache.reset(range(3))
    read_ahead(model, cache, other, 17, 1, 17)


def test_a_prompt_read_once_and_copied_equals_reading_it_often(model, input_ids):
    once, texts = model.make_cache(1, 17), input_ids.clone()
    texts[:, :9] = input_ids[0, :9]
    logits_of(model, texts[:1, :7], cache=once)
    once.snapshot()
    logits_of(model, texts[:1, 7:9], cache=once)
    copies = once.select([0, 0, 0])
    read_ahead(model, copies, texts, 4, 1, 8)
    copies.rollback(2)  # the snapshot was copied too
    read_ahead(model, copies, texts, 1, 1, 1)
    read_ahead(model, once, texts[:1], 3)  # and the original is as it was
    chosen = copies.select([2, 0])
    read_ahead(model, chosen, texts[[2, 0]], 2, 7)
    assert copies.lengths == [10, 10, 10] and once.lengths == [12]


def test_documents_by_row_through_the_cache_equal_separate_documents(model, input_ids):
    """Rows of different lengths, whose documents end at different places: read, taken back to, copied, continued."""
    bounds = [(5, 9), (2, 8), (7, 9)]  # where a row's second document begins and ends
    doc_ids, positions = torch.zeros(3, 9, dtype=torch.long), torch.arange(9).repeat(3, 1)
    for row, (middle, end) in enumerate(bounds):
        doc_ids[row, middle:end], doc_ids[row, end:] = 4, -1
        positions[row, middle:] -= middle

    def check(got: torch.Tensor, row: int, middle: int, end: int, begin: int) -> None:
        """Logits from token `begin` on, against the two documents read alone."""
        documents = [part for part in (input_ids[row, :middle], input_ids[row, middle:end]) if len(part)]
        parts = [logits_of(model, document[None])[0] for document in documents]
        torch.testing.assert_close(got, torch.cat(parts)[begin:], **CLOSE)

    cache = model.make_cache(3, 17)
    cache.snapshot()
    got = logits_of(model, input_ids[:, :9], positions=positions, doc_ids=doc_ids, cache=cache)
    for row, (middle, end) in enumerate(bounds):
        check(got[row, :end], row, middle, end, 0)
    cache.rollback([3, 8, 7])  # in the first document, at the end, between the two
    for chosen, rows in ((cache.select([2, 1, 0, 1]), (2, 1, 0, 1)), (cache, (0, 1, 2))):
        begins = chosen.lengths
        ids = torch.stack([input_ids[row, n : n + 2] for row, n in zip(rows, begins, strict=True)])
        starts = [2 if row == 1 else 0 for row in rows]  # of the document that goes on, unnamed
        after = torch.tensor(begins)[:, None] - torch.tensor(starts)[:, None] + torch.arange(2)
        got = logits_of(model, ids, positions=after, cache=chosen)
        for place, (row, n, start) in enumerate(zip(rows, begins, starts, strict=True)):
            check(got[place], row, start, n + 2, n)


def test_padding_before_a_row_is_refused_with_a_cache(model, input_ids):
    doc_ids = torch.zeros(3, 4, dtype=torch.long)
    doc_ids[1, 0] = -1
    with pytest.raises(ValueError, match="padding stands behind the tokens of a row"):
        logits_of(model, input_ids[:, :4], doc_ids=doc_ids, cache=model.make_cache(3, 17))


def test_projections_come_by_head_before_rope(model, input_ids):
    """What a fused projection has to give: queries, keys, values (and, where there is one, a gate)."""
    config = model.config
    attention = next(block.self_attn for block in model.model.layers if hasattr(block, "self_attn"))
    hidden = torch.randn(3, 5, config.hidden_size, generator=torch.Generator().manual_seed(0))
    query, key, value, *gate = attention.project(hidden)
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert query.shape == (3, 5, heads, width) and all(g.shape == query.shape for g in gate)
    assert key.shape == value.shape == (3, 5, groups, width)
    torch.testing.assert_close(key.flatten(2), attention.k_proj(hidden), rtol=0, atol=0)
    torch.testing.assert_close(value.flatten(2), attention.v_proj(hidden), rtol=0, atol=0)


def test_rollback_equals_a_fresh_run(model, input_ids):
    cache = model.make_cache(3, 17)
    logits_of(model, input_ids[:, :6], cache=cache)
    cache.snapshot()
    wrong = (input_ids[:, 6:12] + 1) % model.config.vocab_size
    logits_of(model, torch.cat([input_ids[:, 6:8], wrong], dim=1), cache=cache)
    cache.rollback(2)
    assert cache.length == 8
    got = logits_of(model, input_ids[:, 8:], cache=cache)
    torch.testing.assert_close(got, logits_of(model, input_ids)[:, 8:], **CLOSE)
    cache.rollback(0)
    again = logits_of(model, input_ids[:, 6:], cache=cache)
    torch.testing.assert_close(again, logits_of(model, input_ids)[:, 6:], **CLOSE)


def test_saved_and_loaded_model_is_bit_exact(model, input_ids, tmp_path):
    save_model(model, tmp_path, eos_token_id=1)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(logits_of(loaded, input_ids), logits_of(model, input_ids))


def test_tied_weights_stay_tied(model, input_ids, tmp_path):
    save_model(model, tmp_path)
    for each in (model, load_model(tmp_path), build_model(model.config, seed=1, dtype=torch.bfloat16)):
        tied = each.lm_head.weight is each.model.embed_tokens.weight
        assert tied == model.config.tie_word_embeddings
        assert ("lm_head.weight" in dict(each.named_parameters())) != tied
    before = logits_of(model, input_ids)
    with torch.no_grad():
        model.model.embed_tokens.weight[60] += 1  # a token the input may not even have
    moved = (logits_of(model, input_ids) - before)[..., 60].abs().max() > 0.1
    assert moved or not model.config.tie_word_embeddings


def every_output(model, input_ids, **keywords) -> torch.Tensor:
    """Logits, and those of the MTP head where there is one."""
    logits = model(input_ids, **keywords)
    if getattr(model, "mtp", None) is None:
        return logits
    hidden, _, _ = model.backbone(input_ids, **keywords)
    drafted, _, _ = model.draft(hidden=hidden, next_ids=input_ids.roll(-1, dims=1), **keywords)
    return torch.cat((logits, model.lm_head(drafted)), dim=1)


def test_a_gradient_reaches_every_parameter(model, input_ids):
    every_output(model, input_ids).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("length", [1, 2, 7, 17])
@pytest.mark.parametrize("packed", [False, True])
def test_slow_attention_equals_fast_attention(model, input_ids, length, packed, monkeypatch):
    input_ids = input_ids[:, :length]
    doc_ids = (torch.arange(length) // 3).expand(3, -1) if packed else None
    found = []
    for slow in (False, True):
        if slow:
            for layer in [layer for layer in model.modules() if hasattr(layer, "attend")]:
                monkeypatch.setattr(layer, "attend", attend_slowly)
        model.zero_grad()
        logits = every_output(model, input_ids, doc_ids=doc_ids)
        logits.square().mean().backward()
        found.append((logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (fast, fast_grads), (slow, slow_grads) = found
    torch.testing.assert_close(fast, slow, **CLOSE)
    for name, grad in fast_grads.items():
        atol = max(1e-5, 1e-4 * grad.abs().max().item())
        torch.testing.assert_close(grad, slow_grads[name], rtol=1e-4, atol=atol, msg=name)


def test_dropout_acts_in_training_only_and_on_every_branch(config, input_ids):
    model = build_model(config, seed=0, dropout=0.5)
    plain = build_model(config, seed=0)
    assert torch.equal(logits_of(model.eval(), input_ids), logits_of(plain, input_ids))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p, old = 0.0, module.p
            assert old == 0.5
    assert torch.equal(logits_of(model, input_ids), logits_of(plain, input_ids))
    dropouts = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    attention = sum(kind != "linear_attention" for kind in getattr(config, "layer_types", [""] * 3))
    second_head = 2 * getattr(config, "num_nextn_predict_layers", 0)
    assert len(dropouts) == 1 + config.num_hidden_layers + attention + second_head
    for name, dropout in dropouts.items():
        if name.startswith("mtp."):
            continue
        dropout.p = 0.5
        assert not torch.equal(logits_of(model, input_ids), logits_of(plain, input_ids)), name
        dropout.p = 0.0


@pytest.mark.parametrize("silenced", [("o_proj.", "out_proj."), ("down_proj.",)])
def test_block_dropout_acts_on_each_residual_branch(config, input_ids, silenced):
    model = build_model(config, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in silenced):
                parameter.zero_()
    expected = logits_of(model, input_ids)
    for block in model.model.layers:
        block.dropout.p = 0.5
    assert not torch.equal(logits_of(model.train(), input_ids), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-layernorm", "qwen3-late-window"])
def test_the_model_compiles_as_one_graph(shake, all_configs, input_ids, name):
    torch.compiler.reset()
    model = shake(all_configs[name])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    doc_ids = (torch.arange(17) // 6).expand(3, -1)
    for arguments in ({}, {"doc_ids": doc_ids}):
        torch.testing.assert_close(compiled(input_ids, **arguments), model(input_ids, **arguments), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-window", "qwen3-late-window", "next-dense"])
def test_steps_with_a_fixed_cache_are_compiled_once(shake, all_configs, input_ids, name):
    torch.compiler.reset()
    model, graphs = shake(all_configs[name]), []

    def count(graph, _):
        graphs.append(graph)
        return graph

    step = torch.compile(model, backend=count, fullgraph=True)
    cache = model.make_cache(3, 17, fixed=True)
    with torch.no_grad():
        model(input_ids[:, :8], cache=cache)
        for t in range(8, 17):
            got = step(input_ids[:, t : t + 1], cache=cache)
            expected = model(input_ids[:, : t + 1])[:, -1:]
            torch.testing.assert_close(got, expected, **CLOSE)
    assert len(graphs) == 1 and cache.lengths == [17] * 3
