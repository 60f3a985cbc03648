"""`prepare` killed at any instant: what is found is the old data, the new data or none, and a rerun is identical."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tiny_transformer.data import prepare as prepare_module
from tiny_transformer.data.prepare import is_prepared, prepare
from tiny_transformer.data.shards import open_dataset

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
    prepare(corpus, out_dir=old, **OPTIONS)
    prepare(corpus, out_dir=new, **NEW)
    return {"old": digests(old), "new": digests(new), "old state": state(old), "new state": state(new)}


@pytest.mark.fault
def test_killed_at_random_instants_old_or_new_and_a_rerun_is_identical(corpus, tmp_path, expected):
    started = time.monotonic()
    prepare(corpus, out_dir=tmp_path / "timed", **NEW)
    seconds = time.monotonic() - started
    rng, seen = random.Random(11), {"old": 0, "new": 0}
    for trial in range(60):
        data = tmp_path / f"data{trial}"
        prepare(corpus, out_dir=data, **OPTIONS)
        in_child(
            lambda d=data: prepare(corpus, out_dir=d, **NEW, overwrite=True), kill_after=rng.uniform(0, 1.3 * seconds)
        )
        found = state(data)
        assert found in (expected["old state"], expected["new state"])
        seen["new" if found == expected["new state"] else "old"] += 1
        prepare(corpus, out_dir=data, **NEW, overwrite=True)
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
            prepare(corpus, out_dir=directory, **OPTIONS)
        return directory

    seen = set()
    for kill_at in range(1, 1_000):
        directory = fresh(kill_at)

        def work(directory=directory, kill_at=kill_at):
            count_and_kill(kill_at)
            prepare(corpus, out_dir=directory, **options, overwrite=True)

        status = in_child(work)
        found = state(directory) if directory.exists() else None
        assert found in allowed, f"before step {kill_at}"
        seen.add(found)
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        prepare(corpus, out_dir=directory, **options, overwrite=True)
        assert digests(directory) == expected["new"], f"rerun after a kill before step {kill_at}"
    assert status == 0
    assert kill_at > 30
    assert seen == allowed


def test_reader_finds_the_new_data_when_prepare_dies_before_moving_it(corpus, tmp_path, expected, monkeypatch):
    data = tmp_path / "data"
    prepare(corpus, out_dir=data, **OPTIONS)

    def die(staged, out_dir):
        if staged.is_dir():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_move_up", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, out_dir=data, **NEW, overwrite=True)
    assert state(data) == expected["new state"]
    prepare(corpus, out_dir=data, **NEW)  # asked for again: nothing to do but to move what is left
    assert state(data) == expected["new state"]
