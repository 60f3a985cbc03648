"""Faults of all kinds, one after the other; too little memory; a clock that jumps: rows D17, D18 and D31."""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fork_server import PHASES, ForkServer
from run_helpers import fingerprint, log_without_clock, run_tiny
from test_killed import Lives

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import RunDirectory, verify
from tiny_transformer.storage.doctor import examine
from tiny_transformer.training import checkpoint_writer

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))  # 600 in a release's tests, 3600 by hand
SEED = int(os.environ.get("SOAK_SEED", "20261130"))


def nothing(run: Path, rng: random.Random) -> None:
    """The signal was fault enough."""


def file_to_damage(run: Path, rng: random.Random) -> Path | None:
    """One of the newest sound checkpoint; none where it is the only one: a run that has lost all of them is refused,
    and not begun again."""
    sound = []
    for checkpoint in RunDirectory(run).checkpoints():
        with suppress(UserError):
            verify(checkpoint.path)
            sound.append(checkpoint.path)
    return rng.choice(sorted(path for path in sound[-1].rglob("*") if path.is_file())) if len(sound) > 1 else None


def flip_a_bit(run: Path, rng: random.Random) -> None:
    """Somewhere in the newest checkpoint."""
    if file := file_to_damage(run, rng):
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)


def cut_a_file(run: Path, rng: random.Random) -> None:
    """One of the newest checkpoint."""
    if file := file_to_damage(run, rng):
        os.truncate(file, rng.randrange(file.stat().st_size))


def tear_the_log(run: Path, rng: random.Random) -> None:
    if (run / "log.jsonl").exists():
        with (run / "log.jsonl").open("ab") as file:
            file.write(rng.randbytes(rng.randrange(1, 60)).replace(b"\n", b""))


def lose_the_marks(run: Path, rng: random.Random) -> None:
    for name in ("last", "best"):
        (run / name).unlink(missing_ok=True)


def turn_marks_into_text(run: Path, rng: random.Random) -> None:
    for name in ("last", "best"):
        if (run / name).is_symlink():
            target = str((run / name).readlink())
            (run / name).unlink()
            (run / name).write_text(target)


def leave_rubbish(run: Path, rng: random.Random) -> None:
    if run.exists():
        (run / f".tmp-step-00000099-{rng.randrange(10**9)}").mkdir()
        (run / ".lock").write_bytes(rng.randbytes(40))


def lose_the_plan(run: Path, rng: random.Random) -> None:
    if RunDirectory(run).checkpoints():
        (run / "plan.json").unlink(missing_ok=True)


def move_there_and_back(run: Path, rng: random.Random) -> None:
    if run.exists():
        run.rename(run.with_name("elsewhere"))
        run.with_name("elsewhere").rename(run)


FAULTS: tuple[Callable[[Path, random.Random], None], ...] = (
    nothing,
    flip_a_bit,
    cut_a_file,
    tear_the_log,
    lose_the_marks,
    turn_marks_into_text,
    leave_rubbish,
    lose_the_plan,
    move_there_and_back,
)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.mark.clock
@pytest.mark.fault
@pytest.mark.timeout(7200)
def test_soak(
    tiny_data: Path, tmp_path: Path, server: ForkServer, record_property: Callable[[str, object], None]
) -> None:
    """SOAK_SECONDS=3600 for the full hour. Each life of a run ends with a signal, and a fault comes before the next."""
    rng, tally = random.Random(SEED), Counter[str]()
    lives = Lives(tmp_path, tiny_data, server, rng)
    end = time.monotonic() + SOAK_SECONDS
    while time.monotonic() < end:
        number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        server.signal(lives.live_until(rng.choice(PHASES)), number)
        code = server.wait()
        assert code in (0, 130, ExitCode.STOPPED, -number), lives.output
        if code == 0:
            tally["runs"] += 1
            assert not list(lives.run.glob(".tmp-*")) and examine(lives.run).ok
            lives.compare()
            continue
        fault = rng.choice(FAULTS)
        fault(lives.run, rng)
        tally[fault.__name__] += 1
    lives.finish()
    children = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children")
    assert not children.exists() or children.read_text() == ""
    faults = sum(tally.values()) - tally["runs"]
    record_property("figure", f"{SOAK_SECONDS:g} s, seed {SEED}, {faults} faults, {tally['runs'] + 1} runs, 0 lost")
    print(dict(tally))


def test_a_clock_that_jumps_changes_nothing_but_its_own_readings(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty years there and back, an hour back, and a clock that stands still."""
    run_tiny(tiny_data, tmp_path / "whole")
    years = 20 * 365.25 * 86_400
    jumps = iter([years, -years, -3600.0, 0.0] * 10_000)
    real = time.time

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(real() + next(jumps), tz)

    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setattr(checkpoint_writer, "datetime", Jumping)
    run_tiny(tiny_data, tmp_path / "r")
    assert fingerprint(tmp_path / "r") == fingerprint(tmp_path / "whole")
    assert log_without_clock(tmp_path / "r") == log_without_clock(tmp_path / "whole")
    records = [json.loads(line) for line in (tmp_path / "r/log.jsonl").read_text().splitlines()]
    assert all(record["elapsed_seconds"] >= 0 and min(record["seconds"].values()) >= 0 for record in records)
    assert [c.step for c in RunDirectory(tmp_path / "r").checkpoints()] == [
        c.step for c in RunDirectory(tmp_path / "whole").checkpoints()
    ]


COMMANDS = {
    "prepare": ["prepare", "--out_dir", "data", "--tokenizer", "byte", "--max_bytes", "30000"],
    "train": ["train", "--config", "tiny", "--data_dir", "DATA", "--out_dir", "r", "--steps", "2", "--overwrite"],
    "generate": ["generate", "--ckpt", "RUN/last", "--prompt", "Once", "--max_new_tokens", "4"],
}


@pytest.mark.fault
@pytest.mark.parametrize("verb", COMMANDS)
def test_too_little_memory_is_told(
    verb: str, tiny_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The limit of the address space, from what is too little for numpy up to what is enough.

    At some limits a C library ends the process with a message of its own before Python hears of it; then there is no
    exit code of ours, but no traceback and no half-written run either.
    """
    run_tiny(tiny_data, tmp_path / "RUN", steps=2, eval_steps=None, save_steps=None)
    places = {"DATA": str(tiny_data), "RUN/last": str(tmp_path / "RUN/last")}
    arguments = [places.get(word, word) for word in COMMANDS[verb]]
    codes = []
    for megabytes in (60, 120, 250, 400, 600, 900, 1400, 2200, 4000):
        command = f"ulimit -v {megabytes * 1024}; exec {sys.executable} -m tiny_transformer " + '"$@"'
        done = subprocess.run(
            ["bash", "-c", command, "sh", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        codes.append(done.returncode)
        assert "Traceback" not in done.stderr and "This is a bug" not in done.stderr, (megabytes, done.stderr[-1500:])
        if done.returncode == ExitCode.IO:
            assert done.stderr.count("\n") <= 3 and "memory" in done.stderr, (megabytes, done.stderr[-1500:])
        if (tmp_path / "r").exists():
            assert examine(tmp_path / "r").ok
    ended = len(codes) - codes.count(0) - codes.count(ExitCode.IO)
    record_property(
        "figure", f"{verb}: {codes.count(0)} done, {codes.count(ExitCode.IO)} told, {ended} ended by a C library"
    )
    assert codes[-1] == 0 and ExitCode.IO in codes
