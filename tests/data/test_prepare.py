"""`prepare`: what comes out, that it is the same every time, and that bad requests end before anything is changed."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.batches import Batches
from tiny_transformer.data.meta import read_meta
from tiny_transformer.data.prepare import command as prepare_module
from tiny_transformer.data.prepare import encode as encode_module
from tiny_transformer.data.prepare.command import is_prepared, prepare, prepare_with_progress
from tiny_transformer.data.prepare.gather import Gathering, Split
from tiny_transformer.data.prepare.sources import Document, Source, open_source
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import RunLock, verify
from tiny_transformer.tokenizers import make_tokenizer

from .conftest import make_documents, prepared

OUR_FILES = [
    "manifest.json",
    "meta.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "train.bin",
    "train.docs",
    "val.bin",
    "val.docs",
]
SMALL = {"tokenizer": "byte", "seq_len": 16, "val_fraction": 0.2}


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


def digests(directory: Path) -> dict[str, str]:
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in visible(directory)}


def texts_of(data_dir: Path) -> tuple[list[str], list[str]]:
    dataset = open_dataset(data_dir)
    end = dataset.tokenizer.end_id
    splits = []
    for tokens in (dataset.train, dataset.val):
        ids = tokens[:].tolist()
        ends = [i for i, token in enumerate(ids) if token == end]
        starts = [0, *(i + 1 for i in ends[:-1])]
        splits.append([dataset.tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)])
    return splits[0], splits[1]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_every_document_ends_up_in_one_split_followed_by_the_end_token(corpus, documents, tmp_path, tokenizer):
    meta = prepared(corpus, tmp_path / "data", **{**SMALL, "tokenizer": tokenizer})
    train, val = texts_of(tmp_path / "data")
    assert sorted(train + val) == sorted(documents)
    assert visible(tmp_path / "data") == OUR_FILES
    assert (meta.train.num_documents, meta.val.num_documents) == (len(train), len(val))
    assert meta.train.num_bytes == sum(len(text.encode()) for text in train)
    assert meta.val.num_bytes == sum(len(text.encode()) for text in val)
    assert read_meta(tmp_path / "data") == meta


def test_figures_in_meta_are_those_of_the_files(corpus, tmp_path):
    meta = prepared(corpus, tmp_path, **SMALL)
    dataset = open_dataset(tmp_path)
    for name, split, tokens in (("train", meta.train, dataset.train), ("val", meta.val, dataset.val)):
        data = (tmp_path / f"{name}.bin").read_bytes()
        assert hashlib.sha256(data).hexdigest() == split.sha256
        assert len(data) == 2 * split.num_tokens
        starts = [*tokens.documents().tolist(), len(tokens)]
        assert len(starts) == split.num_documents + 1
        assert max(np.diff(starts)) == split.longest_document
        assert split.floor is None
    used = np.union1d(dataset.train[:], dataset.val[:])
    assert meta.num_used_ids == len(used)
    assert (meta.dtype, meta.vocab_size, meta.source) == ("uint16", 257, str(corpus))
    verify(tmp_path)  # the manifest of the storage room holds too


def test_preparing_twice_gives_the_same_bytes(corpus, tmp_path):
    for name in ("a", "b"):
        prepared(corpus, tmp_path / name, seq_len=16, val_fraction=0.2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_any_number_of_workers_gives_the_same_bytes(corpus, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", 1_000)  # so that each worker has many
    monkeypatch.setattr(encode_module, "SAVE_BYTES", 20_000)
    options = {**SMALL, "tokenizer": tokenizer}
    for workers in (1, 2, 4, None):
        prepared(corpus, tmp_path / str(workers), workers=workers, **options)
        assert digests(tmp_path / str(workers)) == digests(tmp_path / "1")


def test_same_bytes_without_tiktoken(corpus, tmp_path, monkeypatch):
    pytest.importorskip("tiktoken")
    prepared(corpus, tmp_path / "fast", seq_len=16, val_fraction=0.2)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    prepared(corpus, tmp_path / "slow", seq_len=16, val_fraction=0.2)
    assert digests(tmp_path / "fast") == digests(tmp_path / "slow")


def test_same_request_again_does_no_work(corpus, tmp_path, monkeypatch):
    first = prepared(corpus, tmp_path / "data", **SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    monkeypatch.setattr(prepare_module, "Gathering", None)
    assert prepared(corpus, tmp_path / "data", **SMALL) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before


@pytest.mark.parametrize(
    "change", [{"seq_len": 8}, {"val_fraction": 0.3}, {"tokenizer": "char"}, {"max_bytes": 20_000}]
)
def test_other_data_is_replaced_only_when_told(corpus, tmp_path, change):
    prepared(corpus, tmp_path / "data", **SMALL)
    before = digests(tmp_path / "data")
    with pytest.raises(UserError, match=f"what differs: .*{next(iter(change))}") as caught:
        prepared(corpus, tmp_path / "data", **{**SMALL, **change})
    assert caught.value.exit_code == ExitCode.USAGE
    assert "--overwrite" in caught.value.remedy
    assert digests(tmp_path / "data") == before
    meta = prepared(corpus, tmp_path / "data", **{**SMALL, **change}, overwrite=True)
    assert open_dataset(tmp_path / "data").meta == meta
    assert visible(tmp_path / "data") == OUR_FILES


def test_changed_source_is_noticed(corpus, tmp_path):
    prepared(corpus, tmp_path / "data", **SMALL)
    with corpus.open("a") as file:
        file.write("\n<|endoftext|>\nOne more.")
    with pytest.raises(UserError, match="what differs: the text of the source"):
        prepared(corpus, tmp_path / "data", **SMALL)


def test_other_files_in_the_directory_are_left_alone(corpus, tmp_path):
    (tmp_path / "data" / "notes").mkdir(parents=True)
    (tmp_path / "data" / "notes" / "mine.txt").write_text("keep")
    prepared(corpus, tmp_path / "data", **SMALL)
    prepared(corpus, tmp_path / "data", **{**SMALL, "seq_len": 8}, overwrite=True)
    assert (tmp_path / "data" / "notes" / "mine.txt").read_text() == "keep"
    assert visible(tmp_path / "data") == sorted([*OUR_FILES, "notes"])


def test_damaged_data_is_not_taken_for_done_and_can_be_overwritten(corpus, tmp_path):
    prepared(corpus, tmp_path / "data", **SMALL)
    (tmp_path / "data" / "meta.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        prepared(corpus, tmp_path / "data", **SMALL)
    prepared(corpus, tmp_path / "data", **SMALL, overwrite=True)
    open_dataset(tmp_path / "data")


def test_training_that_runs_keeps_its_data_when_it_is_overwritten(corpus, tmp_path):
    prepared(corpus, tmp_path / "data", **SMALL)
    running = Batches(open_dataset(tmp_path / "data").train, seq_len=16, global_batch_size=4, seed=1)
    expected = Batches(open_dataset(tmp_path / "data").train, seq_len=16, global_batch_size=4, seed=1)
    before = [expected.batch(step).input_ids.tolist() for step in range(40)]
    seen = []
    for step in range(40):
        if step % 10 == 5:
            options = {**SMALL, "val_fraction": 0.2 + step / 100}
            prepared(corpus, tmp_path / "data", **options, overwrite=True)
        seen.append(running.batch(step).input_ids.tolist())
    assert seen == before


def test_process_that_has_the_tokens_mapped_keeps_them_when_they_are_overwritten(corpus, tmp_path):
    data = tmp_path / "data"
    prepared(corpus, data, **SMALL)
    before = hashlib.sha256((data / "train.bin").read_bytes()).hexdigest()
    code = (
        "import hashlib, sys, numpy as np\n"
        f"tokens = np.memmap({str(data / 'train.bin')!r}, dtype='uint16', mode='r')\n"
        "for line in sys.stdin: print(hashlib.sha256(tokens.tobytes()).hexdigest(), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:

        def seen() -> str:
            reader.stdin.write("look\n")
            reader.stdin.flush()
            return reader.stdout.readline().strip()

        assert seen() == before
        for fraction in (0.3, 0.4):
            meta = prepared(corpus, data, **{**SMALL, "val_fraction": fraction}, overwrite=True)
            assert meta.train.sha256 != before
            assert seen() == before
        reader.stdin.close()
        assert reader.wait() == 0


# --- the split ---


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_validation_does_not_move_when_data_is_added(tmp_path):
    few, many = make_documents(200), make_documents(300, seed=1) + make_documents(200)
    for name, texts in (("few", few), ("many", many)):
        prepared(rows(tmp_path / f"{name}.jsonl", texts), tmp_path / name, **SMALL)
    train, val = texts_of(tmp_path / "few")
    more_train, more_val = texts_of(tmp_path / "many")
    assert set(val) <= set(more_val)
    assert set(train) <= set(more_train)
    assert not set(more_train) & set(more_val)


def test_share_of_validation_is_as_asked(tmp_path):
    source = rows(tmp_path / "x.jsonl", make_documents(2_000))
    for fraction in (0.05, 0.3):
        meta = prepared(source, tmp_path / str(fraction), tokenizer="byte", seq_len=16, val_fraction=fraction)
        share = meta.val.num_documents / 2_000
        assert abs(share - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / 2_000)


def test_repeated_documents_are_dropped_and_counted(tmp_path):
    texts = make_documents(100)
    source = rows(tmp_path / "x.jsonl", [*texts, *texts[:30], texts[5], texts[5]])
    meta = prepared(source, tmp_path / "data", **SMALL)
    train, val = texts_of(tmp_path / "data")
    assert meta.num_duplicates == 32
    assert sorted(train + val) == sorted(texts)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_which_document_goes_where_depends_on_the_hashes_alone(tmp_path, monkeypatch, tokenizer, fraction):
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", 700)
    split = Split(fraction)
    for seed in range(6):
        texts = make_documents(2 + 3 * seed, seed=seed)
        hashes = {d.text: d.hash for d in Gathering(scored_source(texts), split)}
        bounds = {"lowest": min(hashes.values()), "highest": max(hashes.values())}
        prepared(scored_source(texts), tmp_path / str(seed), tokenizer=tokenizer, seq_len=16, val_fraction=fraction)
        train, val = texts_of(tmp_path / str(seed))
        assert set(val) == {text for text in texts if split.is_validation(hashes[text], **bounds)}
        assert sorted(train + val) == sorted(texts)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_handful_of_documents_leaves_neither_split_empty(tmp_path, count):
    for seed in range(12):
        directory = tmp_path / str(seed)
        directory.mkdir()
        source = rows(directory / "x.jsonl", make_documents(count, seed=100 + seed))
        fraction = 0.01 if seed % 2 else 0.99
        meta = prepared(source, directory / "data", tokenizer="byte", seq_len=16, val_fraction=fraction)
        assert min(meta.train.num_documents, meta.val.num_documents) == 1


# --- the tokenizer ---


def test_bpe_is_trained_on_the_training_documents_only(tmp_path):
    texts = make_documents(200)
    prepared(rows(tmp_path / "x.jsonl", texts), tmp_path / "data", seq_len=16, vocab_size=300, val_fraction=0.2)
    train, _ = texts_of(tmp_path / "data")
    trained_here = make_tokenizer("bpe", texts=[t for t in texts if t in set(train)], vocab_size=300)
    assert open_dataset(tmp_path / "data").tokenizer.fingerprint == trained_here.fingerprint


def test_large_text_trains_on_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "TRAINING_SAMPLE_BYTES", 20_000)
    sizes = []
    original = prepare_module.make_tokenizer

    def spy(name, *, texts, **options):
        texts = list(texts)
        sizes.append((sum(len(text.encode()) for text in texts), options["text_bytes"]))
        return original(name, texts=texts, **options)

    monkeypatch.setattr(prepare_module, "make_tokenizer", spy)
    meta = prepared(rows(tmp_path / "x.jsonl", make_documents(1_000)), tmp_path / "data", seq_len=16)
    (sampled, whole) = sizes[0]
    assert 12_000 < sampled < 28_000
    assert whole == meta.train.num_bytes > 10 * sampled


def test_large_vocabulary_is_written_as_uint32(corpus, tmp_path):
    content = make_tokenizer("byte").content
    content = {**content, "model": {**content["model"], "vocab": dict(content["model"]["vocab"])}}
    content["model"]["vocab"].update({f"word{i}": 257 + i for i in range(70_000)})
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "tokenizer.json").write_text(json.dumps(content))
    meta = prepared(corpus, tmp_path / "data", **{**SMALL, "tokenizer": str(tmp_path / "big")})
    assert (meta.dtype, meta.vocab_size) == ("uint32", 70_257)
    assert (tmp_path / "data" / "val.bin").stat().st_size == 4 * meta.val.num_tokens
    texts_of(tmp_path / "data")


def test_tokenizer_with_a_begin_token_puts_it_before_each_document(corpus, tmp_path):
    from tiny_transformer.tokenizers import Tokenizer
    from tiny_transformer.tokenizers.llama2c import content_of_pieces

    pieces = [(0.0, "")] * 259 + [(-float(i), piece) for i, piece in enumerate((" t", "he", " the", *"abcdefgh "))]
    Tokenizer(content_of_pieces(pieces), name="pieces").save(tmp_path / "pieces")
    prepared(corpus, tmp_path / "data", **{**SMALL, "tokenizer": str(tmp_path / "pieces")})
    dataset = open_dataset(tmp_path / "data")
    starts = dataset.val.documents()
    assert (dataset.val[:][starts] == dataset.tokenizer.begin_id).all()


def test_text_never_becomes_the_end_token(tmp_path):
    texts = [f"{text} <|endoftext|> and on" for text in make_documents(50)]
    meta = prepared(rows(tmp_path / "x.jsonl", texts), tmp_path / "data", **SMALL)
    dataset = open_dataset(tmp_path / "data")
    assert (dataset.train[:] == dataset.tokenizer.end_id).sum() == meta.train.num_documents
    assert sorted(sum(texts_of(tmp_path / "data"), start=[])) == sorted(texts)  # noqa: RUF017


# --- stories and their floor ---


def scored_source(texts: list[str]) -> Source:
    return Source("scored", "none", "1", None, None, lambda: (Document(t, -float(len(t))) for t in texts))


def test_floor_is_the_exact_log_probability_of_each_split(documents, tmp_path):
    meta = prepared(scored_source(documents), tmp_path / "data", **SMALL)
    for split, texts in zip((meta.train, meta.val), texts_of(tmp_path / "data"), strict=True):
        nats = sum(len(text) for text in texts)
        tokens = sum(len(text.encode()) + 1 for text in texts)
        assert split.floor == pytest.approx(
            {
                "nats_per_story": nats / len(texts),
                "nats_per_token": nats / tokens,
                "bits_per_byte": nats / math.log(2) / sum(len(text.encode()) for text in texts),
            },
            rel=1e-12,
        )


def test_stories_are_prepared_with_their_floor(tmp_path):
    meta = prepared("stories", tmp_path / "data", max_bytes=200_000, seq_len=32, val_fraction=0.1)
    train, val = texts_of(tmp_path / "data")
    scores = {d.text: d.log_probability for d in open_source("stories", max_bytes=200_000).scored_documents()}
    for split, texts in ((meta.train, train), (meta.val, val)):
        nats = -sum(scores[text] for text in texts)
        assert split.floor["nats_per_story"] == pytest.approx(nats / len(texts), rel=1e-12)
        assert split.floor["nats_per_token"] == pytest.approx(nats / split.num_tokens, rel=1e-12)
    assert meta.source == "stories"
    assert meta.licence


# --- progress and summary ---


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_progress_runs_from_nothing_to_the_size_of_the_text(corpus, tmp_path, tokenizer):
    calls, options = [], {**SMALL, "tokenizer": tokenizer}
    meta = prepared(corpus, tmp_path / "data", **options, on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == meta.train.num_bytes + meta.val.num_bytes
    assert calls[0][1] in (corpus.stat().st_size, calls[-1][1])
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    done, total = calls[-1]
    assert done == total
    assert all(total is None or done <= total for done, total in calls)


def test_summary_tells_the_figures(tmp_path):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    data = DataConfig(source="stories", max_bytes=100_000, seq_len=32)
    meta = prepare_with_progress(data, tmp_path / "data", console)
    text = console.file.getvalue()
    assert f"{meta.train.num_tokens:,}" in text
    assert f"{meta.val.num_documents:,}" in text
    assert f"{meta.val.floor['nats_per_token']:.3f}" in text
    assert f"{meta.vocab_size:,} ids" in text


# --- bad requests ---


def test_too_little_text_names_the_numbers(tmp_path):
    one = rows(tmp_path / "one.jsonl", make_documents(1))
    few = rows(tmp_path / "few.jsonl", make_documents(5))
    blank = rows(tmp_path / "blank.jsonl", ["  ", "\n"])
    for source, words in (
        (one, "one document of"),
        (few, r"fewer than 4001 \(one sequence of 4000 \+ 1\)"),
        (blank, "holds no text"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            prepared(source, tmp_path / "data", tokenizer="byte", seq_len=4000)
        assert caught.value.exit_code == ExitCode.BAD_DATA
        assert caught.value.remedy
        assert not is_prepared(tmp_path / "data")
        assert not (tmp_path / "data").exists()  # it was made for nothing


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"val_fraction": 0}, {"val_fraction": 1}, {"val_fraction": float("nan")}, {"seq_len": 0},
     {"max_bytes": 0}, {"tokenizer": "nonsense"}, {"vocab_size": 10}, {"tokenizer": "byte", "vocab_size": 300}],
)  # fmt: skip
def test_bad_values_are_refused_and_nothing_is_left(corpus, tmp_path, options):
    with pytest.raises(UserError):
        prepared(corpus, tmp_path / "data", **{"seq_len": 16, **options})
    assert not is_prepared(tmp_path / "data")


def test_bad_source_does_not_even_make_the_directory(tmp_path):
    with pytest.raises(UserError):
        prepared(tmp_path / "missing.txt", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_source_that_breaks_half_way_leaves_the_old_data(corpus, tmp_path):
    prepared(corpus, tmp_path / "data", **SMALL)
    before = digests(tmp_path / "data")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_documents(50)) + "{")
    with pytest.raises(UserError, match="line 51"):
        prepared(bad, tmp_path / "data", **SMALL, overwrite=True)
    assert digests(tmp_path / "data") == before


def test_directory_in_use_is_locked(corpus, tmp_path, monkeypatch):
    code = (
        "import sys, time; from tiny_transformer.storage import RunLock\n"
        f"with RunLock({str(tmp_path / 'data')!r}): print('mine', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "mine\n"
        naps = []
        monkeypatch.setattr("tiny_transformer.storage.lock.time.sleep", naps.append)
        with pytest.raises(UserError, match=str(owner.pid)) as caught:
            prepared(corpus, tmp_path / "data", **SMALL)
        owner.kill()
        assert caught.value.exit_code == ExitCode.LOCKED
        assert naps == []
    with RunLock(tmp_path / "data"):
        pass


def test_output_path_that_is_a_file_is_an_error(corpus, tmp_path):
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(UserError) as caught:
        prepared(corpus, tmp_path / "data", **SMALL)
    assert caught.value.exit_code == ExitCode.IO
    assert (tmp_path / "data").read_text() == "not a directory"


def test_a_file_that_is_not_read_is_told_before_what_the_directory_holds(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("A hen.\n<|endoftext|>\nA cow.\n<|endoftext|>\n" * 2 + "A cat and a dog.")
    (tmp_path / "book.pdf").write_bytes(b"%PDF-1.7")
    small = {"tokenizer": "byte", "seq_len": 2}
    prepare(DataConfig(source=str(tmp_path / "my.txt"), **small), tmp_path / "data")
    with pytest.raises(UserError, match="pdf files are not read"):
        prepare(DataConfig(source=str(tmp_path / "book.pdf"), **small), tmp_path / "data")
