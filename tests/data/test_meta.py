"""meta.json: it covers every file beside it, an impossible value is an error and no crash, and whoever opens the data
while it is replaced gets the old or the new."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tiny_transformer.cli import run
from tiny_transformer.data import token_file
from tiny_transformer.data.meta import Meta, _hash, read_meta
from tiny_transformer.data.prepare.summary import print_summary
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError

from .conftest import make_documents, prepared

OLD = {"tokenizer": "byte", "seq_len": 16, "val_fraction": 0.2}
NEW = {**OLD, "val_fraction": 0.4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("meta")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in make_documents(200))
    (directory / "corpus.jsonl").write_text(rows)
    prepared(directory / "corpus.jsonl", directory / "data", **OLD)
    prepared(directory / "corpus.jsonl", directory / "new", **NEW)
    return directory


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "data", tmp_path / "data"))


def rewrite(data_dir: Path, change: dict[str, Any]) -> None:
    """Change values of meta.json and seal it again; `train.x` is in a split."""
    body = json.loads((data_dir / "meta.json").read_text())
    del body["meta_sha256"]
    for key, value in change.items():
        section, _, leaf = key.rpartition(".")
        target = body[section] if section else body
        if value is ...:
            del target[leaf]
        else:
            target[leaf] = value
    (data_dir / "meta.json").write_text(json.dumps({**body, "meta_sha256": _hash(body)}))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_flipped_bit_in_a_file_of_the_tokenizer_is_found(data: Path, name: str) -> None:
    good = (data / name).read_bytes()
    for place in range(0, len(good), max(1, len(good) // 60)):
        for bit in (0x01, 0x20):
            (data / name).write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
            with pytest.raises(UserError, match=f"{name} differs from what was written") as caught:
                open_dataset(data)
            assert caught.value.exit_code == ExitCode.BAD_DATA
    (data / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        open_dataset(data)


def test_an_older_meta_json_without_them_still_opens(data: Path) -> None:
    rewrite(data, {"tokenizer_files": ...})
    assert open_dataset(data).meta.tokenizer_files == {}


def test_the_same_text_has_one_fingerprint_whatever_turned_it_into_tokens(whole: Path, tmp_path: Path) -> None:
    source = whole / "corpus.jsonl"
    meta = read_meta(whole / "data")
    other = prepared(source, tmp_path / "bpe", **{**OLD, "tokenizer": "char", "seq_len": 8})
    assert other.val.sha256 != meta.val.sha256
    assert other.text_fingerprint == meta.text_fingerprint
    assert read_meta(whole / "new").text_fingerprint != meta.text_fingerprint  # more of the text is for validation
    (tmp_path / "other.jsonl").write_text(source.read_text().replace("Tim", "Tom"))  # as many bytes
    assert prepared(tmp_path / "other.jsonl", tmp_path / "other", **OLD).text_fingerprint != meta.text_fingerprint


def test_the_fingerprint_of_older_data_stays(data: Path) -> None:
    identity = read_meta(data).request["source_identity"]
    meta = read_meta(data)
    rewrite(data, {"request.source_identity": ..., "request.source_fingerprint": identity})
    assert read_meta(data).text_fingerprint == meta.text_fingerprint


HUGE = 10**30
IMPOSSIBLE: list[dict[str, Any]] = [
    {"vocab_size": 0},
    {"vocab_size": HUGE},
    {"vocab_size": 70_000},  # of a uint16
    {"dtype": "int8"},
    {"dtype": None},
    {"seq_len": 0},
    {"seq_len": -1},
    {"seq_len": HUGE},
    {"seq_len": True},
    {"num_used_ids": 258},
    {"train.num_tokens": 0},
    {"train.num_tokens": HUGE},
    {"train.num_documents": 0},
    {"train.num_documents": HUGE},
    {"val.num_bytes": HUGE},
    {"val.longest_document": HUGE},
    {"val.num_bytes": 1.5},
    {"train.block_crc32": []},
    {"train.block_crc32": [0, 0]},
    {"train.block_crc32": [-1]},
    {"train.block_crc32": [2**40]},
    {"train.block_crc32": ["x"]},
    {"train.sha256": None},
    {"val.floor": {}},
    {"val.floor": {"nats_per_token": 1.0}},
    {"val.floor": {"nats_per_story": 1.0, "nats_per_token": float("nan"), "bits_per_byte": 1.0}},
    {"val.floor": {"nats_per_story": float("inf"), "nats_per_token": 1.0, "bits_per_byte": 1.0}},
    {"val.floor": []},
    {"val": 3},
    {"val": None},
    {"train": ...},
    {"source": 5},
    {"request": []},
    {"request.source": 3},
    {"request.val_fraction": "much"},
    {"request.vocab_size": True},
    {"request.max_bytes": [1]},
    {"tokenizer_files": {"../../etc/passwd": "0" * 64}},
    {"tokenizer_files": {"tokenizer.json": 3}},
    {"tokenizer_files": []},
    {"surplus": 1},
]


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_an_impossible_value_is_an_error_and_no_crash(
    data: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(data, change)
    for words in (["inspect"], ["prepare", "--tokenizer", "byte", "--out_dir"], ["train", "--data_dir"]):
        assert run([*words, str(data)]) == ExitCode.BAD_DATA
        message = capsys.readouterr().err
        assert "damaged data" in message and "meta.json" in message and "Traceback" not in message


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "\0", "", "null", "[]", "\ud800"])
def test_what_is_no_meta_json_at_all_is_an_error(data: Path, text: str) -> None:
    (data / "meta.json").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(UserError, match="damaged data"):
        read_meta(data)


def test_strange_names_are_shown_and_not_obeyed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    rewrite(data, {"source": "[/red]x\x1b[31m", "licence": "[bold]"})
    print_summary(read_meta(data), data, Console())
    out = capsys.readouterr().out
    assert "[/red]x" in out and "[bold]" in out


@pytest.mark.parametrize(("size", "note"), [("50257", "; 50,257 were asked for"), ("270", "")])
def test_a_vocabulary_that_came_out_smaller_is_told(
    size: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(f"The hen and fox number {i} ran. " for i in range(99))
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    words = ["--source", str(tmp_path / "my.txt"), "--vocab_size", size, "--seq_len", "8"]
    assert run(["prepare", *words, "--out_dir", str(tmp_path / "d")]) == ExitCode.OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tokenizer ")]
    assert note in line and ("were asked for" in line) == bool(note)


# --- opening while it is replaced


def swap(data: Path, other: Path) -> None:
    """Replace all files as `prepare` does in the end, meta.json first."""
    shutil.copy(other / "meta.json", data / "meta.json.new")
    (data / "meta.json.new").replace(data / "meta.json")
    for path in other.iterdir():
        if path.name not in ("meta.json", ".lock"):
            shutil.copy(path, data / "file.new")
            (data / "file.new").replace(data / path.name)


@pytest.mark.parametrize("moment", ["load_tokenizer", "TokenFile", "Dataset"])
def test_data_that_is_replaced_while_it_is_opened_is_opened_again(
    whole: Path, data: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    original, swaps = getattr(token_file, moment), iter(["new", "data", "new"])

    def swapped(*arguments: Any, **options: Any) -> Any:
        if (name := next(swaps, None)) is not None:
            swap(data, whole / name)
        return original(*arguments, **options)

    monkeypatch.setattr(token_file, moment, swapped)
    dataset = open_dataset(data)
    assert dataset.meta == read_meta(whole / "new")
    for tokens in (dataset.train, dataset.val):
        tokens.read(0, len(tokens))


def test_files_that_move_up_while_they_are_opened_are_found(
    whole: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = read_meta(whole / "new")
    staged = token_file.staging_dir(data, meta.request)
    shutil.copytree(whole / "new", staged)
    shutil.copy(staged / "meta.json", data / "meta.json")
    original = token_file.locate

    def located(data_dir: Path, of: Meta, name: str) -> Path:
        path = original(data_dir, of, name)
        if name == "train.bin" and staged.is_dir():  # between looking and opening
            for file in staged.iterdir():
                file.replace(data / file.name)
            staged.rmdir()
        return path

    monkeypatch.setattr(token_file, "locate", located)
    assert open_dataset(data).meta == meta


def test_damage_stays_damage(data: Path) -> None:
    (data / "train.bin").write_bytes(b"")
    with pytest.raises(UserError, match="damaged data"):
        open_dataset(data)


@pytest.mark.slow
def test_readers_beside_a_prepare_never_see_damage(whole: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepared(whole / "corpus.jsonl", data, **OLD)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for options in (NEW, OLD) * 20:
                prepared(whole / "corpus.jsonl", data, **options, overwrite=True)
            code = 0
        finally:
            os._exit(code)
    seen, status = set(), (0, 0)
    while status[0] == 0:
        dataset = open_dataset(data)
        seen.add(dataset.meta.fingerprint)
        for tokens in (dataset.train, dataset.val):
            tokens.read(0, len(tokens))
            tokens.close()
        status = os.waitpid(child, os.WNOHANG)
    assert status[1] == 0
    assert len(seen) == 2
