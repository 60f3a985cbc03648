"""What every model promises, over one table of all models and variants."""

from __future__ import annotations

import sys

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


def test_left_padded_rows_equal_single_rows(model, input_ids):
    lengths, new_tokens = (11, 4, 1), 6
    padded = torch.zeros(3, 11, dtype=torch.long)
    positions, doc_ids = torch.zeros_like(padded), torch.full_like(padded, -1)
    for row, n in enumerate(lengths):
        padded[row, 11 - n :] = input_ids[row, :n]
        positions[row, 11 - n :] = torch.arange(n)
        doc_ids[row, 11 - n :] = 0
    cache = model.make_cache(3, 11 + new_tokens)
    got = [logits_of(model, padded, positions=positions, doc_ids=doc_ids, cache=cache)[:, -1:]]
    for step in range(new_tokens):
        ids = torch.stack([input_ids[row, n + step : n + step + 1] for row, n in enumerate(lengths)])
        got.append(logits_of(model, ids, positions=positions[:, -1:] + 1 + step, cache=cache))
    for row, n in enumerate(lengths):
        alone = logits_of(model, input_ids[row : row + 1, : n + new_tokens])[0, n - 1 :]
        torch.testing.assert_close(torch.cat(got, dim=1)[row], alone, **CLOSE)


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
            monkeypatch.setattr(sys.modules[type(model).__module__], "attend", attend_slowly)
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
