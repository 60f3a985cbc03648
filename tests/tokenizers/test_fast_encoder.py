"""The fast encoder gives the ids of the `tokenizers` library, on odd text and on real text, or steps aside."""

from __future__ import annotations

import json
import lzma
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiny_transformer.tokenizers import END_TOKEN, Tokenizer, load_tokenizer, make_tokenizer
from tiny_transformer.tokenizers.documents import plain_encoder
from tiny_transformer.tokenizers.load import byte_level_content
from tiny_transformer.tokenizers.patterns import GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN

pytest.importorskip("tiktoken")

ODD = "a  b\n\n c \t\td\r\n\r\n  1234 \u00a0 x\u3000\u3000y  'S 'ſ\u2028z  \x85 é e\u0301 \u1100\u1161 Å 你 ١ 😀  "
LEARNT_FROM = [ODD * 3, "The little cat sat on the mat, didn't it?  \n\n\tSo it was.  " * 20]
NFC = {"type": "NFC"}
LIKE_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def trained(pattern: str, normalizer: dict | None = None) -> Tokenizer:
    """A BPE whose words are cut by `pattern`; its merges come from words cut by Qwen2's, which all three cut alike."""
    model = make_tokenizer("bpe", texts=LEARNT_FROM, vocab_size=330).content["model"]
    content = byte_level_content(model["vocab"], model["merges"], pattern=pattern)
    return Tokenizer({**content, "normalizer": normalizer}, name="trained")


TRAINED = {
    "gpt2": trained(GPT2_PATTERN),
    "qwen2": trained(QWEN2_PATTERN),
    "llama3": trained(LLAMA3_PATTERN),
    "qwen2 with nfc": trained(QWEN2_PATTERN, NFC),
    "gpt2 by name": Tokenizer({**trained(GPT2_PATTERN).content, "pre_tokenizer": LIKE_GPT2}, name="by name"),
}


def assert_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    fast, slow = tokenizer.document_encoder()(texts), plain_encoder(tokenizer)(texts)
    assert np.array_equal(fast.lengths, slow.lengths)
    assert np.array_equal(fast.ids, slow.ids)
    assert fast.ids.dtype == slow.ids.dtype == np.uint32


def is_fast(tokenizer: Tokenizer) -> bool:
    return tokenizer.document_encoder().__module__.endswith(".fast")


# Blanks of every kind, next to letters, digits, marks, contractions, and to each other.
ASCII_BLANKS = [" ", "  ", "\n", "\r\n", "\t", "\v", "\f", "\x1c"]
OTHER_BLANKS = ["\x85", "\u00a0", "\u180e", "\u2003", "\u2029", "\u200b", "\u3000"]
LETTERS = ["a", "B", "é", "e\u0301", "ß", "ſ", "你", "1", "٣", "½", "😀", "\u1100\u1161\u11a8", "\ud7a3"]
MARKS = [".", "!?", "'s", "'LL", "'ſ", END_TOKEN, "\U0010ffff", "\ufeff", "\0", "\1"]
PIECES = st.sampled_from([*ASCII_BLANKS, *OTHER_BLANKS, *LETTERS, *MARKS])


@pytest.mark.parametrize("kind", TRAINED)
def test_odd_text_gets_the_same_ids(kind):
    tokenizer = TRAINED[kind]
    assert is_fast(tokenizer)
    encode, slow = tokenizer.document_encoder(), plain_encoder(tokenizer)

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(st.one_of(st.lists(PIECES, max_size=14).map("".join), st.text(max_size=60)), min_size=1, max_size=4)
    )
    @example([ODD, "", " ", "  ", ODD[::-1]])
    @example(["a  ", "  b"])
    @example(["a \n", "\n b", " \n \n"])
    def check(texts):
        fast, plain = encode(texts), slow(texts)
        assert np.array_equal(fast.ids, plain.ids)
        assert np.array_equal(fast.lengths, plain.lengths)

    check()


@pytest.mark.parametrize("kind", ["gpt2", "qwen2 with nfc"])
def test_every_character_next_to_letters_blanks_and_digits_gets_the_same_ids(kind):
    tokenizer = TRAINED[kind]
    characters = [chr(c) for c in [*range(0x800), *range(0x800, 0x30000, 37)] if not 0xD800 <= c < 0xE000]
    texts = [f"a{c}b  {c} 1{c}{c}  '{c}x" for c in characters]
    assert_same(tokenizer, texts)


@pytest.mark.slow
def test_every_character_of_unicode_gets_the_same_ids():
    assigned = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")]
    others = [c for c in range(0, 0x110000, 97) if not 0xD800 <= c < 0xE000]  # unassigned and private ones
    every = assigned + others
    for tokenizer in TRAINED.values():
        for start in range(0, len(every), 2**16):
            codes = every[start : start + 2**16]
            assert_same(tokenizer, [f"a{chr(c)}1 '{chr(c)}  {chr(c)}b" for c in codes])


FILES = (
    "tinystories/valid.txt.xz",
    "wikitext-2/valid.txt.xz",
    "wikipedia/articles.jsonl.xz",
    "c4/sample-300.jsonl.xz",
)


def real_text(shared_data: Path, size: int) -> list[str]:
    texts = []
    for name in FILES:
        with lzma.open(shared_data / "pretrain" / name, "rt", encoding="utf-8") as file:
            text = file.read(size)
        lines = text.splitlines()[:-1]
        texts += [json.loads(line)["text"] for line in lines] if ".jsonl" in name else text.split(END_TOKEN)
    return texts


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_published_tokenizers_give_the_same_ids_on_real_text(shared_data, tmp_path, name):
    for file in (shared_data / "tokenizers" / name).glob("*.xz"):
        (tmp_path / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
    tokenizer = load_tokenizer(tmp_path)
    assert is_fast(tokenizer)
    assert_same(tokenizer, [*real_text(shared_data, 100_000), ODD])


def test_trained_here_gives_the_same_ids_on_real_text(shared_data):
    texts = real_text(shared_data, 200_000)
    tokenizer = make_tokenizer("bpe", texts=texts, vocab_size=2_000)
    assert is_fast(tokenizer)
    assert_same(tokenizer, texts)


@pytest.mark.clock
@pytest.mark.parametrize(
    "text", ["a" * 300_000, " " * 300_000, "\n" * 300_000, " a" * 100_000, "ab1!" * 50_000, "\u0301" * 50_000]
)
def test_monotonous_text_takes_no_longer_and_breaks_nothing(text):
    tokenizer = TRAINED["qwen2"]
    encode = tokenizer.document_encoder()
    started = time.process_time()
    encoded = encode([text, "the end"])
    assert time.process_time() - started < 2
    assert tokenizer.decode(encoded.ids[: encoded.lengths[0] - 1].tolist()) == text


def hand_made(merges: list[list[str]]) -> dict:
    vocab = make_tokenizer("byte").content["model"]["vocab"]
    vocab = {**vocab, **{token: 256 + i for i, token in enumerate(dict.fromkeys(a + b for a, b in merges))}}
    return byte_level_content(vocab, merges, pattern=QWEN2_PATTERN)


GPT2 = TRAINED["gpt2"].content
END = GPT2["added_tokens"][0]
FALLING = hand_made([["a", "b"], ["c", "d"]])
FALLING["model"]["vocab"].update(ab=257, cd=256)
NOT_ALIKE = {
    "blanks as added tokens": {**GPT2, "added_tokens": [END, {**END, "content": "  ", "id": 330, "special": False}]},
    "a normalizer we do not know": {**GPT2, "normalizer": {"type": "NFKC"}},
    "no cutting into words": {**GPT2, "pre_tokenizer": make_tokenizer("byte").content["pre_tokenizer"]},
    "a prefix space": {**GPT2, "pre_tokenizer": {**LIKE_GPT2, "add_prefix_space": True}},
    "whole words before merges": {**GPT2, "model": {**GPT2["model"], "ignore_merges": True}},
    "a token that its parts do not give": hand_made([["a", "b"], ["b", "c"], ["a", "bc"]]),
    "a token made in two ways": hand_made([["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]),
    "ids that fall with the merges": FALLING,
}


@pytest.mark.parametrize("case", NOT_ALIKE)
def test_what_the_two_libraries_treat_differently_is_left_to_the_slow_one(case):
    tokenizer = Tokenizer(NOT_ALIKE[case], name=case)
    assert not is_fast(tokenizer)
    assert_same(tokenizer, ["abc abcd  a \n\n  b", ODD])


def test_hand_made_merges_that_are_sound_are_encoded_fast():
    tokenizer = Tokenizer(hand_made([["a", "b"], ["ab", "c"], ["c", "d"]]), name="sound")
    assert is_fast(tokenizer)
    assert_same(tokenizer, ["abc abcd abab cdcd abccd"])


def test_without_tiktoken_the_ids_are_the_same(monkeypatch):
    tokenizer = TRAINED["gpt2"]
    fast = tokenizer.document_encoder()([ODD, "x"])
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert not is_fast(tokenizer)
    slow = tokenizer.document_encoder()([ODD, "x"])
    assert np.array_equal(fast.ids, slow.ids)
    assert np.array_equal(fast.lengths, slow.lengths)


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_tokenizers_that_are_no_bpe_encode_documents_too(kind):
    tokenizer = make_tokenizer(kind, texts=[ODD])
    encoded = tokenizer.document_encoder()([ODD, ""])
    assert encoded.ids.tolist() == [*tokenizer.encode(ODD), tokenizer.end_id, tokenizer.end_id]
    assert encoded.lengths.tolist() == [len(tokenizer.encode(ODD)) + 1, 1]
