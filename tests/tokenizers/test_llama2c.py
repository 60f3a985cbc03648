"""llama2.c tokenizers: the same ids as their own rule, and bad files refused."""

from __future__ import annotations

import lzma
import struct
from itertools import pairwise

import pytest

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers import load_tokenizer
from tiny_transformer.tokenizers.llama2c import load_llama2c_tokenizer


@pytest.fixture(scope="module")
def tok512(shared_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("llama2c") / "tok512.bin"
    path.write_bytes(lzma.decompress((shared_data / "models" / "stories260K" / "tok512.bin.xz").read_bytes()))
    return path


def read_pieces(data: bytes) -> list[tuple[float, str]]:
    pieces, offset = [], 4
    while offset < len(data):
        score, length = struct.unpack_from("<fi", data, offset)
        pieces.append((score, data[offset + 8 : offset + 8 + length].decode()))
        offset += 8 + length
    return pieces


def encode_by_the_rule(text: str, pieces: list[tuple[float, str]]) -> list[int]:
    """One space, the characters (bytes for those missing), then the pair with the best score, until none is left."""
    id_of = {piece: i for i, (_, piece) in enumerate(pieces)}
    ids = []
    for character in " " + text:
        ids += [id_of[character]] if character in id_of else [byte + 3 for byte in character.encode()]
    while True:
        joins = [(id_of.get(pieces[a][1] + pieces[b][1]), i) for i, (a, b) in enumerate(pairwise(ids))]
        joins = [(-pieces[j][0], i, j) for j, i in joins if j is not None]
        if not joins:
            return ids
        _, i, joined = min(joins)
        ids[i : i + 2] = [joined]


def test_ids_follow_the_rule_of_llama2c(tok512, shared_data):
    tokenizer = load_llama2c_tokenizer(tok512)
    pieces = read_pieces(tok512.read_bytes())
    with lzma.open(shared_data / "pretrain" / "tinystories" / "valid.txt.xz", "rt", encoding="utf-8") as file:
        stories = file.read(8_000).split("<|endoftext|>")
    for text in [*stories, "Ünï 😀\n\ttab"]:
        assert tokenizer.encode(text) == encode_by_the_rule(text, pieces)


def test_begin_and_end_tokens_are_known_and_text_round_trips(tok512, tmp_path):
    tokenizer = load_llama2c_tokenizer(tok512)
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.vocab_size) == (1, 2, 512)
    text = "Once upon a time, <s> é ✓"
    assert tokenizer.decode([tokenizer.begin_id, *tokenizer.encode(text), tokenizer.end_id]) == text
    assert not {0, 1, 2} & set(tokenizer.encode(text))
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("cut", [0, 3, 4, 9, 100, 4000])
def test_truncated_file_is_refused(tok512, tmp_path, cut):
    path = tmp_path / "cut.bin"
    path.write_bytes(tok512.read_bytes()[:cut])
    with pytest.raises(UserError, match="not a llama2") as caught:
        load_llama2c_tokenizer(path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
