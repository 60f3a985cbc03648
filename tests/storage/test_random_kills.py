"""SIGKILL at random instants of a save: row D1 of the reliability table.

One run directory lives through all kills of a test: each child takes the lock, goes on from the newest whole
checkpoint, saves the next step and is killed somewhere on the way, or just after. What it announced through a pipe must
be there.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import planted
import pytest
import storage_harness
from storage_harness import Acknowledged, Plant, SaveStep, files_of, new_run, next_save, real_save, violations

from tiny_transformer.storage import Fs, RunDirectory

KILLS = 2000
SHARDS = 4


class Announced(Acknowledged):
    """Sends each acknowledgement through a pipe: (1 for saved or 0 for last, step)."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def note(self, fs: Fs, what: str, step: int) -> None:
        os.write(self.fd, struct.pack("<Bq", what == "saved", step))


def start_save(path: Path, step: int, save_step: SaveStep) -> tuple[int, int]:
    """Forks a process that saves one step; returns its pid and the end of the pipe to read from."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            save_step(path, step, Announced(writing), Fs())
            os._exit(0)
        finally:
            os._exit(99)
    os.close(writing)
    return pid, reading


def announced(reading: int) -> list[tuple[str, int]]:
    with os.fdopen(reading, "rb") as pipe:
        return [("saved" if saved else "last", step) for saved, step in struct.iter_unpack("<Bq", pipe.read())]


def kills(path: Path, num_kills: int, rng: random.Random, tally: Counter, plant: Plant = real_save) -> Iterator[str]:
    """Yields what is wrong after each of so many kills; `path` does not exist yet."""
    known = new_run(path)
    save_step = plant()
    latest_seconds = 0.02  # when the kill comes at the latest; follows the speed of the machine
    step = 3
    for kill in range(num_kills):
        newest, _ = RunDirectory(path).newest_whole()
        if newest is None:
            yield f"no whole checkpoint after kill {kill}"
            return
        if newest.step not in known.saved:  # it got its name and was killed before it could say so
            known.note(Fs(), "saved", newest.step)
        step = newest.step + 1
        pid, reading = start_save(path, step, save_step)
        time.sleep(rng.uniform(0, latest_seconds))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        for what, step_announced in announced(reading):
            known.note(Fs(), what, step_announced)
        ended = os.WIFEXITED(status)
        latest_seconds *= 0.93 if ended else 1.015  # settles where one save in six ends before its kill
        tally.update(kills=1, saved=step in known.saved, ended=ended)
        if ended and os.WEXITSTATUS(status):
            yield f"kill {kill}: the save ended with exit code {os.WEXITSTATUS(status)}"
        yield from (f"kill {kill}: {text}" for text in violations(path, known))
    yield from next_save(path, step + 2, known)


@pytest.mark.fault
@pytest.mark.parametrize("shard", range(SHARDS))
def test_kill_at_random_instants_loses_nothing_announced(tmp_path, large_files, shard):
    seed = random.SystemRandom().randrange(1 << 32)
    tally: Counter = Counter()
    found = list(kills(tmp_path / "run", KILLS // SHARDS, random.Random(seed), tally))
    print(f"seed {seed}: {dict(tally)}, {len(found)} lost")
    assert found == [], f"seed {seed}"
    assert tally["kills"] == KILLS // SHARDS
    assert 0.1 * tally["kills"] < tally["saved"] < 0.7 * tally["kills"]  # the kills came on both sides of the rename
    assert tally["ended"] < 0.4 * tally["kills"]


@pytest.mark.fault
@pytest.mark.parametrize("plant", [planted.no_temporary_directory, planted.prune_in_sight])
def test_random_kills_find_a_planted_mistake(tmp_path, monkeypatch, large_files, plant):
    found = next(kills(tmp_path / "run", KILLS, random.Random(7), Counter(), lambda: plant(monkeypatch.setattr)), None)
    print(found)
    assert found


@pytest.fixture
def large_files(monkeypatch):
    """Files that take a good part of a save to write, to hash and to read back."""

    def padded(step: int) -> dict[str, bytes]:
        return {name: data * (256 if name == "model.safetensors" else 1) for name, data in files_of(step).items()}

    monkeypatch.setattr(storage_harness, "files_of", padded)
    monkeypatch.setattr(planted, "files_of", padded)
