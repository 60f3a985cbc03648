"""A disk that fills up pauses a run; when there is room again it ends as if nothing had been: row D5."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_helpers import fingerprint, log_without_clock, run_tiny, tiny_request

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.parallel import stop
from tiny_transformer.stages.launch import launch
from tiny_transformer.storage import Fs, fs
from tiny_transformer.storage.doctor import examine
from tiny_transformer.training import patience

OPTIONS: dict[str, Any] = {"steps": 6, "save_steps": 3, "eval_steps": 3, "sample_prompts": ["Once"]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.0)


class Disk:
    """Has no room from some operation of a run on, until it was asked so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.full_from, self.tries = 0, 10**9, 0
        self.refused: list[str] = []
        self.names: list[str] = []
        for owner, name in ((fs.Fs, "create"), (fs.Fs, "write"), (fs.Fs, "symlink"), (fs.Fs, "mkdir"), (os, "pwrite")):
            monkeypatch.setattr(owner, name, self.asking(getattr(owner, name), name))

    def asking(self, real: Any, name: str) -> Any:
        def operation(*arguments: Any) -> Any:
            self.count += 1
            self.names.append(name)
            if self.count > self.full_from and self.tries > 0:
                self.tries -= 1
                self.refused.append(name)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        return operation


def train(data_dir: Path, run_dir: Path, **options: Any) -> str:
    screen = io.StringIO()
    request = tiny_request(data_dir, run_dir, **{**OPTIONS, **options})
    launch(request, Console(file=screen, width=300))
    return screen.getvalue()


def count_operations(data_dir: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Disk, int, int]:
    """A disk, and between which of its operations a run trains: before, a refusal is told at once."""
    disk = Disk(monkeypatch)
    begun: list[int] = []
    enter = stop.StopSignals.__enter__

    def entering(self: stop.StopSignals) -> stop.StopSignals:
        begun.append(disk.count)
        return enter(self)

    monkeypatch.setattr(stop.StopSignals, "__enter__", entering)
    train(data_dir, whole)
    return disk, begun[0], disk.count


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_only_delays_a_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """The middle operation of each kind, on log, samples, checkpoints and marks, three refusals each."""
    disk, first, last = count_operations(tiny_data, tmp_path / "whole", monkeypatch)
    places = {name: [at for at in range(first, last) if disk.names[at] == name] for name in set(disk.names)}
    kinds = set()
    for at in sorted(found[len(found) // 2] for found in places.values()):
        disk.count, disk.full_from, disk.tries, disk.refused = 0, at, 3, []
        run = tmp_path / str(at)
        said = train(tiny_data, run)
        assert said.count("the disk is full (") == said.count("there is space again") >= 1, at
        assert fingerprint(run) == fingerprint(tmp_path / "whole"), at
        assert log_without_clock(run) == log_without_clock(tmp_path / "whole")
        assert (run / "samples.json").read_bytes() == (tmp_path / "whole/samples.json").read_bytes()
        assert examine(run).ok and not list(run.glob(".tmp-*"))
        kinds |= set(disk.refused)
    assert kinds == {"create", "write", "pwrite", "symlink", "mkdir"}
    record_property("figure", f"{len(places)} kinds of operations, {last - first} in all")


def test_asked_to_stop_while_it_waits_a_run_ends_cleanly_and_is_resumed(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny(tiny_data, tmp_path / "whole", **OPTIONS)
    real, asked = Fs.write, []

    def write(self: Fs, fd: int, data: bytes) -> int:
        if (tmp_path / "r/step-00000003").exists():
            if not asked:  # a second signal would end the process at once
                asked.append(1)
                os.kill(os.getpid(), 15)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(fs.Fs, "write", write)
        with pytest.raises(UserError, match="stopped while the disk was full") as stopped:
            run_tiny(tiny_data, tmp_path / "r", **OPTIONS)
    assert stopped.value.exit_code is ExitCode.STOPPED and len(asked) == 1
    assert examine(tmp_path / "r").ok
    run_tiny(tiny_data, tmp_path / "r", resume=True, **OPTIONS)
    assert fingerprint(tmp_path / "r") == fingerprint(tmp_path / "whole")


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_what_does_not_go_away_by_itself_is_not_waited_for(
    code: int, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if data.startswith(b'{"step"'):
            raise OSError(code, os.strerror(code))
        return real(fd, data, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(UserError, match=f"cannot write: {os.strerror(code)}") as refused:
        run_tiny(tiny_data, tmp_path / "r", **OPTIONS)
    assert refused.value.exit_code is ExitCode.IO


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs root to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.fault
def test_a_real_disk_that_fills_up_and_is_emptied(
    tiny_data: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny(tiny_data, tmp_path / "whole", **OPTIONS)
    filler, waits = small_disk / "filler", []
    real = patience.Patience._wait

    def fill(*_: Any) -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def wait(self: patience.Patience, error: UserError) -> None:
        waits.append(error.what)
        if len(waits) == 3:
            filler.unlink()
        real(self, error)

    monkeypatch.setattr(patience.Patience, "_wait", wait)
    monkeypatch.setattr("tiny_transformer.stages.run.announce", fill)
    run_tiny(tiny_data, small_disk / "r", **OPTIONS)
    assert len(waits) == 3 and all("No space left" in what for what in waits)
    assert fingerprint(small_disk / "r") == fingerprint(tmp_path / "whole") and examine(small_disk / "r").ok
