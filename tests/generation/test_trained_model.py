"""A model trained elsewhere writes the story it is known to write, through the whole road from checkpoint to text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tiny_transformer.generation.rows import generate_without_cache
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import TextRow, complete, encode_prompt, stream
from tiny_transformer.interop.llama2c import import_llama2c
from tiny_transformer.models import load_model
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.tokenizers import load_tokenizer

PROMPT = "Once upon a time"
# data/README.md of the shared data names it as the check that a loader and a model are right.
STORY = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
    "She wanted to play with it, but it was too high."
)
GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope="module")
def stories(shared_data, tmp_path_factory):
    """The trained model stories260K and its tokenizer."""
    source, out = shared_data / "models" / "stories260K", tmp_path_factory.mktemp("imported") / "model"
    import_llama2c(source / "stories260K.bin.xz", source / "tok512.bin.xz", out)
    checkpoint, _ = find_checkpoint(out)
    return load_model(checkpoint), load_tokenizer(checkpoint)


def test_greedy_story_is_the_known_one_character_for_character(stories):
    model, tokenizer = stories
    text = complete(model, tokenizer, [PROMPT], replace(GREEDY, max_new_tokens=70))[0]
    assert text[: len(STORY) + 1] == STORY + "\n"
    assert "".join(stream(model, tokenizer, PROMPT, replace(GREEDY, stop=("\n",)))) == STORY


def test_the_story_ends_where_the_model_ends_it(stories):
    model, tokenizer = stories
    text = complete(model, tokenizer, [PROMPT], replace(GREEDY, max_new_tokens=500))[0]
    assert text.endswith('She was so happy and said, "Thank you, Lily! You are a good friend."')


def test_the_story_is_the_same_in_a_ragged_batch(stories):
    model, tokenizer = stories
    prompts = ["The little girl walked into the forest and", PROMPT, "", "a"]
    texts = complete(model, tokenizer, prompts, replace(GREEDY, max_new_tokens=70))
    assert texts[1].startswith(STORY)
    assert texts == [complete(model, tokenizer, [p], replace(GREEDY, max_new_tokens=70))[0] for p in prompts]


def test_sampled_text_with_a_cache_is_the_text_without(stories):
    model, tokenizer = stories
    settings = SamplingConfig(temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.1, max_new_tokens=60, seed=1)
    ids = encode_prompt(tokenizer, PROMPT)
    expected = generate_without_cache(model, [ids], settings, end_ids=[1, 2])[0]
    text = complete(model, tokenizer, [PROMPT], settings)[0]
    assert PROMPT + text == tokenizer.decode([*ids, *expected])


@pytest.mark.parametrize("prompt", ["", "Zoë", "é", " two  spaces", "日本"])
def test_the_leading_space_of_a_text_is_dropped_only_at_its_beginning(stories, prompt):
    """This tokenizer writes a word's space before it, and characters it lacks as bytes that decode only when whole."""
    _, tokenizer = stories
    ids, following = encode_prompt(tokenizer, prompt), tokenizer.encode("was sad. Zoë 日")
    row = TextRow(tokenizer, ids, [])
    text = "".join(map(row.push, following)) + row.finish()
    assert tokenizer.decode(ids) + text == tokenizer.decode([*ids, *following])
    assert "\ufffd" not in text
