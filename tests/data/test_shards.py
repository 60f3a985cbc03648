"""Reading token files: what is damaged is an error with its place, before any of it is used, and never a crash."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.meta import BLOCK_BYTES, read_meta
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.data.token_file import TokenFile, open_dataset, open_token_files
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers import make_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, documents) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    source = directory / "corpus.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    prepare(
        DataConfig(source=str(source), tokenizer="bpe", vocab_size=300, seq_len=16, val_fraction=0.2),
        directory / "data",
    )
    return directory / "data"


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def read_everything(data_dir: Path) -> int:
    """Open and touch all there is, as a training and a bits-per-byte evaluation would."""
    dataset = open_dataset(data_dir)
    total = 0
    for tokens in (dataset.train, dataset.val):
        total += int(tokens.read(0, len(tokens)).sum()) + len(tokens.documents())
        tokens.close()
    return total


def test_tokens_are_what_the_documents_say(prepared, documents):
    dataset = open_dataset(prepared)
    texts = []
    for tokens, split in ((dataset.train, dataset.meta.train), (dataset.val, dataset.meta.val)):
        ids, starts = tokens[:].tolist(), [*tokens.documents().tolist(), len(tokens)]
        assert len(ids) == split.num_tokens
        for start, stop in pairwise(starts):
            assert ids[stop - 1] == dataset.tokenizer.end_id
            texts.append(dataset.tokenizer.decode(ids[start : stop - 1]))
    assert sorted(texts) == sorted(documents)


def test_one_memmap_line_reads_the_tokens(prepared):
    dataset = open_dataset(prepared)
    mapped = np.memmap(prepared / "train.bin", dtype=dataset.meta.dtype, mode="r")
    assert np.array_equal(mapped, dataset.train[:])
    assert np.array_equal(mapped[5:9], dataset.train[5:9])


# --- damage ---


def test_any_flipped_bit_is_found(prepared, tmp_path_factory):
    whole = read_everything(prepared)
    work = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("flips") / "data"))
    names = ["train.bin", "val.bin", "train.docs", "val.docs", "meta.json", "tokenizer.json"]
    sizes = [(work / name).stat().st_size for name in names]
    rng = np.random.default_rng(0)
    silent = []
    for name, size in zip(names, sizes, strict=True):
        good = (work / name).read_bytes()
        for _ in range(40):
            place, bit = int(rng.integers(size)), int(rng.integers(8))
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            (work / name).write_bytes(bad)
            try:
                total = read_everything(work)
            except UserError as error:
                assert error.exit_code == ExitCode.BAD_DATA
                assert error.where
            else:
                same = name.endswith(".json") and total == whole and json.loads(bad) == json.loads(good)
                silent += [] if same else [(name, place, bit)]
        (work / name).write_bytes(good)
    assert silent == []
    assert read_everything(work) == whole


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.docs", "meta.json", "tokenizer.json"])
def test_truncation_is_found_at_any_length(copy, name):
    good = (copy / name).read_bytes()
    for length in sorted({0, 1, len(good) // 3, len(good) // 2, len(good) - 2, len(good) - 1}):
        (copy / name).write_bytes(good[:length])
        if name == "meta.json" and length == len(good) - 1:
            continue  # only the last line break is missing
        if name == "tokenizer.json" and length == len(good) - 1:
            continue
        with pytest.raises(UserError) as caught:
            read_everything(copy)
        assert caught.value.exit_code == ExitCode.BAD_DATA
        assert str(copy) in caught.value.where


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.docs", "tokenizer.json"])
def test_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError) as caught:
        read_everything(copy)
    assert name in str(caught.value)


def test_file_cut_short_while_open_is_an_error_and_no_bus_error(copy):
    dataset = open_dataset(copy)
    os.truncate(copy / "train.bin", 10)
    with pytest.raises(UserError, match="cut short while it was open"):
        dataset.train.read(0, len(dataset.train))


def test_replaced_file_does_not_disturb_a_reader(copy):
    dataset = open_dataset(copy)
    before = dataset.val[:]
    (copy / "new").write_bytes(b"\0" * 4)
    (copy / "new").replace(copy / "val.bin")
    assert np.array_equal(dataset.val.read(0, len(before)), before)


def big_file(path: Path, num_tokens: int) -> TokenFile:
    import zlib

    from tiny_transformer.data.meta import SplitMeta

    data = (np.arange(num_tokens) % 60_000).astype("<u2").tobytes()
    path.write_bytes(data)
    path.with_suffix(".docs").write_bytes(bytes(8))
    checksums = [zlib.crc32(data[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES)]
    split = SplitMeta(num_tokens, 1, 1, num_tokens, "", "", checksums, None)
    return TokenFile(path, dtype="uint16", vocab_size=60_000, split=split)


def test_each_block_is_checked_when_first_touched(tmp_path):
    tokens = big_file(tmp_path / "train.bin", 1_300_000)  # two and a half blocks
    damaged_byte = BLOCK_BYTES + 5_000
    with (tmp_path / "train.bin").open("r+b") as file:
        file.seek(damaged_byte)
        file.write(b"\xff")
    half = BLOCK_BYTES // 2
    assert tokens.read(half - 1_000, half)[-1] == (half - 1) % 60_000  # the first block is whole
    assert tokens.read(2 * half, 2 * half + 100)[0] == 2 * half % 60_000  # so is the third
    with pytest.raises(UserError, match="block 1") as caught:
        tokens.read(half - 10, half + 10)
    assert f"byte {BLOCK_BYTES:,}" in caught.value.where


def test_id_outside_the_vocabulary_is_named_with_its_place(tmp_path):
    (tmp_path / "train.bin").write_bytes(np.array([1, 2, 999, 3], dtype="<u2").tobytes())
    tokens = TokenFile(tmp_path / "train.bin", dtype="uint16", vocab_size=999)
    with pytest.raises(UserError, match="id 999 is not below the vocabulary size 999") as caught:
        tokens.read(0, 1)
    assert "byte 4" in caught.value.where


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1_300_000), st.integers(0, 3_000))
def test_any_window_equals_the_slice(tmp_path_factory, start, size):
    path = tmp_path_factory.getbasetemp() / "window.bin"
    tokens = TokenFile(path, dtype="uint16", vocab_size=60_000) if path.exists() else big_file(path, 1_300_000)
    stop = min(start + size, 1_300_000)
    assert np.array_equal(tokens.read(start, stop), (np.arange(start, stop) % 60_000).astype(np.uint16))
    tokens.close()


# --- what does not belong together ---


def test_tokenizer_that_does_not_match_is_refused(copy):
    make_tokenizer("bpe", texts=["quite another text " * 30], vocab_size=280).save(copy)
    with pytest.raises(UserError, match=r"tokenizer\.json differs from what was written"):
        open_dataset(copy)
    older = dataclasses.replace(read_meta(copy), tokenizer_files={})  # as a version wrote it that did not note them
    (copy / "meta.json").write_text(older.to_json())
    with pytest.raises(UserError, match="is not the one the tokens were made with"):
        open_dataset(copy)


def test_directory_without_meta_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "tiny-transformer prepare" in caught.value.remedy


def test_another_format_version_is_refused(copy):
    from tiny_transformer.data import meta

    body = json.loads((copy / "meta.json").read_text())
    body.pop("meta_sha256")
    body["format_version"] = 99
    (copy / "meta.json").write_text(json.dumps({**body, "meta_sha256": meta._hash(body)}))
    with pytest.raises(UserError, match="format 99; this version reads format 1"):
        read_meta(copy)


@pytest.mark.parametrize("val_name", ["val.bin", "validation.bin"])
def test_headerless_token_files_of_others_are_read(tmp_path, val_name):
    tokenizer = make_tokenizer("byte")
    for name, text in (("train.bin", "once upon a time"), (val_name, "the end")):
        (tmp_path / name).write_bytes(np.array(tokenizer.encode(text), dtype="<u2").tobytes())
    train, val = open_token_files(tmp_path, tokenizer)
    assert tokenizer.decode(train[:].tolist()) == "once upon a time"
    assert tokenizer.decode(val[:].tolist()) == "the end"
    (tmp_path / "train.bin").unlink()
    with pytest.raises(UserError, match="no token files"):
        open_token_files(tmp_path, tokenizer)
