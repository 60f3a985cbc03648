"""What Qwen3-Next alone promises: a cache of constant size, an MTP head, experts, Qwen3.5's names without them."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from tiny_transformer.config.hf import config_from_hf
from tiny_transformer.config.shapes import Qwen3NextConfig
from tiny_transformer.layers.delta_rule import delta_rule_recurrently
from tiny_transformer.layers.experts import balance_loss, mix_experts_slowly
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.models.qwen3_next import model as architecture

CLOSE = {"rtol": 0, "atol": 2e-5}
SPARSE = ("next-sparse", "next-mixed", "next-second-head")


@pytest.fixture
def sparse(shake, all_configs):
    return shake(all_configs["next-second-head"])


def logits_of(model, *arguments, **keywords) -> torch.Tensor:
    with torch.no_grad():
        return model(*arguments, **keywords)


# --- cache
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_rollback_to_every_length_equals_a_fresh_run(shake, all_configs, input_ids, packed):
    model, input_ids = shake(all_configs["next-sparse"]), input_ids[:1]
    doc_ids = (torch.arange(17) // 6)[None] if packed else None

    def read(cache, start: int, end: int) -> torch.Tensor:
        part = None if doc_ids is None else doc_ids[:, start:end]
        return logits_of(model, input_ids[:, start:end], doc_ids=part, cache=cache)

    fresh = [(model.make_cache(1, 17))[0]]  # the first layer's cache after each number of tokens
    for length in range(1, 15):
        cache = model.make_cache(1, 17)
        read(cache, 0, length)
        fresh.append(cache[0])
    whole = logits_of(model, input_ids, doc_ids=doc_ids)
    for start in (0, 5):
        cache = model.make_cache(1, 17)
        if start:
            read(cache, 0, start)
        cache.snapshot()
        for a, b in ((start, 9), (9, 10), (10, 14)):  # in a few tokens, one, and a few again
            read(cache, a, b)
        for kept in range(14 - start, -1, -1):
            cache.rollback(kept)
            assert cache.length == start + kept
            torch.testing.assert_close(cache[0].state, fresh[start + kept].state, **CLOSE)
            torch.testing.assert_close(cache[0].window, fresh[start + kept].window, **CLOSE)
            if kept in (14 - start, 9 - start, 2, 0):
                torch.testing.assert_close(read(cache, start + kept, 17), whole[:, start + kept :], **CLOSE)
                cache.rollback(kept)


def test_a_recurrent_cache_does_not_grow(sparse):
    for max_len in (10, 1000):
        cache = sparse.make_cache(2, max_len)
        assert (cache[0].window.shape, cache[0].state.shape) == ((2, 3, 2 * 2 * 8 + 4 * 12), (2, 4, 8, 12))
    logits_of(sparse, torch.zeros(2, 500, dtype=torch.long), cache=cache)
    assert (cache[0].window.shape, cache[0].state.shape) == ((2, 3, 80), (2, 4, 8, 12)) and not cache[0]._since
    assert cache[0].window.untyped_storage().nbytes() == 4 * 2 * 3 * 80  # no view of all that was read
    assert cache.lengths == [500, 500]


def test_a_recurrent_cache_refuses_what_it_cannot_give(sparse, input_ids):
    cache = sparse.make_cache(3, 17)
    with pytest.raises(ValueError, match="no_grad"):
        sparse(input_ids, cache=cache)
    with pytest.raises(ValueError, match="snapshot"):
        cache.rollback(0)
    cache = sparse.make_cache(3, 17)
    cache.snapshot()
    logits_of(sparse, input_ids[:, :2], cache=cache)
    for n in (3, -1):
        with pytest.raises(ValueError, match=f"cannot keep {n} tokens: 2 "):
            cache.rollback(n)


# --- forms
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPARSE)
def test_slow_forms_equal_fast_ones_in_the_whole_model(shake, all_configs, input_ids, name, monkeypatch):
    model, found = shake(all_configs[name]), []
    doc_ids = (torch.arange(17) // 6).expand(3, -1)
    for slow in (False, True):
        if slow:
            monkeypatch.setattr(architecture, "gated_delta_rule", delta_rule_recurrently)
            monkeypatch.setattr(architecture, "mix_experts", mix_experts_slowly)
        model.zero_grad()
        hidden, auxiliary, _ = model.backbone(input_ids, doc_ids=doc_ids)
        (hidden.square().mean() + auxiliary).backward()
        found.append([hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-4 * max(1.0, slow.abs().max().item()))


def test_the_auxiliary_loss_is_the_balance_of_all_routers(sparse, input_ids, monkeypatch):
    seen = []
    route = architecture.route
    monkeypatch.setattr(architecture, "route", lambda *arguments: seen.append(route(*arguments)) or seen[-1])
    doc_ids = torch.zeros_like(input_ids)
    doc_ids[:, :4] = -1
    _, auxiliary, load = sparse.backbone(input_ids, doc_ids=doc_ids)
    assert len(seen) == 3
    assert auxiliary.item() == pytest.approx(0.001 * balance_loss(seen, doc_ids).item())
    assert auxiliary.item() > 0.002 * 0.99  # at least k, for two experts a token
    assert load.shape == (3, 4)
    torch.testing.assert_close(load.sum(dim=1), torch.ones(3))
    with torch.no_grad():
        assert sparse.backbone(input_ids, cache=sparse.make_cache(3, 17))[1] == 0


def test_the_auxiliary_loss_equals_transformers(transformers, shake, all_configs, input_ids, tmp_path):
    model = shake(all_configs["next-mixed"])
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(input_ids, output_router_logits=True).aux_loss
        torch.testing.assert_close(model.backbone(input_ids)[1], 0.001 * expected, rtol=1e-5, atol=0)


# --- the MTP head
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["next-second-head", "next-dense"])
def test_the_second_head_survives_byte_for_byte(shake, all_configs, tmp_path, name):
    for dtype in (torch.float32, torch.bfloat16):
        first, second = tmp_path / f"{dtype}-1", tmp_path / f"{dtype}-2"
        first.mkdir(), second.mkdir()
        save_model(shake(all_configs[name], dtype=dtype), first)
        save_model(load_model(first), second)
        assert any(name.startswith("mtp.layers.0.mlp.") for name in load_file(first / "model.safetensors"))
        for file in ("model.safetensors", "config.json"):
            assert (first / file).read_bytes() == (second / file).read_bytes()


def test_the_second_head_has_the_published_names(sparse):
    shapes = {name: list(p.shape) for name, p in sparse.named_parameters() if name.startswith("mtp.")}
    layer = {name.removeprefix("model.layers.1") for name, _ in sparse.named_parameters() if "model.layers.1." in name}
    assert {name.removeprefix("mtp.layers.0") for name in shapes if ".layers." in name} == layer
    rest = {name: shape for name, shape in shapes.items() if ".layers." not in name}
    norms = ("mtp.pre_fc_norm_embedding.weight", "mtp.pre_fc_norm_hidden.weight", "mtp.norm.weight")
    assert rest == {"mtp.fc.weight": [32, 64], **{key: [32] for key in norms}}


@pytest.mark.parametrize("written", [None, 0, 1])
def test_the_files_decide_whether_there_is_a_second_head(shake, all_configs, tmp_path, written):
    for name, there in (("next-second-head", True), ("next-sparse", False)):
        directory = tmp_path / name
        directory.mkdir()
        save_model(shake(all_configs[name]), directory)
        config = json.loads((directory / "config.json").read_text())
        config.pop("num_nextn_predict_layers")
        config |= {} if written is None else {"num_nextn_predict_layers": written}
        (directory / "config.json").write_text(json.dumps(config))
        model = load_model(directory)
        assert (model.mtp is not None) == there == bool(model.config.num_nextn_predict_layers)


def test_the_second_head_is_its_formula(sparse, input_ids):
    head, hidden = sparse.mtp, torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, _, _ = sparse.draft(hidden=hidden, next_ids=input_ids)
        parts = []
        for norm, x in (
            (head.pre_fc_norm_embedding, sparse.model.embed_tokens.weight[input_ids]),
            (head.pre_fc_norm_hidden, hidden),
        ):
            parts.append(x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + norm.weight))
        x = torch.cat(parts, dim=-1) @ head.fc.weight.T
        x, _ = head.layers[0](x, sparse._context(input_ids, None, None, None), None)
        expected = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + head.norm.weight)
    torch.testing.assert_close(got, expected, **CLOSE)


def test_a_second_head_sees_no_later_token_and_no_other_document(sparse, input_ids):
    doc_ids = (torch.arange(17) // 6).expand(3, -1)
    hidden = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, _, _ = sparse.draft(hidden=hidden, next_ids=input_ids, doc_ids=doc_ids)
        changed = input_ids.clone()
        changed[:, 8] = (changed[:, 8] + 1) % 61
        after, _, _ = sparse.draft(hidden=hidden, next_ids=changed, doc_ids=doc_ids)
    moved = (after - before).abs().amax((0, 2))
    assert moved[8:12].min() > 1e-3 and moved[:8].max() < 3e-6 and moved[12:].max() < 3e-6


@pytest.mark.parametrize("name", ["next-second-head", "next-dense"])
def test_drafts_with_a_cache_equal_drafts_without(shake, all_configs, input_ids, name):
    """Read in parts, by rows of different lengths, wrong guesses taken back: as if the whole text were read at once."""
    model, hidden = shake(all_configs[name]), torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(0))
    wrong, cache = (input_ids + 1) % 61, model.make_draft_cache(3, 17)

    def draft(ids: torch.Tensor, counts: tuple[int, int, int]) -> list[torch.Tensor]:
        begins, T = cache.lengths, max(counts)
        index = torch.tensor(begins)[:, None] + torch.arange(T)
        doc_ids = torch.where(torch.arange(T) < torch.tensor(counts)[:, None], 0, -1)
        ids, states = (
            ids.gather(1, index.clamp(max=16)),
            hidden.gather(1, index.clamp(max=16)[..., None].expand(-1, -1, 32)),
        )
        out, auxiliary, _ = model.draft(hidden=states, next_ids=ids, doc_ids=doc_ids, cache=cache)
        assert auxiliary == 0
        return [row[:n] for row, n in zip(out, counts, strict=True)]

    with torch.no_grad():
        whole, _, _ = model.draft(hidden=hidden, next_ids=input_ids)
        for counts, kept in (((6, 3, 1), None), ((1, 1, 1), None), ((3, 2, 4), (1, 2, 0)), ((1, 5, 9), None)):
            begins = cache.lengths
            if kept is not None:
                cache.snapshot()
                draft(wrong, counts)
                cache.rollback(0)
            for row, got in enumerate(draft(input_ids, counts)):
                torch.testing.assert_close(got, whole[row, begins[row] : begins[row] + counts[row]], **CLOSE)
            if kept is not None:
                cache.rollback(kept)
    assert cache.lengths == [9, 11, 11]


def test_a_model_without_a_second_head_says_so(shake, all_configs, input_ids):
    model = shake(all_configs["next-sparse"])
    with pytest.raises(ValueError, match="num_nextn_predict_layers is 0"):
        model.draft(hidden=torch.zeros(3, 17, 32), next_ids=input_ids)
    with pytest.raises(ValueError, match="num_nextn_predict_layers is 0"):
        model.make_draft_cache(1, 17)


# --- shapes and names
# ---------------------------------------------------------------------------------------------------------------


def test_without_experts_names_and_config_are_those_of_qwen3_5(shake, all_configs):
    model = shake(all_configs["next-dense"])
    hf = model.config.to_hf()
    assert (hf["model_type"], hf["architectures"]) == ("qwen3_5_text", ["Qwen3_5ForCausalLM"])
    assert not any("expert" in key or "moe" in key for key in hf)
    names = {name.rpartition("linear_attn.")[2] for name, _ in model.named_parameters() if "layers.0.linear" in name}
    projections = {f"in_proj_{part}.weight" for part in ("qkv", "z", "b", "a")}
    assert names == {*projections, "conv1d.weight", "A_log", "dt_bias", "norm.weight", "out_proj.weight"}


def test_packed_rows_are_the_four_matrices_by_key_head(shake, all_configs, input_ids):
    """Rows of in_proj_qkvz stand by key head: query, key, two values, two z. Unpacked, all is the same."""
    packed, split = (shake(all_configs[name]) for name in ("next-sparse", "next-dense"))
    one, two = packed.model.layers[0].linear_attn, split.model.layers[0].linear_attn
    with torch.no_grad():
        blocks = one.in_proj_qkvz.weight.view(2, 8 + 8 + 24 + 24, 32)
        query, key, value, z = (x.flatten(0, 1) for x in blocks.split((8, 8, 24, 24), dim=1))
        two.in_proj_qkv.weight.copy_(torch.cat((query, key, value)))
        two.in_proj_z.weight.copy_(z)
        b, a = (x.flatten(0, 1) for x in one.in_proj_ba.weight.view(2, 4, 32).chunk(2, dim=1))
        two.in_proj_b.weight.copy_(b)
        two.in_proj_a.weight.copy_(a)
        for name in ("conv1d.weight", "A_log", "dt_bias", "norm.weight", "out_proj.weight"):
            two.get_parameter(name).copy_(one.get_parameter(name))
        hidden = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(0))
        context = packed._context(input_ids, None, None, None)
        torch.testing.assert_close(two(hidden, context, None), one(hidden, context, None), rtol=0, atol=1e-6)


def test_a_regular_pattern_gives_its_interval_to_readers_that_know_only_that():
    theirs = {"model_type": "qwen3_next", "num_hidden_layers": 6, "layer_types": ["linear_attention"] * 6}
    assert config_from_hf(theirs, "x").full_attention_interval == 4
    theirs["layer_types"] = ["linear_attention", "linear_attention", "full_attention"] * 2
    config = config_from_hf(theirs, "x")
    assert config.full_attention_interval == 3 == config.to_hf()["full_attention_interval"]
    assert config.layer_types == Qwen3NextConfig(num_hidden_layers=6, full_attention_interval=3).layer_types


@pytest.mark.clock
@pytest.mark.parametrize("what", ["training", "generation"])
def test_time_grows_linearly_with_length(what):
    """The delta rule's share; attention is quadratic, and left out here."""
    shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    config = Qwen3NextConfig(**shape, num_experts=0, max_position_embeddings=8192, full_attention_interval=3)
    model = build_model(config, seed=0)

    def work(T: int) -> float:
        ids = torch.zeros(1, T, dtype=torch.long)
        started = time.process_time()
        if what == "training":
            model(ids).sum().backward()
        else:
            with torch.inference_mode():
                cache = model.make_cache(1, T)
                model.backbone(ids[:, : T // 2], cache=cache)
                for t in range(T // 2, T // 2 + 64):
                    model.backbone(ids[:, t : t + 1], cache=cache)
        return time.process_time() - started

    work(256)
    short, long = (min(work(T) for _ in range(3)) for T in (1024, 8192))
    assert long / short < 8 * 1.5, (short, long)


@pytest.mark.slow
def test_the_dense_hybrid_compiles_as_one_graph(shake, all_configs, input_ids):
    torch.compiler.reset()
    model = shake(all_configs["next-dense"])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    doc_ids = (torch.arange(17) // 6).expand(3, -1)
    for arguments in ({}, {"doc_ids": doc_ids}):
        torch.testing.assert_close(compiled(input_ids, **arguments), model(input_ids, **arguments), **CLOSE)
