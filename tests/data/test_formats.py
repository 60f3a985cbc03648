"""Each kind of file is read as what it is or refused by name, alone and in folders; what is cut or followed by
something else is refused in every packing; what a folder holds besides is counted."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_transformer.cli import run
from tiny_transformer.data.prepare.files import read_documents
from tiny_transformer.data.prepare.find import find_files
from tiny_transformer.data.prepare.sources import open_source
from tiny_transformer.errors import ExitCode, UserError

TEXTS = [f'Story {i}.\nThe dog ran ✓, and said: "home; {i}"' for i in range(400)]
ROWS = [{"id": i, "text": text, "url": f"http://x/{i}"} for i, text in enumerate(TEXTS)]


def table(delimiter: str) -> str:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, ["id", "text", "url"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return lines.getvalue()


KINDS: dict[str, str] = {
    ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    ".ndjson": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    ".json": "".join(json.dumps(row) + "\n" for row in ROWS),
    ".array.json": json.dumps(ROWS),
    ".wide.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    ".strings.json": json.dumps(TEXTS),
    ".objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    ".csv": table(","),
    ".semicolons.csv": table(";"),
    ".tabs.csv": table("\t"),
    ".tsv": table("\t"),
}


def zst(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(data)


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
}


def read(path: Path) -> list[str]:
    return list(open_source(path).documents())


def refused(path: Path | str, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        list(open_source(path, **options).documents())  # ty: ignore[invalid-argument-type]
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", ["", *PACKINGS])
def test_rows_are_read_as_rows(tmp_path: Path, kind: str, packing: str) -> None:
    path = tmp_path / f"c4-train.00000-of-01024{kind}{packing}"
    path.write_bytes(PACKINGS.get(packing, bytes)(KINDS[kind].encode()))
    assert read(path) == TEXTS
    assert read(tmp_path) == TEXTS  # the folder of it


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "strings" not in kind])
def test_a_field_that_is_not_there_names_those_that_are(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    path.write_text(KINDS[kind], encoding="utf-8")
    error = refused(path, text_field="body")
    assert "no text in the field 'body'" in error.what
    assert f"line {2 if kind == '.wide.json' else 1}" in (error.where or "")
    assert "text, url" in (error.remedy or "")
    assert len(list(open_source(path, text_field="url").documents())) == 400


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson.gz"])
def test_rows_may_be_texts_alone_and_have_no_field_then(tmp_path: Path, name: str) -> None:
    data = "".join(json.dumps(text) + "\n" for text in TEXTS).encode()
    (tmp_path / name).write_bytes(PACKINGS.get(Path(name).suffix, bytes)(data))
    assert read(tmp_path / name) == TEXTS
    error = refused(tmp_path / name, text_field="body")
    assert error.what == "a row is a text and no object, so it has no field 'body'"


@pytest.mark.parametrize(
    ("name", "text", "what", "remedy"),
    [
        ("a.jsonl", '[{"text": "a"}, {"text": "b"}]', "a row is a list", "of one array let the name end in .json"),
        ("a.json", '[["a"], ["b"]]', "a row is a list", 'write {"text": ...}'),
        ("a.jsonl", "3\n4\n", "a row is a value", 'write {"text": ...}'),
        ("a.json", json.dumps({f"k{i}": "a" for i in range(50)}), "no text in the field", "k10, k11, 38 more"),
    ],
)
def test_rows_of_another_kind_say_which(tmp_path: Path, name: str, text: str, what: str, remedy: str) -> None:
    (tmp_path / name).write_text(text)
    error = refused(tmp_path / name)
    assert what in error.what and (error.remedy or "").endswith(remedy)


def test_long_rows_come_whole_and_one_after_another(tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + "word ✓ " * 400_000} for i in range(3)]  # 2.8 million characters each
    for name, text in (("a.json", json.dumps(rows)), ("b.json", "\n".join(map(json.dumps, rows)))):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read(tmp_path / name) == [row["text"] for row in rows]
    (tmp_path / "c.csv").write_text("text\n" + "\n".join(f'"{row["text"]}"' for row in rows), encoding="utf-8")
    assert read(tmp_path / "c.csv") == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("name", "text", "line", "what"),
    [
        ("a.json", '[{"text": "a"},\n{"text": "b"\n', 2, "not JSON"),
        ("a.json", '[{"text": "a"}\n{"text": "b"}]', 2, "a comma is missing"),
        ("a.json", '[{"text": "a"}]\n{"text": "b"}', 2, "something follows the end of the array"),
        ("a.json", '[{"text": "a"},\n', 2, "not JSON"),
        ("a.json", '[{"text": "a"}\n\n', 3, "the file ends inside its array"),
        ("a.json", '{"text": "a"}\n{"text": ', 2, "not JSON"),
        ("a.json", "not json at all", 1, "not JSON"),
        ("a.json", '["whole",\n"half \\ud800"]', 2, "half of a surrogate pair"),
        ("a.json", '"whole"\n"half \\udfff"', 2, "half of a surrogate pair"),
        ("a.json", "[" * 100_000, 1, "not JSON"),
        ("a.json", '{"rows": [{"text": "a"}], "count": 1}', 1, "one object, whose rows may be the list in 'rows'"),
        ("a.csv", 'text,n\n"a,1\nb,2\n', 3, "not .csv"),
        ("a.csv", 'text,n\n"a"b,1\n', 2, "not .csv"),
        ("a.csv", "text,n\na,1\nb\n", 3, "a row has 1 field, and the first line names 2 columns"),
        ("a.csv", '"a\nfull name",text\nx,y\nx\n', 4, "a row has 1 field"),
        ("a.csv", '"text,n\na,1\n', 2, "not .csv (unexpected end of data)"),
        ("a.csv", "text,n,text\na,1,b\n", 1, "2 columns are called 'text'"),
        ("a.csv", "text\na, b\n", 2, "a row has 2 fields, and the first line names 1 column"),
        ("a.csv", "\n\n\nbody,n\na,1\n", 4, "no text in the field 'text'"),
        ("a.tsv", "text\tn\na\t1\t2\n", 2, "a row has 3 fields"),
        ("a.ndjson", '{"text": "a"}\n{"text": ["a", "b"]}\n', 2, "no text in the field 'text'"),
        ("a.ndjson", '{"text": "a"}\n{"text":\n', 2, "line 2 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n', 2, "the key 'text' stands twice"),
        ("a.json", '[{"text": "a"},\n{"text": "b", "text": "c"}]\n', 2, "the key 'text' stands twice"),
    ],
)
def test_broken_rows_say_where(tmp_path: Path, name: str, text: str, line: int, what: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    error = refused(tmp_path / name)
    assert what in error.what and error.exit_code == ExitCode.BAD_DATA
    assert f"line {line}" in (error.where or "")


def test_a_header_may_be_quoted_over_several_lines_and_lines_may_end_as_on_an_old_mac(tmp_path: Path) -> None:
    for delimiter in ",;\t|":
        lines = f'"a{delimiter}\nfull name"{delimiter}"text"\nx{delimiter}"The\rhen; it, ""ran"""\ny{delimiter}home\n'
        for ending in ("\n", "\r\n", "\r"):
            (tmp_path / "a.csv").write_bytes(lines.replace("\n", ending).encode())
            assert read(tmp_path / "a.csv") == ['The\rhen; it, "ran"', "home"]


def test_a_table_may_begin_with_blank_lines_and_a_row_may_have_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n\r\ntext,n\nhen,1\n\n,2\nfox,3\n")
    (tmp_path / "a.json").write_text('[{"text": "hen"}, {"text": null}, {"text": ""}, {"text": "fox"}]')
    (tmp_path / "a.jsonl").write_text('{"text": "hen"}\n{"text": null}\n{"text": "fox"}\n')
    for name in ("a.csv", "a.json", "a.jsonl"):
        assert read(tmp_path / name) == ["hen", "fox"]
    (tmp_path / "a.jsonl").write_text('{"text": "hen"}\n{"id": 3}\n')
    assert "no text in the field" in refused(tmp_path / "a.jsonl").what  # not said to be empty: missing


@pytest.mark.parametrize("name", ["a.jl", "a.jsonlines", "a.ldjson", "a.JSONL.gz", "a.jl.xz"])
def test_other_suffixes_of_json_lines(tmp_path: Path, name: str) -> None:
    pack = PACKINGS.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(KINDS[".jsonl"].encode()))
    assert read(tmp_path / name) == read(tmp_path) == TEXTS
    assert open_source(tmp_path / name).note == ""


def test_another_suffix_of_tables(tmp_path: Path) -> None:
    (tmp_path / "a.tab").write_text(KINDS[".tsv"])
    assert read(tmp_path / "a.tab") == TEXTS


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.jsonl.txt", "rows.log.gz"])
def test_rows_under_a_name_of_text_are_read_as_text_and_that_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PACKINGS.get(Path(name).suffix, bytes)(KINDS[".jsonl"].encode()))
    note = open_source(tmp_path / name).note
    assert "its lines are rows of JSON: called .jsonl, one field of each would be read" in note
    (tmp_path / name).write_bytes(PACKINGS.get(Path(name).suffix, bytes)(b'{"text": 3}\nA hen.\n'))
    assert "JSON" not in open_source(tmp_path / name).note


PAGE = """<!DOCTYPE html><html><head><title>A hen</title><style>p { color: red }</style>
<script>if (a < b) document.write("<p>no</p>")</script></head><body>
<h1>The hen</h1><p>Once &amp; only,
she   ran&#33;</p><p>Then<br>home.<!-- not this --></p>
<ul><li>one</li><li>two</li></ul><pre>  keep
   this</pre></body></html>
"""


@pytest.mark.parametrize("name", ["a.html", "a.htm", "a.xhtml", "a.HTML", "a.html.gz"])
def test_a_page_is_read_without_its_markup(tmp_path: Path, name: str) -> None:
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(PAGE.encode()))
    (text,) = read(tmp_path / name)
    assert text == "A hen\n\nThe hen\n\nOnce & only, she ran!\n\nThen\nhome.\n\none\ntwo\n\n  keep\n   this"


def test_a_page_whose_script_does_not_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>one</p><script>var a = 1; <p>two</p>")
    assert "<script> is never closed" in refused(tmp_path / "a.html").what


@pytest.mark.parametrize(
    "hidden",
    [
        "<template>a<template>b</template>c</template>",
        "<template><p>a</p><script>if (a < b) x = '</template>'</script>b</template>",
        "<template><style>p { color: red }</style>a<template><script>b</script></template>c</template>",
        "<TEMPLATE>a<Template>b</tEMPLATE>c</template>",
        "<script/>",
        "</template></script></style>",
    ],
)
def test_what_is_hidden_is_hidden_to_the_end_of_the_outermost(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "a.html").write_text(f"<p>one</p>{hidden}<p>two</p>")
    assert read(tmp_path / "a.html") == ["one\n\ntwo"]


@pytest.mark.parametrize("page", ["<template>a<template>b</template>c", "<template>a<script>b</script>"])
def test_a_template_that_does_not_end_is_refused(tmp_path: Path, page: str) -> None:
    (tmp_path / "a.html").write_text(f"<p>one</p>{page}<p>two</p>")
    assert "<template> is never closed" in refused(tmp_path / "a.html").what


def test_a_comment_that_does_not_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<!-- not this --><p>one</p>\n<!-- a <p>two</p>\n<p>three</p>\n")
    assert "a comment is never closed" in refused(tmp_path / "a.html").what
    (tmp_path / "a.html").write_text("<p>a < b, and <!- this</p>")
    assert read(tmp_path / "a.html") != []


# --- packed files


LONG = "".join(f"Tale {i} of {i * 7919 % 1000} and {i * 104729 % 9973}.\n<|endoftext|>\n" for i in range(5000)).encode()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.999, "last byte"])
def test_a_cut_archive_is_noticed(tmp_path: Path, packing: str, share: float | str) -> None:
    whole = PACKINGS[packing](LONG)
    size = len(whole) - 1 if isinstance(share, str) else max(1, int(len(whole) * share))
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(whole[:size])
    assert "the archive is damaged" in refused(path).what
    path.write_bytes(whole)
    assert len(read(path)) == 5000


@pytest.mark.parametrize("packing", PACKINGS)
def test_several_streams_in_one_file_are_all_read_and_what_follows_them_is_refused(
    tmp_path: Path, packing: str
) -> None:
    pack, path = PACKINGS[packing], tmp_path / f"a.txt{packing}"
    first, second = pack(LONG), pack(b"The last tale.\n")
    path.write_bytes(first + second)
    assert read(path)[-1] == "The last tale." and len(read(path)) == 5001
    path.write_bytes(first + second[:-1])
    assert "cut short" in refused(path).what
    for rest in (b"garbage behind the end", b"x", b"\0\0\0x", first[:3]):
        path.write_bytes(first + rest)
        assert "the archive is damaged" in refused(path).what, rest
    path.write_bytes(first + bytes(512))
    if packing in (".gz", ".xz"):
        assert len(read(path)) == 5000
    else:
        assert "the archive is damaged" in refused(path).what


@pytest.mark.parametrize("packing", [".gz", ".xz"])
@pytest.mark.parametrize("padding", [1, 2**13 - 1, 2**13, 2**14, 5 * 2**13 + 1, 2**20])
def test_nothing_hides_behind_zeros_that_fill_a_block(tmp_path: Path, packing: str, padding: int) -> None:
    pack, path = PACKINGS[packing], tmp_path / f"a.txt{packing}"
    first, second = pack(b"The first tale.\n<|endoftext|>\n"), pack(b"The last tale.\n")
    path.write_bytes(first + bytes(padding) + second + bytes(padding))
    assert read(path) == ["The first tale.", "The last tale."]
    for rest in (b"x", second[:-1]):
        path.write_bytes(first + bytes(padding) + rest)
        assert "the archive is damaged" in refused(path).what


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path: Path, packing: str) -> None:
    if packing == ".zst":
        data = pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(LONG)
    else:
        data = PACKINGS[packing](LONG)
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x10]) + data[len(data) // 2 + 1 :])
    assert refused(path).exit_code == ExitCode.BAD_DATA


def test_frames_that_zstandard_skips_are_no_end(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
    path = tmp_path / "a.txt.zst"
    path.write_bytes(skipped + zst(b"one\n<|endoftext|>\n") + skipped + zst(b"two\n") + skipped)
    assert read(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.txt", ".gz"), ("a.txt.gzip", ".gz"), ("a.json", ".zst"), ("a.csv", ".xz"), ("a", ".bz2"), ("a.html", ".gz")],
)
def test_a_packed_file_under_another_name_is_told_by_its_content(tmp_path: Path, name: str, suffix: str) -> None:
    (tmp_path / name).write_bytes(PACKINGS[suffix](LONG))
    error = refused(tmp_path / name)
    assert "not a text file" in error.what
    assert error.remedy == f"by its first bytes it is packed: give its name the end {suffix}"
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(PACKINGS[suffix](LONG)))  # packed twice
    assert (
        refused(tmp_path / f"{name}.gz").remedy == f"by its first bytes it is packed again ({suffix}): unpack it first"
    )


@pytest.mark.parametrize("suffix", PACKINGS)
@pytest.mark.parametrize("text", ["a", "A hen.\n" * 2000])
def test_text_that_is_packed_by_its_name_alone_is_told_as_that(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_text(text)
    error = refused(path)
    assert error.what == f"no {suffix} archive: by its first bytes it is text, and not packed"
    assert error.remedy == f"take {suffix} off its name"
    other = next(packing for packing in PACKINGS if packing != suffix)
    path.write_bytes(PACKINGS[other](LONG))
    error = refused(path)
    assert error.what == f"no {suffix} archive: by its first bytes it is a {other}"
    assert error.remedy == f"let its name end in {other}"
    path.write_bytes(b"\x00" + bytes(range(200)))
    assert "the archive is damaged" in refused(path).what


@pytest.mark.parametrize(
    ("raw", "remedy"),
    [
        ("A hen.".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        ("A hen.".encode("utf-32"), "iconv -f utf-32 -t utf-8"),
        (b"PK\x03\x04" + bytes([200]), "unpack it"),
        (b"%PDF-1.7\n\xe2\xe3", "pdftotext"),
    ],
)
def test_other_content_is_told_by_its_first_bytes(tmp_path: Path, raw: bytes, remedy: str) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    assert remedy in (refused(tmp_path / "a.txt").remedy or "")


def test_a_table_that_is_no_text_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,n\nhen,1\n".encode("utf-16-le"))
    assert "not a text file" in refused(tmp_path / "a.csv").what


# --- folders


def fill(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} holds this.\n")
    return folder


def test_what_a_folder_holds_besides_is_counted_by_suffix(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt b.txt deep/c.txt d.md x.pdf y.pdf z.docx LICENSE pack.tar.gz .hidden.pdf .git/a.pdf")
    (tmp_path / "e.txt").touch()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    found = find_files(str(tmp_path))
    assert [path.name for path in found.paths] == ["a.txt", "b.txt", "d.md", "c.txt"]
    assert found.note == (
        "reading 3 .txt, 1 .md; skipped 8: 2 .pdf, 1 .docx, 1 .tar.gz, 1 broken link, 1 empty file, 1 special file, "
        "1 more"
    )
    assert find_files(str(tmp_path / "*.txt")).note == (
        "reading 2 .txt; skipped 3: 1 broken link, 1 empty file, 1 special file"
    )
    assert find_files(str(tmp_path / "a.txt")).note == ""


def test_the_sentence_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "in", "x[1].pdf b.pdf")
    (tmp_path / "in/a.txt").write_bytes(LONG)
    command = ["prepare", "--source", str(tmp_path / "in"), "--out_dir", str(tmp_path / "o"), "--tokenizer", "byte"]
    assert run(command) == 0
    assert "reading 1 .txt; skipped 2: 2 .pdf" in capsys.readouterr().out


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "fold", "a.txt sub/b.txt")
    fill(tmp_path / "else", "c.txt more/d.txt")
    (tmp_path / "fold/linked").symlink_to("../else")
    (tmp_path / "fold/sub/up").symlink_to("..")  # a circle
    (tmp_path / "else/back").symlink_to("../fold")  # a circle through two links
    (tmp_path / "fold/again").symlink_to("../else/more")  # the same folder a second time
    (tmp_path / "fold/same.txt").symlink_to("a.txt")
    found = find_files(str(tmp_path / "fold"))
    assert sorted(path.name for path in found.paths) == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert "2 linked folders followed" in found.note
    assert "2 links to a folder that is read already" in found.note
    matched = find_files(str(tmp_path / "fold/**/*.txt"))
    assert sorted(path.name for path in matched.paths) == ["a.txt", "b.txt", "c.txt", "d.txt"]


@pytest.mark.parametrize(
    ("names", "what", "remedy"),
    [
        ("a.pdf b.pdf c.docx", "it holds 2 .pdf, 1 .docx", "pdftotext"),
        ("a.docx b.docx c.pdf", "it holds 2 .docx, 1 .pdf", "save it as plain text first"),
        ("a.py src/b.py c.toml", "it holds 2 .py, 1 .toml", "/**/*.{py,toml}'"),
        ("a.zip", "it holds 1 .zip", "unpack it first"),
        ("a.tar.gz", "it holds 1 .tar.gz", "unpack it first"),
        (".a.txt", "no text in the folder", ".txt .md"),
    ],
)
def test_a_folder_without_text_says_what_it_holds(tmp_path: Path, names: str, what: str, remedy: str) -> None:
    fill(tmp_path, names)
    error = refused(tmp_path)
    assert what in error.what and remedy in (error.remedy or "")


def test_the_glob_that_is_given_for_a_folder_of_code_reads_it(tmp_path: Path) -> None:
    fill(tmp_path, "a.py src/b.py")
    glob = (refused(tmp_path).remedy or "").split("--source '")[1].split("'")[0]
    assert len(read(Path(glob))) == 2
    assert find_files(glob).note == "reading 2 .py"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.pdf", "pdftotext"),
        ("a.docx", "save it as plain text"),
        ("a.rtf", "save it as plain text"),
        ("a.epub", "save it as plain text"),
        ("a.xlsx", ".csv"),
        ("a.arrow", ".parquet"),
        ("a.pdf.gz", "pdftotext"),
        ("a.json5", "save it as .json first"),
    ],
)
def test_documents_of_other_programs_say_how_to_make_text_of_them(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_text("x")
    error = refused(tmp_path / name)
    assert "files are not read" in error.what and remedy in (error.remedy or "")


@pytest.mark.parametrize("name", ["a.rst", "a.py", "README", "a.text", "a.gz"])
def test_a_file_of_an_unknown_kind_is_read_as_plain_text_and_that_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((gzip.compress if name == "a.gz" else bytes)(b"One line."))
    assert read(tmp_path / name) == ["One line."]
    assert open_source(tmp_path / name).note == f"reading {name} as plain text, as it stands"


@pytest.mark.parametrize("url", ["https://example.org/a.txt", "http://example.org/b", "s3://bucket/key"])
def test_an_address_is_answered_with_how_to_fetch_it(url: str) -> None:
    error = refused(url)
    assert "is an address" in error.what and url in (error.remedy or "")


def test_an_address_at_the_hub_is_answered_with_the_id() -> None:
    assert "--source org/name" in (refused("https://huggingface.co/datasets/org/name").remedy or "")


def test_a_field_is_refused_where_there_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A hen.")
    for source in (tmp_path / "a.txt", tmp_path, "stories"):
        assert "no field 'body'" in refused(source, text_field="body").what
    (tmp_path / "b.jsonl").write_text('{"body": "A hen.", "text": 3}\n')
    assert len(list(open_source(tmp_path, text_field="body").documents())) == 2


def test_a_thing_that_is_neither_file_nor_folder_is_called_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in refused(tmp_path / "pipe").what


def test_pictures_are_no_text_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("a.txt", "a.png", "a.md", "a.json", "a.csv", "a.html"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
        assert "not a text file" in refused(tmp_path / name).what
    assert list(read_documents(Path(__file__)))
