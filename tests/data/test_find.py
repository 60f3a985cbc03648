"""What a path, a folder or a pattern means: nothing is passed over in silence, and each command that is given works."""

from __future__ import annotations

import bz2
import gzip
import os
import shlex
from pathlib import Path

import pytest

from tiny_transformer.data.prepare.find import find_files, looks_like_hub_id
from tiny_transformer.data.prepare.sources import open_source
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.commit import publish

from .conftest import prepared

PACK = {".gz": gzip.compress, ".bz2": bz2.compress}


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = b"\x89PNG\r\n\0" if path.suffix == ".png" else f"{name} holds this.\n".encode()
        path.write_bytes(PACK.get(path.suffix, bytes)(content))


def refused(source: Path | str) -> UserError:
    with pytest.raises(UserError) as caught:
        open_source(source)
    return caught.value


def read(source: str) -> set[str]:
    return {text.split(" holds")[0] for text in open_source(source).documents()}


def command(error: UserError) -> str:
    """The source that a remedy names, as a shell would give it."""
    words = shlex.split((error.remedy or "").partition("--source ")[2].rpartition("; else")[0])
    assert len(words) == 1, error.remedy
    return words[0]


@pytest.mark.parametrize(
    "names",
    [
        ["a.py", "src/b.py"],
        ["a.PY", "b.py", "src/c.Py"],
        ["a.py", "src/b.js", "src/deep/c.ts", "d.py"],
        ["a.py.gz", "b.py.gz"],
        ["a.py.gz", "b.js", "c.py"],
        ["LICENSE", "a.py"],
        ["README"],
        [f"x.k{i}" for i in range(9)],
        ["it's.c++", "b.h"],
        ["a.tar.py"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("folder", ["code", "we ird 'q' [x]", "star*", "{a,b}", "$HOME", "a[!b]?"])
def test_the_command_given_for_a_folder_of_other_files_reads_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / folder, names)
    for other in ("b", "code2", "starry", "ab"):  # what an unquoted name would match
        fill(tmp_path / other, ["no.py", "no.js"])
    source = command(refused(folder))
    assert read(source) == set(names)
    assert "skipped" not in open_source(source).note


def test_what_is_not_text_is_left_out_of_the_command_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "code", ["a.py", "b.js", "x.png", "y.png", "z.png", "w.png", "LICENSE"])
    (tmp_path / "code/empty.rs").touch()
    error = refused("code")
    assert "it holds 4 .png, 1 .js, 1 .py, 1 empty file, 1 without a suffix" in error.what
    assert read(command(error)) == {"a.py", "b.js"}


@pytest.mark.parametrize(
    ("names", "empty", "remedy"),
    [
        (["a.png"], [], "give a file, folder or glob"),
        ([], ["a.py", "b.txt"], "give a file, folder or glob"),
        (["a.pdf", "b.pdf", "c.py"], [], "pdftotext"),
        (["a.pdf", "c.py", "d.py"], ["b.pdf"], "/**/*.py'"),
    ],
)
def test_no_command_is_given_where_none_would_work(
    tmp_path: Path, names: list[str], empty: list[str], remedy: str
) -> None:
    fill(tmp_path, names)
    for name in empty:
        (tmp_path / name).touch()
    assert remedy in (refused(tmp_path).remedy or "").partition(";")[0]


def test_a_pattern_says_what_it_passes_over(tmp_path: Path) -> None:
    fill(tmp_path, ["a.txt", "b.txt", "deep/c.txt", "other/d.txt"])
    (tmp_path / "e.txt").touch()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "other/back").symlink_to("..")
    (tmp_path / "linked").symlink_to("other")
    os.mkfifo(tmp_path / "pipe.txt")
    skipped = "1 broken link, 1 empty file"
    assert find_files(f"{tmp_path}/*.txt").note == f"reading 2 .txt; skipped 3: {skipped}, 1 special file"
    assert find_files(f"{tmp_path}/*").note == f"reading 2 .txt; skipped 6: 3 folders, {skipped}, 1 special file"
    note = find_files(f"{tmp_path}/**/*.txt").note
    assert note == (
        f"reading 4 .txt; skipped 3: {skipped}, 1 special file; 1 linked folder followed; "
        "1 link to a folder that is read already"
    )
    assert find_files(str(tmp_path)).note == note  # a folder says the same
    assert len(list(open_source(f"{tmp_path}/*.txt").documents())) == 2  # the empty one does not end it


def test_a_pattern_that_finds_nothing_to_read_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "in/one").mkdir(parents=True)
    (tmp_path / "in/a.txt").touch()
    error = refused(f"{tmp_path}/in/*")
    assert "matches no file with something in it: 1 empty file, 1 folder" in error.what
    assert f"--source {tmp_path}/in/one" in (error.remedy or "")


def test_one_of_several_suffixes(tmp_path: Path) -> None:
    fill(tmp_path, ["a.py", "b.js", "c.ts", "d{x,y}.txt", "deep/e.py"])
    assert read(f"{tmp_path}/*.{{py,js}}") == {"a.py", "b.js"}
    assert read(f"{tmp_path}/{{a,deep/*}}.{{py,ts}}") == {"a.py", "deep/e.py"}
    assert read(f"{tmp_path}/**/*.{{py,js}}") == {"a.py", "b.js", "deep/e.py"}
    assert read(f"{tmp_path}/d{{x,y}}.txt") == {"d{x,y}.txt"}  # a file of that name
    assert "no file matches" in refused(f"{tmp_path}/*.{{rs,go}}").what


def test_a_slip_in_a_path_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, ["data/notes.rst", "data/book", "chapters/one"])
    for name in ("data/notes.gz", "data/notes.zst", "data/note.rst", "data/bok", "data/Notes.rst", "no/where.bz2"):
        assert not looks_like_hub_id(name), name
        assert "no such file" in refused(name).what
    assert looks_like_hub_id("data/TinyStories") and looks_like_hub_id("org/c4-v1.1")
    assert "did you mean data/notes.rst?" in (refused("data/note.rst").remedy or "")
    assert "did you mean chapters?" in (refused("chaptrs").remedy or "")


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        (
            "https://example.org/a.txt?x=1&y=2",
            "curl -L -o a.txt 'https://example.org/a.txt?x=1&y=2'; then --source a.txt",
        ),
        ("http://example.org/rows.jsonl.gz", "-o rows.jsonl.gz http"),
        ("https://example.org/page", "-o text.txt https"),
        (
            "https://huggingface.co/datasets/org/name/blob/main/a.csv",
            "-o a.csv https://huggingface.co/datasets/org/name/resolve/",
        ),
        ("https://huggingface.co/datasets/org/name/tree/main", "--source org/name"),
        ("https://huggingface.co/datasets/org/na.me?row=3", "--source org/na.me"),
        ("hf://datasets/org/name", "--source org/name"),
        ("file:///tmp/my%20text.txt", "--source '/tmp/my text.txt'"),
        ("s3://bucket/key.jsonl", "with the program for s3:// addresses, s3://bucket/key.jsonl to key.jsonl"),
    ],
)
def test_an_address_is_answered_with_what_fetches_it(address: str, remedy: str) -> None:
    assert remedy in (refused(address).remedy or "")


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("~nobody-of-that-name/a.txt", "there is no user 'nobody-of-that-name'", "write it out"),
        ("a.txt/b", "no such file", "give a file"),
        ("gone", "a link that leads nowhere", "give a file"),
        ("round", "a link that leads nowhere", "give a file"),
        ("-", "standard input is not read", "write it to a file"),
        ("Stories", "no such file", "did you mean --source stories?"),
        ("stories/", "no such file", "did you mean --source stories?"),
        ("tiny-stories", "no such file", "did you mean --source tinystories?"),
        ("wikipedia-intros", "no such file", "did you mean --source wiki-intros?"),
    ],
)
def test_a_name_of_nothing_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, ["a.txt"])
    Path("gone").symlink_to("nowhere")
    Path("round").symlink_to("round")
    error = refused(name)
    assert what in error.what and remedy in (error.remedy or "")
    fill(tmp_path, ["Storys/x.txt", "storie"])
    assert read("storie*") == {"storie"}
    assert read("Storys") == read("Storys*/*") == {"Storys/x.txt"}  # what is there is meant


def test_a_tokenizer_of_a_user_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from tiny_transformer.tokenizers import make_tokenizer

    with pytest.raises(UserError):
        make_tokenizer("~nobody-of-that-name/tokenizer")


def test_what_this_program_wrote_beside_a_text_is_not_read_as_text(tmp_path: Path) -> None:
    story = "\n<|endoftext|>\n".join(f"Tale {i} of a hen." for i in range(300))
    (tmp_path / "a.txt").write_text(story)
    before = open_source(tmp_path).fingerprint
    options = {"tokenizer": "byte", "seq_len": 8}
    meta = prepared(tmp_path, tmp_path / "data", **options)  # inside the folder that is read
    assert prepared(tmp_path, tmp_path, **options).train == meta.train  # and the folder itself
    assert prepared(tmp_path, tmp_path, **options).request == meta.request  # nothing to do
    with publish(tmp_path / "runs/r/step-00000002") as staging:
        staging.write("config.json", "{}")
    for name in ("log.jsonl", "plan.json", "samples.json", "report.html", "config.yaml"):
        (tmp_path / "runs/r" / name).write_text('{"loss": 3}\n')
    source = open_source(tmp_path)
    assert (source.fingerprint, len(list(source.documents()))) == (before, 300)
    count = len(list(tmp_path.rglob("*"))) - len(list(tmp_path.rglob("*/"))) - 3  # a text and two locks
    assert source.note.startswith(f"reading 1 .txt; skipped {count}: {count} files of this program")
    (tmp_path / "data/config.yaml").write_text("a: 1")
    (tmp_path / "data/log.jsonl").write_text('{"text": "A log of one\'s own."}\n')
    (tmp_path / "own").mkdir()
    (tmp_path / "own/manifest.json").write_text('[{"text": "A manifest of one\'s own."}]')
    assert {"A log of one's own.", "A manifest of one's own."} < set(open_source(tmp_path).documents())


def test_a_file_where_data_are_to_go_is_told(tmp_path: Path) -> None:
    fill(tmp_path, ["a.txt", "b"])
    with pytest.raises(UserError, match="b is a file") as caught:
        prepared(tmp_path / "a.txt", tmp_path / "b", tokenizer="byte", seq_len=8)
    assert caught.value.exit_code == ExitCode.IO
