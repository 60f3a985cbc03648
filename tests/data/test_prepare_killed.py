"""`prepare` killed at any instant: what is found is the old data, the new data or none, and a rerun is identical."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tiny_transformer.data.prepare import command as prepare_module
from tiny_transformer.data.prepare import encode as encode_module
from tiny_transformer.data.prepare.command import is_prepared
from tiny_transformer.data.prepare.sources import Document, Source
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers import Tokenizer

from .conftest import make_documents, prepared

OPTIONS = {"tokenizer": "byte", "seq_len": 16, "val_fraction": 0.2}
NEW = {**OPTIONS, "seq_len": 8, "val_fraction": 0.4}


def digests(directory: Path) -> dict[str, str]:
    names = sorted(path.name for path in directory.iterdir() if path.name != ".lock")
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}


def state(data_dir: Path) -> str | None:
    """The fingerprint of the data a reader finds, every block of it checked; None when there is none."""
    if not is_prepared(data_dir):
        return None
    dataset = open_dataset(data_dir)
    for tokens in (dataset.train, dataset.val):
        tokens.read(0, len(tokens))
        tokens.documents()
        tokens.close()
    return dataset.meta.fingerprint


def in_child(work, *, kill_after: float | None = None) -> int:
    """Run `work` in a forked child, killed after so many seconds; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


@pytest.fixture
def expected(corpus, tmp_path) -> dict[str, dict[str, str]]:
    old, new = tmp_path / "expected_old", tmp_path / "expected_new"
    prepared(corpus, old, **OPTIONS)
    prepared(corpus, new, **NEW)
    return {"old": digests(old), "new": digests(new), "old state": state(old), "new state": state(new)}


@pytest.mark.fault
def test_killed_at_random_instants_old_or_new_and_a_rerun_is_identical(corpus, tmp_path, expected):
    latest_seconds = 0.2  # when the kill comes at the latest; follows the speed of the machine
    rng, seen = random.Random(11), {"old": 0, "new": 0}
    for trial in range(60):
        data = tmp_path / f"data{trial}"
        prepared(corpus, data, **OPTIONS)
        work = partial(prepared, corpus, data, **NEW, overwrite=True)
        status = in_child(work, kill_after=rng.uniform(0, latest_seconds))
        latest_seconds *= 0.8 if os.WIFEXITED(status) else 1.1
        found = state(data)
        assert found in (expected["old state"], expected["new state"])
        seen["new" if found == expected["new state"] else "old"] += 1
        prepared(corpus, data, **NEW, overwrite=True)
        assert digests(data) == expected["new"]
    assert min(seen.values()) > 0, seen


STEPS = ("mkdir", "rename", "replace", "unlink", "rmdir", "open", "fsync", "write")


def count_and_kill(kill_at: int | None):
    """Count file-system steps through `os`, and die right before step `kill_at`."""
    done = 0

    def watched(original):
        def step(*args, **kwargs):
            nonlocal done
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return step

    for name in STEPS:
        setattr(os, name, watched(getattr(os, name)))
    return lambda: done


@pytest.mark.fault
@pytest.mark.parametrize("start", ["nothing there", "other data there"])
def test_killed_before_every_file_system_step(corpus, tmp_path, expected, start):
    data, options = tmp_path / "data", NEW
    allowed = {expected["new state"], expected["old state"] if start == "other data there" else None}

    def fresh(trial: int) -> Path:
        directory = data.with_name(f"data-{trial}")
        if start == "other data there":
            prepared(corpus, directory, **OPTIONS)
        return directory

    seen = set()
    for kill_at in range(1, 1_000):
        directory = fresh(kill_at)

        def work(directory=directory, kill_at=kill_at):
            count_and_kill(kill_at)
            prepared(corpus, directory, **options, overwrite=True)

        status = in_child(work)
        found = state(directory) if directory.exists() else None
        assert found in allowed, f"before step {kill_at}"
        seen.add(found)
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        prepared(corpus, directory, **options, overwrite=True)
        assert digests(directory) == expected["new"], f"rerun after a kill before step {kill_at}"
    assert status == 0
    assert kill_at > 30
    assert seen == allowed


def test_reader_finds_the_new_data_when_prepare_dies_before_moving_it(corpus, tmp_path, expected, monkeypatch):
    data = tmp_path / "data"
    prepared(corpus, data, **OPTIONS)

    def die(staged, out_dir):
        if staged.is_dir():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_move_up", die)
        with pytest.raises(KeyboardInterrupt):
            prepared(corpus, data, **NEW, overwrite=True)
    assert state(data) == expected["new state"]
    prepared(corpus, data, **NEW)  # asked for again: nothing to do but to move what is left
    assert state(data) == expected["new state"]


# --- a killed prepare goes on where it was


class Counting:
    """Counts what is read, trained and encoded in this process, through the functions that do it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.encoded = self.trained = 0
        document_encoder, make = Tokenizer.document_encoder, prepare_module.make_tokenizer

        def encoder(tokenizer):
            encode = document_encoder(tokenizer)

            def counted(texts):
                self.encoded += len(texts)
                return encode(texts)

            return counted

        def maker(name, **options):
            self.trained += "texts" in options
            return make(name, **options)

        patch.setattr(Tokenizer, "document_encoder", encoder)
        patch.setattr(prepare_module, "make_tokenizer", maker)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(encode_module, "CHUNK_BYTES", 1_000)
    monkeypatch.setattr(encode_module, "SAVE_BYTES", 8_000)


def die_after_save(number: int) -> None:
    """Kill this process right after it has noted its progress for the `number`th time."""
    save, done = encode_module.Splitter.save, 0

    def watched(splitter):
        nonlocal done
        save(splitter)
        done += 1
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)

    encode_module.Splitter.save = watched


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_killed_prepare_goes_on_where_it_was(corpus, tmp_path, monkeypatch, small_chunks, tokenizer, workers):
    options = {**OPTIONS, "tokenizer": tokenizer}
    prepared(corpus, tmp_path / "whole", workers=1, **options)

    def work():
        die_after_save(4)
        prepared(corpus, tmp_path / "data", workers=workers, **options)

    assert os.WIFSIGNALED(in_child(work))
    assert not is_prepared(tmp_path / "data")
    counting = Counting(monkeypatch)
    prepared(corpus, tmp_path / "data", workers=workers, **options)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")
    assert 0 < counting.encoded < 300 - 4 * 20  # some 22 documents in 8,000 bytes
    assert counting.trained == 0


def test_killed_after_the_last_token_nothing_is_encoded_again(corpus, tmp_path, monkeypatch):
    prepared(corpus, tmp_path / "whole", **OPTIONS)

    def work():
        prepare_module.atomic_write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        prepared(corpus, tmp_path / "data", **OPTIONS)

    assert os.WIFSIGNALED(in_child(work))
    counting = Counting(monkeypatch)
    prepared(corpus, tmp_path / "data", **OPTIONS)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")
    assert counting.encoded == 0


@pytest.mark.parametrize("name", ["train.bin", "val.docs", "val.bin"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "longer"])
def test_damaged_work_is_done_again(corpus, tmp_path, small_chunks, name, damage):
    prepared(corpus, tmp_path / "whole", **OPTIONS)

    def work():
        die_after_save(3)
        prepared(corpus, tmp_path / "data", **OPTIONS)

    in_child(work)
    (path,) = (tmp_path / "data").glob(f".work-*/{name}")
    good = path.read_bytes()
    data = bytearray(good)
    data[len(data) // 4] ^= 0x80
    path.write_bytes(data if damage == "flip" else data[: len(data) // 4])
    if damage == "gone":
        path.unlink()
    if damage == "longer":  # as a process leaves it that dies between two notes
        path.write_bytes(good + bytes(2**20))
    prepared(corpus, tmp_path / "data", **OPTIONS)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    "name",
    ["texts", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer_files.json", "progress.json"],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty", "other"])
def test_damaged_notes_and_texts_are_not_taken_over(corpus, tmp_path, small_chunks, name, damage):
    options = {**OPTIONS, "tokenizer": "bpe"}
    prepared(corpus, tmp_path / "whole", **options)

    def work():
        die_after_save(3)
        prepared(corpus, tmp_path / "data", **options)

    in_child(work)
    (path,) = (tmp_path / "data").glob(f".work-*/{name}")
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 7, len(data), len(data) // 5):
        data[place] ^= 0x02
    contents = {"flip": data, "cut": data[: len(data) // 2], "empty": b"", "other": b'{"state": {"train": [3]}}'}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(contents[damage])
    prepared(corpus, tmp_path / "data", **options)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")


def test_source_that_is_another_than_it_says_is_read_anew(tmp_path, small_chunks):
    def source(seed: int) -> Source:
        return Source("s", "none", "1", None, None, lambda: (Document(t) for t in make_documents(200, seed=seed)))

    def work():
        die_after_save(3)
        prepared(source(0), tmp_path / "data", **OPTIONS)

    in_child(work)
    prepared(source(1), tmp_path / "data", **OPTIONS)
    prepared(source(1), tmp_path / "whole", **OPTIONS)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")


def test_work_of_another_request_is_removed(corpus, tmp_path, small_chunks):
    def work():
        die_after_save(2)
        prepared(corpus, tmp_path / "data", **OPTIONS)

    in_child(work)
    assert list((tmp_path / "data").glob(".work-*"))
    prepared(corpus, tmp_path / "data", **NEW)
    assert not list((tmp_path / "data").glob(".work-*"))
    assert state(tmp_path / "data")


def test_interrupted_prepare_keeps_its_work_and_a_wrong_source_does_not(corpus, tmp_path, small_chunks):
    def broken(error):
        def texts():
            yield from (Document(text) for text in make_documents(100))
            raise error

        return Source("s", "none", "1", None, None, texts)

    for error, kept in ((KeyboardInterrupt(), True), (UserError("bad", exit_code=ExitCode.BAD_DATA), False)):
        directory = tmp_path / type(error).__name__
        with pytest.raises(type(error)):
            prepared(broken(error), directory, **OPTIONS)
        assert bool(list(directory.glob(".work-*"))) == kept


def test_full_disk_is_told_and_what_is_there_is_used_later(corpus, tmp_path, monkeypatch, small_chunks):
    prepared(corpus, tmp_path / "whole", **OPTIONS)

    def refuse(splitter):
        raise OSError(errno.ENOSPC, "No space left on device")

    save = encode_module.Splitter.save
    calls = iter([save, save, refuse])
    with monkeypatch.context() as patch:
        patch.setattr(encode_module.Splitter, "save", lambda splitter: next(calls)(splitter))
        with pytest.raises(UserError, match="No space left") as caught:
            prepared(corpus, tmp_path / "data", **OPTIONS)
    assert caught.value.exit_code == ExitCode.IO
    counting = Counting(monkeypatch)
    prepared(corpus, tmp_path / "data", **OPTIONS)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")
    assert counting.encoded < 300
