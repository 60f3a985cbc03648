"""The cached loop writes what the uncached one writes, whatever stands beside a row, and always ends."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from tiny_transformer.errors import UserError
from tiny_transformer.generation.rows import Generation, generate_without_cache
from tiny_transformer.generation.sampling import SamplingConfig

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [12]]
GREEDY = SamplingConfig(temperature=0, max_new_tokens=20)
SAMPLED = SamplingConfig(temperature=1.0, top_k=20, top_p=0.95, repetition_penalty=1.2, max_new_tokens=20, seed=5)
# Cached and uncached products sum in another order; float64, logits of size 10.
TOLERANCE = {"rtol": 0, "atol": 1e-9}


def written(generation: Generation) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in generation.finish_reasons]
    for ids in generation:
        for row, token in zip(rows, ids, strict=True):
            if token is not None:
                row.append(token)
    return rows


@torch.inference_mode()
def full_logits(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0, -1]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], [[3, 4, 5], [6, 7, 8]]], ids=["ragged", "one", "even"])
def test_cached_logits_equal_full_forward_at_every_step(model, prompts):
    texts = [list(prompt) for prompt in prompts]
    generation = Generation(model, prompts, SAMPLED)
    num_steps = 0
    for ids in generation:
        for row, token in enumerate(ids):
            torch.testing.assert_close(generation.logits[row], full_logits(model, texts[row]), **TOLERANCE)
            texts[row].append(token)
        num_steps += 1
    assert num_steps == 20


def test_greedy_takes_the_argmax_of_the_full_forward(model):
    text = list(PROMPTS[1])
    for token in written(Generation(model, PROMPTS[1:2], GREEDY))[0]:
        assert token == full_logits(model, text).argmax().item()
        text.append(token)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_cached_loop_writes_what_the_uncached_one_writes(model, settings):
    end_ids = {0, 20, 30}
    generation = Generation(model, PROMPTS, settings, end_ids=end_ids, num_tokens=35)
    assert written(generation) == generate_without_cache(model, PROMPTS, settings, end_ids=end_ids, num_tokens=35)
    assert set(generation.finish_reasons) <= {"end", "length"}


def test_a_row_has_the_same_logits_and_tokens_alone_and_in_a_batch(model):
    """Not bit for bit: a matrix product over more rows may sum in another order. See TOLERANCE."""
    together = Generation(model, PROMPTS, SAMPLED)
    alone = [Generation(model, [prompt], SAMPLED) for prompt in PROMPTS]
    for ids in together:
        assert ids == [next(single)[0] for single in alone]
        for row, single in enumerate(alone):
            torch.testing.assert_close(together.logits[row], single.logits[0], **TOLERANCE)


def test_rows_of_equal_length_do_not_see_each_other(qwen3):
    first = written(Generation(qwen3, [[1, 2, 3], [4, 5, 6]], SAMPLED))[0]
    assert written(Generation(qwen3, [[1, 2, 3], [30, 31, 32]], SAMPLED))[0] == first


def test_same_seed_same_text_and_another_seed_another_text(qwen3):
    texts = [written(Generation(qwen3, PROMPTS, replace(SAMPLED, seed=seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert all(a != b for a, b in zip(texts[0], texts[2], strict=True))


def test_global_random_state_is_neither_read_nor_moved(qwen3):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = written(Generation(qwen3, PROMPTS, SAMPLED))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert written(Generation(qwen3, PROMPTS, SAMPLED)) == first


def test_copies_of_a_prompt_are_read_once_and_written_differently(qwen3):
    reads = []

    class Watched:
        def __getattr__(self, name):
            return getattr(qwen3, name)

        def backbone(self, input_ids, positions, doc_ids, cache):
            reads.append(tuple(input_ids.shape))
            return qwen3.backbone(input_ids, positions, doc_ids, cache)

    texts = written(Generation(Watched(), [[1, 2, 3]] * 4, SAMPLED))
    assert reads == [(1, 3)] + [(4, 1)] * 19
    assert len({tuple(text) for text in texts}) == 4
    assert texts[0] == written(Generation(qwen3, [[1, 2, 3]], SAMPLED))[0]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_copies_among_other_prompts_are_written_as_each_alone(model, settings):
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[1]]
    assert written(Generation(model, prompts, settings)) == generate_without_cache(model, prompts, settings)


def test_a_row_ends_at_an_end_token_and_the_others_go_on(qwen3):
    free = written(Generation(qwen3, PROMPTS, GREEDY))
    end = next(t for t in free[0] if t not in free[1])
    generation = Generation(qwen3, PROMPTS, GREEDY, end_ids=[end])
    texts = written(generation)
    assert texts[0] == free[0][: free[0].index(end)]
    assert texts[1] == free[1]
    assert generation.finish_reasons[:2] == ["end", "length"]


def test_finish_ends_a_row_and_iteration_ends_with_the_last(qwen3):
    generation = Generation(qwen3, PROMPTS[:2], GREEDY)
    assert None not in next(generation)
    generation.finish(0)
    ids = next(generation)
    assert ids[0] is None
    assert ids[1] is not None
    generation.finish(1)
    assert list(generation) == []
    assert generation.finish_reasons == ["stop", "stop"]


def test_max_new_tokens_is_exact(qwen3):
    for num_tokens in (1, 2, 7):
        generation = Generation(qwen3, PROMPTS, replace(SAMPLED, max_new_tokens=num_tokens))
        assert [len(text) for text in written(generation)] == [num_tokens] * 3
        assert generation.finish_reasons == ["length"] * 3


def test_the_context_limit_ends_each_row_and_is_said_once(qwen3, caplog):
    prompts = [[1] * 60, [2, 3] * 5, [4] * 64]
    generation = Generation(qwen3, prompts, replace(SAMPLED, max_new_tokens=1000))
    with caplog.at_level(logging.WARNING, "tiny_transformer"):
        texts = written(generation)
    assert [len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True)] == [65] * 3
    assert generation.finish_reasons == ["context"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "the text ends here: the model's context of 64 tokens is full"
    ]
    assert texts == generate_without_cache(qwen3, prompts, replace(SAMPLED, max_new_tokens=1000))


def test_a_text_that_just_fits_says_nothing(qwen3, caplog):
    generation = Generation(qwen3, [[1] * 60], replace(SAMPLED, max_new_tokens=5))
    assert len(written(generation)[0]) == 5
    assert generation.finish_reasons == ["length"]
    assert not caplog.records


def test_tokens_outside_the_tokenizer_are_never_chosen(qwen3):
    for settings in (GREEDY, replace(SAMPLED, temperature=3.0, top_k=None, top_p=None)):
        generation = Generation(qwen3, PROMPTS, replace(settings, max_new_tokens=40), num_tokens=13)
        assert max(max(text) for text in written(generation)) < 13
        assert generation.logits.shape == (3, 13)


def test_the_repetition_penalty_counts_prompt_and_text(model):
    settings = replace(GREEDY, repetition_penalty=1.5)
    for prompt, text in zip(PROMPTS, written(Generation(model, PROMPTS, settings)), strict=True):
        for n, token in enumerate(text):
            logits = full_logits(model, prompt + text[:n]).tolist()
            for seen in {*prompt, *text[:n]}:
                logits[seen] *= 1 / 1.5 if logits[seen] > 0 else 1.5
            assert token == max(range(40), key=logits.__getitem__)


REFUSED = [
    ([[]], "no tokens", "prompt 1 of 1"),
    ([[1], [2] * 65], "65 tokens, the model reads at most 64", "prompt 2 of 2"),
    ([[1, 40]], "token 40, the model only 0 to 39", "prompt 1 of 1"),
    ([[1, -3]], "token -3", "prompt 1 of 1"),
]


@pytest.mark.parametrize(("prompts", "what", "where"), REFUSED)
@pytest.mark.parametrize("generate", [Generation, generate_without_cache])
def test_an_impossible_prompt_is_refused_with_numbers(qwen3, generate, prompts, what, where):
    with pytest.raises(UserError) as refusal:
        generate(qwen3, prompts, GREEDY)
    assert what in refusal.value.what
    assert refusal.value.where == where
    assert refusal.value.remedy


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_model_of_nans_is_refused(qwen3, settings):
    class Broken:
        def __getattr__(self, name):
            return getattr(qwen3, name)

        def lm_head(self, hidden):
            return torch.full((len(hidden), 40), torch.nan)

    with pytest.raises(UserError, match="not-a-number after 0 new tokens"):
        next(Generation(Broken(), PROMPTS, settings))


def test_no_prompts_give_no_steps(qwen3):
    assert list(Generation(qwen3, [], GREEDY)) == []
    assert generate_without_cache(qwen3, [], GREEDY) == []


def test_one_row_is_decoded_without_masks_and_positions(qwen3):
    """The cheap path: the model is told nothing it could not know, so it builds no mask."""
    calls = []

    class Watched:
        def __getattr__(self, name):
            return getattr(qwen3, name)

        def backbone(self, input_ids, positions, doc_ids, cache):
            calls.append((tuple(input_ids.shape), positions, doc_ids))
            return qwen3.backbone(input_ids, positions, doc_ids, cache)

    written(Generation(Watched(), [[1, 2, 3]], replace(GREEDY, max_new_tokens=3)))
    assert calls == [((1, 3), None, None), ((1, 1), None, None), ((1, 1), None, None)]
