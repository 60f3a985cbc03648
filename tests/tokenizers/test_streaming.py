"""Decoding a stream: never half a character, and the pieces joined are the text of the whole."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiny_transformer.tokenizers import Tokenizer, make_tokenizer

BYTE = make_tokenizer("byte")
BPE = make_tokenizer("bpe", texts=["The little cat ✓ sat 😀 on the mat. é" * 30], vocab_size=300)


def sentencepiece_like() -> Tokenizer:
    """Pieces, byte fallback, a space put before the text and taken away again: the shape of a Llama tokenizer."""
    from tiny_transformer.tokenizers.llama2c import content_of_pieces

    pieces = [(0.0, "")] * 259 + [
        (-float(i), piece) for i, piece in enumerate((" t", "he", " the", "a", " ", "t", "h", "e"))
    ]
    return Tokenizer(content_of_pieces(pieces), name="sentencepiece-like")


PIECES = sentencepiece_like()


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream_decoder()
    return [*(decoder.push(i) for i in ids), decoder.finish()]


@pytest.mark.parametrize("tokenizer", [BYTE, BPE, PIECES], ids=lambda t: t.name)
def test_no_piece_holds_half_a_character(tokenizer):
    text = "the 😀 é ✓ end\n"
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 5  # it does stream


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 256), max_size=40))
@example([0xF0, 0x9F, 0x98, 0x80, 0xF0, 0x9F])
@example([0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD, 65])
@example([256, 0xC3, 256, 0xA9])
def test_any_bytes_stream_to_what_decode_gives(ids):
    assert "".join(stream(BYTE, ids)) == BYTE.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, BPE.vocab_size - 1), max_size=40))
def test_any_bpe_ids_stream_to_what_decode_gives(ids):
    assert "".join(stream(BPE, ids)) == BPE.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, PIECES.vocab_size - 1), max_size=40))
@example([3 + 0xC3, 3 + 0xA9, 3 + 0xC3, 261])
@example([1, 263, 263, 261])
def test_any_pieces_stream_to_what_decode_gives(ids):
    assert "".join(stream(PIECES, ids)) == PIECES.decode(ids)


def test_unfinished_character_comes_out_at_the_end():
    assert stream(BYTE, [65, 0xF0, 0x9F]) == ["A", "", "", "\ufffd"]
