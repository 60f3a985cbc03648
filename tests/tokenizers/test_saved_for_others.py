"""What `tokenizer_config.json` tells other programs: special tokens that were trained on, lengths, a class all know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny_transformer.errors import UserError
from tiny_transformer.tokenizers import END_TOKEN, Tokenizer, load_tokenizer, make_tokenizer


def saved(tokenizer: Tokenizer, directory: Path, **arguments) -> dict:
    tokenizer.save(directory, **arguments)
    return json.loads((directory / "tokenizer_config.json").read_text())


def chat_tokenizer(**config) -> Tokenizer:
    """With a control token that ends turns beside the one that ends texts, as Qwen's."""
    content = json.loads(json.dumps(make_tokenizer("byte").content))
    content["added_tokens"].append({**content["added_tokens"][0], "id": 257, "content": "<|im_end|>"})
    return Tokenizer(content, name="qwen3", config={"eos_token": "<|im_end|>", "bos_token": None, **config})


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_our_own_name_every_special_token_and_no_prefix_space(kind, tmp_path):
    tokenizer = make_tokenizer(kind, texts=["the house on the hill " * 20])
    config = saved(tokenizer, tmp_path, max_length=64)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert config[name] == END_TOKEN, name
    assert config["model_max_length"] == 64 and config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "add_prefix_space" not in config


def test_the_end_token_is_one_that_the_model_ends_with(tmp_path):
    """SFTTrainer appends it, lm_eval begins with it: `<|im_end|>` was never trained on in a run from prepared text."""
    assert saved(chat_tokenizer(), tmp_path)["eos_token"] == END_TOKEN
    assert saved(chat_tokenizer(), tmp_path, end_ids=[257, 256])["eos_token"] == "<|im_end|>"
    with_flags = chat_tokenizer(eos_token={"content": "<|im_end|>", "lstrip": False})
    assert saved(with_flags, tmp_path, end_ids=[257])["eos_token"] == {"content": "<|im_end|>", "lstrip": False}
    assert saved(with_flags, tmp_path, end_ids=[256])["eos_token"] == END_TOKEN


@pytest.mark.parametrize(
    ("declared", "context", "expected"),
    [(None, 64, 64), (131072, 64, 64), (32, 64, 32), (1e30, 64, 64), ("many", 64, 64), (131072, None, 131072)],
)
def test_texts_are_cut_to_no_more_than_the_context(declared, context, expected, tmp_path):
    config = {} if declared is None else {"model_max_length": declared}
    assert saved(chat_tokenizer(**config), tmp_path, max_length=context)["model_max_length"] == expected


@pytest.mark.parametrize("name", ["TokenizersBackend", "LlamaTokenizer", "Qwen2Tokenizer"])
def test_the_class_is_one_that_takes_the_file_at_its_word(name, tmp_path):
    assert saved(chat_tokenizer(tokenizer_class=name), tmp_path)["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_unknown_characters_show_in_transformers_and_are_refused_here(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = make_tokenizer("char", texts=["naive"])
    with pytest.raises(UserError, match="'ï'"):
        tokenizer.encode("naïve")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.decode(theirs("naïve")["input_ids"]) == f"na{END_TOKEN}ve"
    assert theirs("naive")["input_ids"] == load_tokenizer(tmp_path).encode("naive")


def test_a_char_tokenizer_from_before_still_refuses_unknown_characters(tmp_path):
    content = json.loads(json.dumps(make_tokenizer("char", texts=["naive"]).content))
    del content["model"]["vocab"][END_TOKEN]
    content["model"]["unk_token"] = None
    with pytest.raises(UserError, match="'ï'"):
        Tokenizer(content, name="char").encode("naïve")
