"""Words added to a vocabulary encode as transformers does it, and a template's begin token counts, whichever it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tiny_transformer.cli import run
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.tokenizers import END_TOKEN, load_tokenizer, make_tokenizer

TEXTS = [
    "the COVID-19 house",
    "theCOVID-19house",
    "the  <left> hill, <left>",
    "the <right>  hill<right> on",
    "a <both> b  <both>  c",
    "wordy word words the word",
    "café cafe\u0301 CAFÉ",
    f"no {END_TOKEN} here",
    "COVID-19",
    "",
]
WORDS = {
    "COVID-19": {},
    "<left>": {"lstrip": True},
    "<right>": {"rstrip": True},
    "<both>": {"lstrip": True, "rstrip": True},
    "word": {"single_word": True},
    "café": {"normalized": True},
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def copied(kind: str, **arguments) -> dict:
    """The content of a new tokenizer, to be changed."""
    return json.loads(json.dumps(make_tokenizer(kind, **arguments).content))


def prepare(source: str, tokenizer: Path) -> None:
    command = ["prepare", "--source", source, "--tokenizer", str(tokenizer), "--seq_len", "8", "--out_dir", "d"]
    assert run(command) == 0


@pytest.fixture(scope="module", params=[None, "NFC"])
def added(request, tmp_path_factory):
    """A BPE with the added words, saved."""
    content = copied("bpe", texts=["the house on the hill " * 40], vocab_size=270)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = content["added_tokens"][0]["id"] + 1
    content["added_tokens"] += [
        {"id": first + i, "content": word, **flags, **own, "special": False}
        for i, (word, own) in enumerate(WORDS.items())
    ]
    content["normalizer"] = request.param and {"type": request.param}
    directory = tmp_path_factory.mktemp("added")
    (directory / "tokenizer.json").write_text(json.dumps(content))
    load_tokenizer(directory, name="added").save(directory / "saved")
    return directory / "saved"


def test_added_words_get_the_ids_that_transformers_gives(added, transformers):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(added), load_tokenizer(added)
    for text in TEXTS:
        expected = theirs(text, split_special_tokens=False)["input_ids"]
        if END_TOKEN in text:  # the one difference: a control token's spelling is text here
            assert ours.end_id in expected and ours.end_id not in ours.encode(text)
            continue
        assert ours.encode(text) == expected, text
    found = {i for text in TEXTS for i in ours.encode(text)}
    assert {ours.token_id(word) for word in WORDS} <= found


def test_many_documents_at_once_get_the_same_ids(added):
    ours = load_tokenizer(added)
    encoded = ours.document_encoder()(TEXTS)
    assert encoded.ids.tolist() == [i for text in TEXTS for i in [*ours.encode(text), ours.end_id]]


def test_prepared_data_have_the_added_words(added, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{i} the COVID-19 house on the hill"} for i in range(80)]
    Path("x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    prepare("x.jsonl", added)
    ids = np.fromfile("d/train.bin", dtype="<u2")
    assert np.count_nonzero(ids == load_tokenizer(added).token_id("COVID-19")) > 40


def with_template(directory: Path, template: list[str], *, outer: bool = False) -> Path:
    content = copied("byte")
    special = {"SpecialToken": {"id": END_TOKEN, "type_id": 0}}
    pieces = [special if piece == END_TOKEN else {"Sequence": {"id": "A", "type_id": 0}} for piece in template]
    processor = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END_TOKEN: {"id": END_TOKEN, "ids": [256], "tokens": [END_TOKEN]}},
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content["post_processor"] = {"type": "Sequence", "processors": [byte_level, processor]} if outer else processor
    directory.mkdir()
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize(
    ("template", "begins"),
    [([END_TOKEN, "$A"], True), ([END_TOKEN, "$A", END_TOKEN], True), (["$A", END_TOKEN], False), (["$A"], False)],
)
def test_the_begin_token_is_the_templates_even_if_it_ends_texts_too(template, begins, outer, tmp_path, transformers):
    directory = with_template(tmp_path / "t", template, outer=outer)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.begin_id == (256 if begins else None)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))("house")[
        "input_ids"
    ]
    assert encode_prompt(tokenizer, "house") == (theirs[:-1] if template[-1] == END_TOKEN else theirs)


def test_prepared_documents_begin_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = with_template(tmp_path / "t", [END_TOKEN, "$A"])
    Path("x.jsonl").write_text("\n".join(json.dumps({"text": f"story {i}"}) for i in range(80)), encoding="utf-8")
    assert (
        run(["prepare", "--source", "x.jsonl", "--tokenizer", str(directory), "--seq_len", "8", "--out_dir", "d"]) == 0
    )
    dataset = open_dataset(Path("d"))
    ids = dataset.train.read(0, len(dataset.train))
    assert ids[0] == ids[-1] == 256 and np.count_nonzero(ids == 256) == 2 * dataset.meta.train.num_documents
