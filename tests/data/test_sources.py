"""Every kind of source gives its documents, however packed; every bad one ends in a UserError with its place."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import sys
from pathlib import Path

import pytest

from tiny_transformer.data.prepare.files import read_documents
from tiny_transformer.data.prepare.find import find_files, looks_like_hub_id
from tiny_transformer.data.prepare.sources import STORIES_DEFAULT_BYTES, open_source
from tiny_transformer.data.prepare.texts import MAX_DOCUMENT_CHARS, PIECE_CHARS
from tiny_transformer.errors import ExitCode, UserError

TEXTS = ["One.\nTwo ✓", "  Three\n\nparagraphs", "Four"]


def write(path: Path, texts: list[str]) -> Path:
    """The texts in the format, and the packing, that the name says."""
    if ".parquet" in path.name:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": list(range(len(texts))), "text": texts}), path)
        return path
    if ".jsonl" in path.name:
        data = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()
    else:
        data = "\n<|endoftext|>\n".join(texts).encode()
    if path.suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, lambda plain: plain)
    path.write_bytes(pack(data))
    return path


FORMATS = [f".{kind}{packed}" for kind in ("txt", "md", "jsonl") for packed in ("", ".gz", ".xz", ".zst")] + [
    ".parquet"
]


@pytest.mark.parametrize("suffix", FORMATS)
def test_documents_of_every_format(tmp_path, suffix):
    path = write(tmp_path / f"corpus{suffix}", TEXTS)
    assert list(open_source(path).documents()) == TEXTS


def test_folder_is_searched_through_in_sorted_order(tmp_path):
    for name in ("b.txt", "a/z.jsonl", "a/deep/x.md.xz", ".hidden/no.txt", "a/picture.png", ".no.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [name])
    assert list(open_source(tmp_path).documents()) == ["a/deep/x.md.xz", "a/z.jsonl", "b.txt"]


def test_glob_takes_what_it_matches(tmp_path):
    for name in ("1.txt", "2.txt", "3.md", "4.jsonl"):
        write(tmp_path / name, [name])
    assert list(open_source(str(tmp_path / "*.txt")).documents()) == ["1.txt", "2.txt"]
    assert list(open_source(str(tmp_path / "[34].*")).documents()) == ["3.md", "4.jsonl"]


def test_text_field_chooses_the_column(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "no", "story": "yes"}\n\n{"story": "again"}\n')
    assert list(open_source(tmp_path / "rows.jsonl", text_field="story").documents()) == ["yes", "again"]


def test_max_bytes_ends_the_stream_with_the_document_that_reaches_it(tmp_path):
    path = write(tmp_path / "corpus.jsonl", ["✓" * 10] * 9)  # 30 bytes each
    for max_bytes, count in ((1, 1), (30, 1), (31, 2), (90, 3), (10_000, 9)):
        assert len(list(open_source(path, max_bytes=max_bytes).documents())) == count


def test_stories_are_scored_and_end_by_themselves():
    source = open_source("stories", max_bytes=20_000)
    documents = list(source.scored_documents())
    assert 20_000 <= sum(len(d.text.encode()) for d in documents) < 25_000
    assert all(d.log_probability < 0 for d in documents)
    assert source.licence
    assert open_source("stories").max_bytes == STORIES_DEFAULT_BYTES
    assert [d.text for d in open_source("stories", max_bytes=20_000, seed=1).scored_documents()] != [
        d.text for d in documents
    ]


def test_source_can_be_read_twice(tmp_path):
    source = open_source(write(tmp_path / "corpus.txt.gz", TEXTS))
    assert list(source.documents()) == list(source.documents()) == TEXTS


def test_fingerprint_changes_with_the_files(tmp_path):
    path = write(tmp_path / "corpus.txt", TEXTS)
    before = open_source(path).fingerprint
    assert open_source(path).fingerprint == before
    write(path, [*TEXTS, "more"])
    assert open_source(path).fingerprint != before


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("corpus.txt", "corpus.v2.txt my.corpus.2026-11-30.txt CORPUS.TXT"),
        ("a.jsonl.gz", "c4-train.00000-of-01024.jsonl.gz A.JSONL.GZ"),
        ("README", "chapter.1 notes.rst"),
        ("notes.gz", "notes.1.gz"),
    ],
)
def test_a_file_that_is_called_otherwise_holds_the_same(tmp_path: Path, name: str, others: str) -> None:
    expected = open_source(write(tmp_path / name, TEXTS)).fingerprint
    for other in others.split():
        (tmp_path / other).write_bytes((tmp_path / name).read_bytes())
        assert open_source(tmp_path / other).fingerprint == expected
    (tmp_path / f"{name}.html").write_bytes((tmp_path / name).read_bytes())
    assert open_source(tmp_path / f"{name}.html").fingerprint != expected  # is read in another way


# --- how plain text is cut ---


def plain(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "plain.txt"
    path.write_bytes(text.encode())
    return list(read_documents(path))


def test_small_file_without_separators_is_one_document(tmp_path):
    text = "First line.\n\nSecond paragraph.\n\n\nThird."
    assert plain(tmp_path, text + "\n") == [text]


def test_separator_lines_may_have_blanks_and_carriage_returns(tmp_path):
    assert plain(tmp_path, "a\r\n<|endoftext|>\r\nb\n <|endoftext|> \nc <|endoftext|> d\n<|endoftext|>\n") == [
        "a",
        "b",
        "c <|endoftext|> d",
    ]


def test_long_file_without_separators_is_cut_at_blank_lines(tmp_path):
    rng = random.Random(0)
    paragraphs = ["\n".join("word " * rng.randint(5, 30) for _ in range(rng.randint(1, 9))) for _ in range(400)]
    text = "\n\n".join(paragraphs)
    pieces = plain(tmp_path, text)
    assert len(pieces) > 5
    assert "\n\n".join(pieces) == text  # only the line breaks between two pieces are gone
    assert all(PIECE_CHARS <= len(piece) <= 1.5 * PIECE_CHARS for piece in pieces[:-1])


def test_long_file_without_blank_lines_or_lines_is_cut_all_the_same(tmp_path):
    lines = plain(tmp_path, "a line of text\n" * 20_000)
    assert max(map(len, lines)) <= 2.1 * PIECE_CHARS
    assert sum(line.count("text") for line in lines) == 20_000
    one_line = plain(tmp_path, "✓" * 300_000)
    assert "".join(one_line) == "✓" * 300_000
    assert max(map(len, one_line)) <= 8 * PIECE_CHARS


def test_documents_between_separators_may_be_long(tmp_path):
    book = "A sentence of a book.\n\n" * 5_000
    assert [len(d) for d in plain(tmp_path, f"{book}\n<|endoftext|>\nshort\n<|endoftext|>\n")] == [len(book.strip()), 5]
    assert len(book) < MAX_DOCUMENT_CHARS


def test_empty_documents_are_left_out(tmp_path):
    assert plain(tmp_path, "<|endoftext|>\n\n<|endoftext|>\na\n<|endoftext|>\n  \n") == ["a"]


def test_byte_order_mark_is_no_text(tmp_path):
    assert plain(tmp_path, "\ufeffabc") == ["abc"]


# --- bad input ---


def make_bad_inputs(root: Path) -> dict[str, tuple[str, ExitCode, str]]:
    """Name of the case -> (source, exit code, what the message must say)."""

    def file(name: str, data: bytes) -> str:
        (root / name).write_bytes(data)
        return str(root / name)

    (root / "empty_folder").mkdir()
    (root / "pictures").mkdir()
    file("pictures/cat.png", b"\x89PNG\r\n")
    bad, usage = ExitCode.BAD_DATA, ExitCode.USAGE
    return {
        "missing file": (str(root / "missing.txt"), usage, "no such file"),
        "missing relative file": ("texts/missing.txt", usage, "no such file"),
        "missing name": ("storys", usage, "no such file, folder or data set: storys"),
        "glob without match": (str(root / "*.txtt"), usage, "no file matches"),
        "empty folder": (str(root / "empty_folder"), bad, "no text in the folder"),
        "folder without text": (str(root / "pictures"), bad, "no text in the folder"),
        "empty file": (file("empty.txt", b""), bad, "the file is empty"),
        "binary file": (file("data.txt", b"abc\0def"), bad, "zero byte"),
        "picture": (file("cat.png", b"\x89PNG\r\n\x1a\n"), bad, "png, byte 0"),
        "invalid UTF-8": (file("latin.txt", b"caf\xe9 au lait"), bad, "latin.txt, byte 3"),
        "invalid UTF-8 far inside": (file("far.txt", "é".encode() * 900_000 + b"\xc3"), bad, "byte 1,800,000"),
        "invalid UTF-8 after a cut character": (
            file("cut.txt", b"x" * (2**20 - 1) + b"\xe2\x9c("),
            bad,
            "byte 1,048,575",
        ),
        "invalid UTF-8 in an archive": (file("l.txt.gz", gzip.compress(b"ab\xff")), bad, "unpacked byte 2"),
        "invalid UTF-8 in jsonl": (file("l.jsonl", b'{"text": "\xff"}\n'), bad, "l.jsonl, byte 10"),
        "no JSON": (file("a.jsonl", b'{"text": "x"}\n\n{"text": \n'), bad, "a.jsonl, line 3"),
        "no object": (file("b.jsonl", b"[1]\n"), bad, "b.jsonl, line 1"),
        "no such field": (file("c.jsonl", b'{"story": "x", "n": 1}\n'), bad, "fields that hold text here: story"),
        "field is a number": (file("d.jsonl", b'{"text": 3}\n'), bad, "no text in the field 'text'"),
        "half a surrogate pair": (file("e.jsonl", b'{"text": "a\\ud800"}\n'), bad, "e.jsonl, line 1"),
        "damaged gz": (file("x.txt.gz", gzip.compress(b"abc" * 999)[:-9]), bad, "archive is damaged"),
        "no gz": (file("y.txt.gz", b"plain text"), bad, "by its first bytes it is text, and not packed"),
        "damaged xz": (file("x.txt.xz", lzma.compress(b"abc" * 999)[:-9]), bad, "archive is damaged"),
        "no zst": (file("x.txt.zst", b"plain text"), bad, "by its first bytes it is text, and not packed"),
        "no parquet": (file("x.parquet", b"PAR1 not really"), bad, "not a readable parquet file"),
    }


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory):
    return make_bad_inputs(tmp_path_factory.mktemp("bad"))


def bad_input_names() -> list[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        return list(make_bad_inputs(Path(directory)))


@pytest.mark.parametrize("case", bad_input_names())
def test_bad_input_says_what_where_and_what_to_do(bad_inputs, case):
    source, exit_code, words = bad_inputs[case]
    with pytest.raises(UserError) as caught:
        list(open_source(source).documents())
    assert caught.value.exit_code == exit_code
    assert words in str(caught.value)
    assert len(caught.value.lines()) <= 3
    assert caught.value.remedy


def test_parquet_without_the_column_names_those_it_has(tmp_path):
    path = write(tmp_path / "x.parquet", TEXTS)
    with pytest.raises(UserError, match="columns here: id, text"):
        list(open_source(path, text_field="story").documents())


def test_file_that_appears_in_a_folder_must_be_text(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "zbad.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="invalid UTF-8"):
        list(open_source(tmp_path).documents())


@pytest.mark.parametrize("max_bytes", [0, -5])
def test_max_bytes_must_be_positive(max_bytes):
    with pytest.raises(UserError, match="not a positive number"):
        open_source("stories", max_bytes=max_bytes)


@pytest.mark.parametrize(("suffix", "package"), [(".zst", "zstandard"), (".parquet", "pyarrow")])
def test_missing_package_is_named(tmp_path, monkeypatch, suffix, package):
    path = write(tmp_path / f"x.txt{suffix}" if suffix == ".zst" else tmp_path / "x.parquet", TEXTS)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=package) as caught:
        list(read_documents(path))
    assert f"pip install {package}" in caught.value.remedy


def test_name_of_a_file_is_not_taken_for_a_hub_id():
    assert looks_like_hub_id("roneneldan/TinyStories")
    for name in ("data/corpus.txt", "a/b/c", "stories", "./x", "a/*", "/x", "../x", "texts/a.jsonl.gz"):
        assert not looks_like_hub_id(name)
    with pytest.raises(UserError):
        find_files("data/corpus.txt")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".lz4", ".ZIP", ".parquet.gz"])
def test_archives_and_documents_that_are_not_read_say_so(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_text("plain text under a wrong name")
    with pytest.raises(UserError, match=rf"{suffix.removesuffix('.gz').lower()}.* files are not read") as caught:
        list(read_documents(tmp_path / f"a{suffix}"))
    assert "unpack it" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("raw", "says_binary"), [(b"caf\xe9", False), (b"\xff\xfeh\0e\0n\0", True), (b"\x89PNG\r\n\0\0", True)]
)
def test_bytes_that_are_no_text_are_told_from_another_encoding(tmp_path, raw, says_binary):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(UserError, match="not a text file") as caught:
        list(read_documents(tmp_path / "a.txt"))
    assert ("it holds binary data, or UTF-16" in caught.value.what) == says_binary
    assert ("iconv -f latin1" in (caught.value.remedy or "")) == (not says_binary)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_source_is_told(name):
    with pytest.raises(UserError, match="--source is empty"):
        open_source(name)
