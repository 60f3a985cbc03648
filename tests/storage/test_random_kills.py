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
from pathlib import Path

import pytest
from storage_harness import Acknowledged, files_of, new_run, next_save, save, violations

from tiny_transformer.storage import Fs, RunDirectory

KILLS = 2000
SHARDS = 4
PADDING = bytes(range(256)) * 400  # makes writing, hashing and reading back a good part of the save


class Announced(Acknowledged):
    """Sends each acknowledgement through a pipe: (1 for saved or 0 for last, step)."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def note(self, fs: Fs, what: str, step: int) -> None:
        os.write(self.fd, struct.pack("<Bq", what == "saved", step))


def start_save(path: Path, step: int) -> tuple[int, int]:
    """Forks a process that saves one step; returns its pid and the end of the pipe to read from."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            save(path, step, Announced(writing), Fs())
            os._exit(0)
        finally:
            os._exit(99)
    os.close(writing)
    return pid, reading


def announced(reading: int) -> list[tuple[str, int]]:
    with os.fdopen(reading, "rb") as pipe:
        return [("saved" if saved else "last", step) for saved, step in struct.iter_unpack("<Bq", pipe.read())]


@pytest.mark.fault
@pytest.mark.parametrize("shard", range(SHARDS))
def test_kill_at_random_instants(tmp_path, monkeypatch, shard):
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    padded = lambda step: {**files_of(step), "model.safetensors": files_of(step)["model.safetensors"] + PADDING}  # noqa: E731
    monkeypatch.setattr("storage_harness.files_of", padded)
    path = tmp_path / "run"
    known = new_run(path)
    latest_seconds = 0.02  # when the kill comes at the latest; follows the speed of the machine
    num_saved = num_finished = 0
    total = KILLS // SHARDS
    begin = time.perf_counter()
    for kill in range(total):
        found, _ = RunDirectory(path).newest_whole()
        if found.step not in known.saved:  # it got its name and was killed before it could say so
            known.note(Fs(), "saved", found.step)
        step = found.step + 1
        pid, reading = start_save(path, step)
        time.sleep(rng.uniform(0, latest_seconds))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        for what, step_announced in announced(reading):
            known.note(Fs(), what, step_announced)
        finished = os.WIFEXITED(status)
        assert not finished or os.WEXITSTATUS(status) == 0
        latest_seconds *= 0.93 if finished else 1.015  # settles where one save in six ends before its kill
        num_saved += step in known.saved
        num_finished += finished
        assert violations(path, known) == [], f"seed {seed}, kill {kill}"
    assert next_save(path, step + 2, known) == []
    seconds = time.perf_counter() - begin
    print(f"seed {seed}: {total} kills, {num_saved} announced as saved, {num_finished} ended before the kill, 0 lost,")
    print(f"{total / seconds:.0f} kills/s")
    assert 0.1 * total < num_saved < 0.7 * total  # the kills came on both sides of the rename
    assert num_finished < 0.4 * total
