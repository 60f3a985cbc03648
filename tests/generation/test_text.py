"""Text as it is written: joined pieces are the whole text, no half characters, no part of a stop string."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny_transformer.config.shapes import LlamaConfig
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.rows import generate_without_cache
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import StopScanner, TextRow, complete, encode_prompt, stream
from tiny_transformer.models import build_model
from tiny_transformer.tokenizers import make_tokenizer

GREEDY = SamplingConfig(temperature=0, max_new_tokens=30)
SAMPLED = SamplingConfig(temperature=1.5, max_new_tokens=60, seed=3)
BYTES = make_tokenizer("byte")
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def tokenizer():
    return BYTES


@pytest.fixture(scope="module")
def model(tokenizer):
    """A byte model with a padded head: about half of what it writes is not valid UTF-8."""
    config = LlamaConfig(vocab_size=tokenizer.vocab_size + 7, num_key_value_heads=2, initializer_range=0.3, **SHAPE)
    return build_model(config, seed=0).eval()


def new_ids(model, tokenizer, prompt, settings):
    ids = encode_prompt(tokenizer, prompt)
    return generate_without_cache(model, [ids], settings, end_ids=[tokenizer.end_id], num_tokens=tokenizer.vocab_size)[
        0
    ]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("prompt", ["Once", "", "Zoë ", "日本"])
def test_streamed_pieces_joined_are_the_decoded_tokens(model, tokenizer, prompt, settings):
    expected = tokenizer.decode(new_ids(model, tokenizer, prompt, settings))
    pieces = list(stream(model, tokenizer, prompt, settings))
    assert "".join(pieces) == expected
    assert all(pieces)
    assert complete(model, tokenizer, [prompt], settings) == [expected]


def test_text_comes_while_it_is_written(model, tokenizer):
    assert len(list(stream(model, tokenizer, "Once", SAMPLED))) > 15


def test_prompts_of_any_length_complete_as_they_do_alone(model, tokenizer):
    prompts = ["Once upon a time", "", "A", "The little girl walked into the forest and"]
    together = complete(model, tokenizer, prompts, SAMPLED)
    assert together == [complete(model, tokenizer, [prompt], SAMPLED)[0] for prompt in prompts]
    assert len(set(together)) == 4


def test_no_prompts_give_no_texts(model, tokenizer):
    assert complete(model, tokenizer, [], SAMPLED) == []


def test_an_empty_prompt_starts_at_the_end_token(tokenizer):
    assert encode_prompt(tokenizer, "") == [tokenizer.end_id]
    assert encode_prompt(tokenizer, "a") == tokenizer.encode("a")


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_text_ends_before_the_first_stop_string(model, tokenizer, settings):
    whole = complete(model, tokenizer, ["Once"], settings)[0]
    for start, length in ((3, 1), (5, 2), (4, 4)):
        stop = whole[start : start + length]
        stopped = replace(settings, stop=("never there", stop))
        assert complete(model, tokenizer, ["Once"], stopped) == [whole[: whole.index(stop)]]
        assert "".join(stream(model, tokenizer, "Once", stopped)) == whole[: whole.index(stop)]


def test_a_stopped_row_leaves_the_others_alone(model, tokenizer):
    prompts = ["Once", "There was"]
    whole = complete(model, tokenizer, prompts, SAMPLED)
    stop = whole[0][10:20]
    assert stop not in whole[1]
    assert complete(model, tokenizer, prompts, replace(SAMPLED, stop=(stop,))) == [whole[0].split(stop)[0], whole[1]]


def test_the_model_is_not_asked_again_after_a_stop_string(model, tokenizer):
    whole = complete(model, tokenizer, ["Once"], SAMPLED)[0]
    num_calls = 0

    def count(*_):
        nonlocal num_calls
        num_calls += 1

    hook = model.lm_head.register_forward_hook(count)
    complete(model, tokenizer, ["Once"], replace(SAMPLED, stop=(whole[:2],)))
    hook.remove()
    assert num_calls < 10


def test_an_end_that_was_held_back_is_shown_when_nothing_follows(model, tokenizer):
    whole = complete(model, tokenizer, ["Once"], SAMPLED)[0]
    assert complete(model, tokenizer, ["Once"], replace(SAMPLED, stop=(whole[-3:] + "more",))) == [whole]


def test_of_several_stop_strings_the_first_in_the_text_counts():
    assert StopScanner(["c", "b"]).push("abc") == "a"
    assert StopScanner(["b", "abc"]).push("xabc") == "x"


def test_a_stop_string_in_the_prompt_does_not_count(model, tokenizer):
    settings = replace(GREEDY, stop=("Once", "ce"))
    assert complete(model, tokenizer, ["Once"], settings) == complete(model, tokenizer, ["Once"], GREEDY)


@given(
    characters=st.lists(st.sampled_from("ab\n"), max_size=40),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_any_cutting_of_a_text_is_scanned_like_the_whole(characters, stop, data):
    text = "".join(characters)
    expected = text[: min((text.find(s) for s in stop if s in text), default=len(text))]
    scanner, shown, rest = StopScanner(stop), "", text
    while rest:
        size = data.draw(st.integers(1, 5))
        shown += scanner.push(rest[:size])
        rest = rest[size:]
        assert expected.startswith(shown)
    assert shown + scanner.finish() == expected
    assert scanner.found == any(s in text for s in stop)


def test_only_what_can_become_a_stop_string_is_held_back():
    scanner = StopScanner(["\n\nEnd", "###"])
    assert [scanner.push(text) for text in ("a\n", "\nE", "x#", "#", "b", "###c", "d")] == [
        "a", "", "\n\nEx", "", "##b", "", "",
    ]  # fmt: skip


@given(text=st.text(max_size=20), prompt=st.text(max_size=6))
def test_characters_are_never_halved(text, prompt):
    row = TextRow(BYTES, BYTES.encode(prompt), [])
    pieces = [row.push(token) for token in BYTES.encode(text)]
    assert "\ufffd" not in "".join(pieces).replace("\ufffd", "", text.count("\ufffd"))
    assert "".join(pieces) + row.finish() == text


def test_an_unfinished_character_at_the_end_is_shown_as_decode_shows_it(tokenizer):
    row = TextRow(tokenizer, [], [])
    ids = tokenizer.encode("né")[:-1]
    assert [row.push(token) for token in ids] == ["n", ""]
    assert row.finish() == tokenizer.decode(ids)[1:] == "\ufffd"


def test_training_mode_is_put_back_even_when_the_reader_leaves(model, tokenizer):
    model.train()
    try:
        pieces = stream(model, tokenizer, "Once", SAMPLED)
        next(pieces)
        assert not model.training
        pieces.close()
        assert model.training
        complete(model, tokenizer, ["Once"], GREEDY)
        assert model.training
    finally:
        model.eval()


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    config = LlamaConfig(vocab_size=100, num_key_value_heads=2, **SHAPE)
    small = build_model(config, seed=0).eval()
    with pytest.raises(UserError, match=r"has 25\d tokens, the model 100") as refusal:
        complete(small, tokenizer, ["a"], GREEDY)
    assert refusal.value.exit_code == ExitCode.BAD_DATA


def test_text_does_not_depend_on_dropout_or_global_seed(tokenizer):
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, num_key_value_heads=2, initializer_range=0.3, **SHAPE)
    texts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build_model(config, seed=0, dropout=0.5).train()
        texts += complete(model, tokenizer, ["Once"], SAMPLED)
    assert texts[0] == texts[1]
