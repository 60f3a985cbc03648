"""A text that is one document is divided sensibly from 4 KB on: several validation pieces, spread over it, by bytes."""

from __future__ import annotations

import gzip
import random
from itertools import pairwise
from pathlib import Path

import pytest

from tiny_transformer.data.prepare.sources import Document, open_source
from tiny_transformer.data.prepare.texts import MAX_DOCUMENT_CHARS, Pieces
from tiny_transformer.errors import UserError

from .conftest import WORDS, prepared

PROSE = ("\n", "\n", "\n", "\n\n")


def prose(num_bytes: int, seed: int = 0, ends: tuple[str, ...] = PROSE) -> str:
    rng, text = random.Random(seed), []
    size = 0
    while size < num_bytes:
        line = " ".join(rng.choices(WORDS, k=12)) + rng.choice(ends)
        text.append(line)
        size += len(line.encode())
    return "".join(text)


def pieces_of(path: Path, **options: object) -> list[Document]:
    return list(open_source(path, **options).scored_documents())  # ty: ignore[invalid-argument-type]


def check(text: str, pieces: list[Document], *, least: float, most: float, count: int) -> None:
    """The pieces are the text, without the blanks between them; those for validation are several, spread over it."""
    place, spans = 0, []
    for piece in pieces:
        start = text.index(piece.text, place)
        assert not text[place:start].strip("\r\n")
        place = start + len(piece.text)
        spans.append((start, place, piece.is_validation))
    assert not text[place:].strip()
    validation = [(start, stop) for start, stop, is_validation in spans if is_validation]
    share = sum(len(text[a:b].encode()) for a, b in validation) / len(text.encode())
    assert least <= share <= most, share
    assert len(validation) >= count
    assert validation[0][0] > 0 and validation[-1][1] < len(text.rstrip())
    gaps = [b[0] - a[1] for a, b in pairwise(validation)]
    assert max(gaps) < 2 * min(gaps)  # spread evenly


@pytest.mark.parametrize(
    ("num_bytes", "least", "most", "count"),
    [
        (4_000, 0.08, 0.13, 3),
        (10_000, 0.08, 0.13, 4),
        (17_000, 0.08, 0.13, 4),
        (40_000, 0.09, 0.12, 6),
        (300_000, 0.09, 0.12, 8),
        (1_100_000, 0.05, 0.07, 8),
        (5_000_000, 0.018, 0.025, 6),
    ],
)
@pytest.mark.parametrize("ends", [PROSE, ("\n",), (". ",)])
def test_a_text_of_any_size_and_layout(
    tmp_path: Path, num_bytes: int, least: float, most: float, count: int, ends: tuple[str, ...]
) -> None:
    text = prose(num_bytes, ends=ends)
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    check(text, pieces_of(tmp_path / "my.txt"), least=least, most=most, count=count)


def test_a_text_without_blanks(tmp_path: Path) -> None:
    rng = random.Random(0)
    text = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(20_000))
    (tmp_path / "红楼梦.md").write_text(text, encoding="utf-8")
    check(text, pieces_of(tmp_path / "红楼梦.md"), least=0.08, most=0.13, count=8)


@pytest.mark.parametrize("fraction", [0.02, 0.25, 0.5])
def test_a_fraction_that_is_asked_for_is_kept(tmp_path: Path, fraction: float) -> None:
    text = prose(60_000)
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    pieces = pieces_of(tmp_path / "my.txt", val_fraction=fraction)
    check(text, pieces, least=0.9 * fraction, most=1.2 * fraction, count=3)


def test_packed_and_limited_texts_are_divided_as_what_is_read(tmp_path: Path) -> None:
    text = prose(1_000_000)
    (tmp_path / "my.txt.gz").write_bytes(gzip.compress(text.encode()))
    check(text, pieces_of(tmp_path / "my.txt.gz"), least=0.05, most=0.08, count=8)
    pieces = pieces_of(tmp_path / "my.txt.gz", max_bytes=40_000)
    check(text[: text.index(pieces[-1].text) + len(pieces[-1].text)], pieces, least=0.07, most=0.13, count=6)


def test_a_large_text_flows_in_pieces_of_one_size(tmp_path: Path) -> None:
    text = prose(1_000_000) * 20
    assert len(text) > 2 * MAX_DOCUMENT_CHARS
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    pieces = pieces_of(tmp_path / "my.txt")
    share = sum(len(piece.text) for piece in pieces if piece.is_validation) / len(text)
    assert 0.018 < share < 0.022
    assert max(len(piece.text) for piece in pieces) < 40_000


@pytest.mark.parametrize("mark", ["{}\n<|endoftext|>\n", "<|endoftext|>\n{}", "{}\n<|endoftext|>\n\n<|endoftext|>\n"])
def test_a_separator_at_an_end_divides_nothing(tmp_path: Path, mark: str) -> None:
    text = prose(20_000)
    (tmp_path / "my.txt").write_text(mark.format(text), encoding="utf-8")
    check(text, pieces_of(tmp_path / "my.txt"), least=0.08, most=0.13, count=5)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_equal_files_are_said_where_too_little_is_left(tmp_path: Path, tokenizer: str) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("One text. " * 30)
    with pytest.raises(UserError, match="one document of 300 bytes, and 2 more that are equal to it"):
        prepared(tmp_path / "*.txt", tmp_path / "o", tokenizer=tokenizer, seq_len=8)


def test_documents_and_several_files_are_left_to_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text(prose(5_000) + "\n<|endoftext|>\n  \n" + prose(5_000, seed=1), encoding="utf-8")
    pieces = pieces_of(tmp_path / "two.txt")
    assert [piece.is_validation for piece in pieces] == [None, None]
    assert pieces[1].text.startswith("  \n")  # to the last blank as it stands
    (tmp_path / "more").mkdir()
    for i in range(3):
        (tmp_path / "more" / f"{i}.txt").write_text(prose(40_000, seed=i), encoding="utf-8")
    assert {piece.is_validation for piece in pieces_of(tmp_path / "more")} == {None}
    (tmp_path / "short.txt").write_text("A hen.\n" * 200)
    assert [piece.is_validation for piece in pieces_of(tmp_path / "short.txt")] == [None]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
@pytest.mark.parametrize("num_bytes", [4_000, 1_100_000])
def test_what_comes_out(tmp_path: Path, num_bytes: int, tokenizer: str) -> None:
    (tmp_path / "my.txt").write_text(prose(num_bytes), encoding="utf-8")
    meta = prepared(tmp_path / "my.txt", tmp_path / "data", tokenizer=tokenizer)
    share = meta.val.num_bytes / (meta.val.num_bytes + meta.train.num_bytes)
    assert (0.05 if num_bytes > 10_000 else 0.08) < share < (0.07 if num_bytes > 10_000 else 0.13)
    assert meta.val.num_documents >= 3
    again = prepared(tmp_path / "my.txt", tmp_path / "again", tokenizer=tokenizer, workers=1)
    assert again.fingerprint == meta.fingerprint


def test_where_pieces_stand() -> None:
    small, large = Pieces.of(4_000, None), Pieces.of(10**9, None)
    assert (round(small.size), round(small.period)) == (133, 1333)
    assert (round(large.size), round(large.period)) == (16380, 16380 * 50 + 1)
    assert round(small.start(0)) == 600 and round(small.start(2)) == 3267
