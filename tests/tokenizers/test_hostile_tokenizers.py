"""Any bytes in the place of a tokenizer end in a UserError: no crash, no hang, no huge vocabulary."""

from __future__ import annotations

import json
import random

import pytest

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from tiny_transformer.tokenizers.load import MAX_FILE_BYTES


@pytest.fixture(scope="module")
def good() -> dict:
    return make_tokenizer("bpe", texts=["the cat sat on the mat " * 20], vocab_size=280).content


def changed(content: dict, path: str, value: object) -> dict:
    content = json.loads(json.dumps(content))
    *parents, last = path.split("/")
    inner = content
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last] = value
    return content


BAD_VALUES = {
    "no model": ("model", None, "no model"),
    "no vocabulary": ("model/vocab", {}, "no model"),
    "vocabulary is text": ("model/vocab", "abc", "no model"),
    "unknown model": ("model/type", "Oracle", "of type 'Oracle'"),
    "two tokens share an id": ("model/vocab/a", 5, "share an id"),
    "an id far beyond the others": ("model/vocab/a", 2**31, "ids run from"),
    "a negative id": ("model/vocab/a", -1, "ids run from"),
    "an id that is no number": ("model/vocab/a", "1", "not a whole number"),
    "a merge of tokens that are not there": ("model/merges", [["qq", "zz"]], "cannot be built"),
    "a merge that is no pair": ("model/merges", [["a"]], "cannot be built"),
    "an expression that can hang": (
        "pre_tokenizer/pretokenizers/0/pattern",
        {"Regex": "(a+)+$"},
        "do not know to be safe",
    ),
    "an expression in a normalizer": (
        "normalizer",
        {"type": "Replace", "pattern": {"Regex": "(a|aa)+b"}, "content": ""},
        "do not know to be safe",
    ),
    "added tokens are no list": ("added_tokens", {"a": 1}, "added_tokens"),
    "an added token without id": ("added_tokens", [{"content": "x"}], "added_tokens"),
    "an added token far beyond": ("added_tokens/0/id", 2**40, "ids run from"),
    "no end token": ("added_tokens", [], "no token that ends"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_content_is_refused(good, tmp_path, case):
    path, value, problem = BAD_VALUES[case]
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed(good, path, value)))
    with pytest.raises(UserError, match=problem) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert len(caught.value.lines()) <= 3


BAD_FILES = {
    "empty": b"",
    "not JSON": b"{",
    "not an object": b"[1, 2]",
    "not UTF-8": b'{"a": "\xff"}',
    "deep nesting": b"[" * 100_000,
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused(tmp_path, case):
    (tmp_path / "tokenizer.json").write_bytes(BAD_FILES[case])
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(tmp_path) in caught.value.where


def test_huge_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="67,108,865 bytes"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["nonsense", "no/such/place", "./missing", "bpe:missing", "char:missing"])
def test_name_that_is_nothing_is_a_usage_error(name):
    with pytest.raises(UserError) as caught:
        make_tokenizer(name)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "qwen2.5", "some/repository"])
def test_hub_tokenizer_without_network_says_so_in_one_line(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        make_tokenizer(name)
    assert caught.value.exit_code == ExitCode.IO
    assert "\n" not in caught.value.what
    assert "--tokenizer bpe" in caught.value.remedy


def test_qwen3_falls_back_to_qwen25_and_says_so(monkeypatch, tmp_path):
    from tiny_transformer.tokenizers import published

    make_tokenizer("bpe", texts=["the cat sat on the mat " * 20]).save(tmp_path)

    def fetch(wanted):
        if wanted.repository == "Qwen/Qwen2.5-0.5B":
            return tmp_path
        raise UserError("not to be had")

    monkeypatch.setattr(published, "_fetch", fetch)
    with pytest.warns(UserWarning, match=r"qwen3 could not be had .* using qwen2\.5"):
        assert make_tokenizer("qwen3").name == "qwen2.5"


def test_file_that_is_not_the_published_one_is_refused(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr("tiny_transformer.tokenizers.published.hub_is_reachable", lambda: True)
    (tmp_path / "vocab.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name, **_: str(tmp_path / name))
    with pytest.raises(UserError, match="SHA-256 differs"):
        make_tokenizer("gpt2")


@pytest.mark.parametrize("options", [{"vocab_size": 1000}, {"vocab_size": 10}])
@pytest.mark.parametrize("name", ["byte", "char"])
def test_vocab_size_is_for_bpe_only(name, options):
    with pytest.raises(UserError, match="does not apply"):
        make_tokenizer(name, texts=["abc"], **options)


def test_bpe_needs_room_for_the_bytes_and_some_text():
    with pytest.raises(UserError, match="too small"):
        make_tokenizer("bpe", texts=["abc"], vocab_size=256)
    with pytest.raises(UserError, match="too little text"):
        make_tokenizer("bpe", texts=[])
    with pytest.raises(UserError, match="made from text"):
        make_tokenizer("bpe")


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_escapes_as_another_error(good, tmp_path, seed):
    original = json.dumps(good).encode()
    rng = random.Random(seed)
    refused = 0
    for _ in range(150):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 2, 20])):
            start = rng.randrange(len(data))
            data[start : start + rng.choice([0, 1, 1, 30])] = rng.choice(
                [b"", bytes([rng.randrange(256)]), b'"', b"null", b"-1", b"99999999999", b"[", b"true"]
            )
        (tmp_path / "tokenizer.json").write_bytes(data)
        try:
            tokenizer = load_tokenizer(tmp_path)
            assert isinstance(tokenizer, Tokenizer)
            tokenizer.encode("the cat ✓")
        except UserError:
            refused += 1
    assert refused > 75
