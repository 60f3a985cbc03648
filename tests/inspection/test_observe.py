"""Watching a model: what is seen is what the forward pass computes, and what is left out is left out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tiny_transformer.config.shapes import LlamaConfig, Qwen3Config, Qwen3NextConfig
from tiny_transformer.inspection.head_scores import (
    COST_OF_REPEATS,
    LOOKS_AT_NEXT,
    copying_score,
    find_copier,
    find_repeats,
    first_token_score,
    looks_at_next_score,
    losses,
    previous_token_score,
    score_heads,
    without_parts,
)
from tiny_transformer.inspection.observe import Observation, logit_lens, logits_without, observe
from tiny_transformer.layers import attention as attention_module
from tiny_transformer.layers.attention import attend
from tiny_transformer.models import build_model
from tiny_transformer.tokenizers import make_tokenizer

SHAPE = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8),
    "qwen3_next": Qwen3NextConfig(**SHAPE, num_key_value_heads=2, head_dim=8),
}
IDS = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9]


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest):
    return build_model(CONFIGS[request.param], seed=4).double().eval()


def test_the_logits_and_the_last_block_are_those_of_the_plain_forward_pass(model) -> None:
    seen = observe(model, IDS, num_tokens=50)
    with torch.no_grad():
        logits = model(torch.tensor([IDS]))[0, :, :50]
    torch.testing.assert_close(seen.logits, logits, rtol=0, atol=1e-6)
    assert len(seen.hidden) == 4
    torch.testing.assert_close(logit_lens(model, seen)[-1], torch.log_softmax(logits, -1), rtol=0, atol=1e-6)


def test_attention_weights_give_the_layer_s_own_result(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block's weights times its values, against what its operator gave."""
    given = []

    def listening(**arguments):
        out = attend(**arguments)
        given.append((arguments["value"], out))
        return out

    for module in model.modules():
        if hasattr(module, "attend"):
            monkeypatch.setattr(module, "attend", listening)
    seen = observe(model, IDS)
    assert len(given) == len(seen.attention)
    for weights, (value, out) in zip(seen.attention.values(), given, strict=True):
        value = value[0].repeat_interleave(len(weights) // value.shape[1], dim=0)
        torch.testing.assert_close(weights @ value, out[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-6)
        assert not weights.triu(1).any()


def test_a_sliding_window_leaves_what_is_too_far_away_empty() -> None:
    config = Qwen3Config(
        **SHAPE, use_sliding_window=True, sliding_window=3, layer_types=["sliding_attention", "full_attention"] * 2
    )
    weights = observe(build_model(config, seed=0).eval(), IDS).attention
    assert not weights[0].tril(-3).any() and weights[1].tril(-3).any()


def test_memories_and_experts_are_those_of_the_layers() -> None:
    model = build_model(CONFIGS["qwen3_next"], seed=4).double().eval()
    seen = observe(model, IDS)
    cache = model.make_cache(1, len(IDS))
    with torch.no_grad():
        for t, token in enumerate(IDS):  # one at a time: the memory after each token
            model(torch.tensor([[token]]), cache=cache)
            for block, memory in seen.memories.items():
                norm = cache[block].state[0].flatten(1).norm(dim=1)
                torch.testing.assert_close(memory.norm[t], norm, rtol=0, atol=1e-6, check_dtype=False)
    assert set(seen.memories) == {0, 1, 2} and set(seen.attention) == {3} and set(seen.experts) == {0, 1, 2, 3}
    for memory in seen.memories.values():
        assert ((memory.decay > 0) & (memory.decay <= 1)).all()
    config = CONFIGS["qwen3_next"]
    assert seen.experts[0].chosen.shape == (len(IDS), config.num_experts_per_tok)


def test_without_a_head_is_with_zeros_in_its_columns_of_the_output_projection(model) -> None:
    block = max(observe(model, IDS).attention)
    projection = model.model.layers[block].self_attn.o_proj
    kept = projection.weight.data.clone()
    without = logits_without(model, IDS, block, 2)
    assert torch.equal(projection.weight, kept)
    with torch.no_grad():
        plain = model(torch.tensor([IDS]))[0]
        width = projection.in_features // 4
        projection.weight[:, 2 * width : 3 * width] = 0
        torch.testing.assert_close(without, model(torch.tensor([IDS]))[0], rtol=0, atol=1e-9)
    assert not torch.allclose(without, plain, atol=1e-6)


def test_without_a_block_is_without_what_it_adds(model) -> None:
    plain = observe(model, IDS)
    without = logits_without(model, IDS, 3)
    with torch.no_grad():
        lens = model.lm_head(model.model.norm(plain.hidden[2]))
    torch.testing.assert_close(without, lens, rtol=0, atol=1e-9)
    torch.testing.assert_close(observe(model, IDS).logits, plain.logits, rtol=0, atol=0)  # and it is back


def test_what_is_put_around_a_model_is_taken_away_again(model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(attention_module.functional, "scaled_dot_product_attention", broken)
        with pytest.raises(RuntimeError):
            observe(model, IDS)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert len(observe(model, IDS).hidden) == 4


def test_head_scores_by_hand() -> None:
    before, first = torch.eye(6).roll(1, 0)[None].clone(), torch.zeros(1, 6, 6)
    before[0, 0] = torch.eye(6)[0]
    first[0, :, 0] = 1
    copying = torch.zeros(1, 6, 6)
    copying[0, range(3, 6), range(1, 4)] = 0.5  # of a period of three: token 3 looks at 1, which came after 0
    assert previous_token_score(before).tolist() == [1] and previous_token_score(first).tolist() == [pytest.approx(0.2)]
    assert first_token_score(first).tolist() == [1] and first_token_score(before).tolist() == [pytest.approx(0.2)]
    assert copying_score(copying, 3).tolist() == [0.5] and copying_score(before, 3).tolist() == [0]


def test_what_comes_again_by_hand() -> None:
    """`Leo saw Mia, Leo saw`: the name comes again after the comma, the word after the name."""
    ids, texts = [1, 2, 3, 4, 1, 2], ["Leo", " saw", " Mia", ",", "Leo", " saw"]
    names = find_repeats(ids, texts)
    assert names.kind == "name" and names.places.nonzero().tolist() == [[3, 0]]
    words = find_repeats(ids, [text.lower() for text in texts])
    assert words.kind == "word" and words.places.nonzero().tolist() == [[3, 0], [4, 1]]
    assert find_repeats([1, 2, 2], ["a", ".", "."]).kind == "token"
    assert not find_repeats([1, 2, 3], ["a", "b", "c"]).places.any()
    weights = torch.zeros(2, 6, 6)
    weights[1, 3, 0], weights[1, 4, 1] = 0.75, 0.25
    assert looks_at_next_score(weights, names.places).tolist() == [0, 0.75]
    assert looks_at_next_score(weights, words.places).tolist() == [0, 0.5]


def test_the_head_that_copies_is_the_one_that_looks_there(model) -> None:
    tokenizer = make_tokenizer("byte")
    seen = observe(model, [*IDS, *IDS])
    repeats = find_repeats(seen.ids, ["a"] * len(seen.ids))
    without = without_parts(model, seen)
    scores = score_heads(model, seen, without, repeats, tokenizer)
    found = find_copier(seen, scores, without, repeats)
    assert found is not None and found.share == scores[LOOKS_AT_NEXT].nan_to_num(0).max()
    costs = without.heads[found.block][found.head]
    more = losses(logits_without(model, seen.ids, found.block, found.head), seen.ids) - losses(seen.logits, seen.ids)
    torch.testing.assert_close(costs, more)
    again = [t for t in range(len(seen.ids) - 1) if seen.ids[t + 1] in seen.ids[: t + 1]]
    assert found.cost == pytest.approx(sum(costs[t].item() for t in again) / len(again), abs=1e-6)
    assert scores[COST_OF_REPEATS][found.block, found.head].item() == pytest.approx(found.cost)
    assert found.token in again and costs[found.token] == costs[again].max()
    chances = [seen.ids[: t + 1].count(seen.ids[t + 1]) / (t + 1) for t in again]
    assert found.by_chance == pytest.approx(sum(chances) / len(chances))
    nothing = find_repeats([1, 2], ["a", "b"])
    assert find_copier(Observation([1, 2]), scores, without, nothing) is None


@pytest.mark.slow
def test_a_planted_copying_task_lights_the_heads_that_learnt_it() -> None:
    """Two blocks learn to write a random line again. What copies stands in the second block, and shows there alone."""
    vocabulary, period = 24, 12
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32
    )
    model, generator = build_model(config, seed=0), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def lines(num: int) -> torch.Tensor:
        return torch.randint(0, vocabulary, (num, period), generator=generator).repeat(1, 2)

    def scores() -> list[torch.Tensor]:
        text = lines(1)[0].tolist()
        return [copying_score(w, period) for w in observe(model.eval(), text).attention.values()]

    assert torch.stack(scores()).max() < 0.15
    model.train()
    for _ in range(60):
        batch = lines(32)
        logits = model(batch)[:, period:-1]
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), batch[:, period + 1 :].flatten()).backward()
        optimizer.step()
    first_block, second_block = scores()
    assert second_block.max() > 0.5 and first_block.max() < 0.15
    seen = observe(model.eval(), lines(1)[0].tolist())
    repeats, without = find_repeats(seen.ids, ["a"] * len(seen.ids)), without_parts(model, seen)
    looks = {LOOKS_AT_NEXT: torch.stack([looks_at_next_score(w, repeats.places) for w in seen.attention.values()])}
    costs = torch.stack([without.heads[block][:, repeats.rows[:-1]].mean(1) for block in (0, 1)])
    found = find_copier(seen, looks | {COST_OF_REPEATS: costs}, without, repeats)
    assert found is not None and found.block == 1 and found.share > 4 * found.by_chance
