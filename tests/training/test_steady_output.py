"""Signals that are ignored stay ignored, and an output that goes away costs nothing: row D16."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from run_helpers import TINY, fingerprint, run_tiny

from tiny_transformer.errors import ExitCode
from tiny_transformer.parallel.stop import SIGNALS, StopSignals, output_note, steady_output


class Gone(io.StringIO):
    """A terminal that hangs up after so many writes."""

    encoding = "utf-8"

    def __init__(self, num_writes: int, error: int) -> None:
        super().__init__()
        self.left, self.error = num_writes, error

    def write(self, text: str) -> int:
        if self.left == 0:
            raise OSError(self.error, os.strerror(self.error))
        self.left -= 1
        return super().write(text)


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_lost_output_is_noted_once_and_nothing_else_happens(error: int) -> None:
    console = Console(file=Gone(2, error), width=80)
    with steady_output(console):
        console.print("one")
        assert output_note(console) is None
        for _ in range(5):
            console.print("more")
        assert output_note(console) == f"the output ended here ({os.strerror(error)}); the training went on"
    assert isinstance(console.file, Gone) and console.file.getvalue() == "one\nmore\n"


def test_characters_that_the_output_does_not_have_are_replaced() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
    with steady_output(console):
        console.print("café \ud83d", markup=False)
    assert raw.getvalue() == b"caf\\xe9 \\ud83d\n"


def test_signals_that_were_ignored_stay_ignored() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert not stop()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert stop()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(tiny_data: Path, directory: Path) -> list[str]:
    tree = {**TINY, "data": {**TINY["data"], "data_dir": str(tiny_data)}}
    (directory / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    arguments = ["train", "--config", str(directory / "tiny.yaml"), "--out_dir", str(directory / "r")]
    return [sys.executable, "-m", "tiny_transformer", *arguments]


def start(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


@pytest.mark.slow
def test_train_into_a_pipe_whose_reader_has_left(tiny_data: Path, tmp_path: Path) -> None:
    """`train | head -1`."""
    run_tiny(tiny_data, tmp_path / "whole")
    reading, writing = os.pipe()
    process = start(command(tiny_data, tmp_path), stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    _, told = process.communicate(timeout=250)
    assert (process.returncode, told) == (ExitCode.OK, b"")
    assert fingerprint(tmp_path / "r") == fingerprint(tmp_path / "whole")
    info = json.loads((tmp_path / "r/last/run_info.json").read_text())
    assert info["output"] == "the output ended here (Broken pipe); the training went on"
    assert (tmp_path / "r/report.html").exists()


@pytest.mark.slow
def test_nohup_keeps_a_run_going(tiny_data: Path, tmp_path: Path) -> None:
    """A terminal that hangs up sends SIGHUP; every step is done all the same."""
    log = tmp_path / "r/log.jsonl"
    process = start(["nohup", *command(tiny_data, tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=250) == ExitCode.OK
    assert json.loads((tmp_path / "r/last/run_info.json").read_text())["step"] == TINY["training"]["steps"]


@pytest.mark.parametrize("name", ["m[/red]x", "[bold]", "[x]", "a\\[b", "[link=file:///etc/passwd]x"])
def test_names_and_texts_are_no_markup(name: str, tiny_data: Path, tmp_path: Path) -> None:
    """Through a whole training, a stop and its resumption, and the end with samples."""
    from run_helpers import tiny_request

    from tiny_transformer.stages.launch import launch
    from tiny_transformer.stages.summary import finish

    run, screen = tmp_path / name, io.StringIO()
    console = Console(file=screen, width=1000)
    options = {"steps": 2, "eval_steps": None, "save_steps": None, "sample_prompts": [f"{name} [/] \\"]}
    for resume in (False, True):
        outcome = launch(tiny_request(tiny_data, run, resume=resume, **options), console)
    finish(outcome, console)
    said = screen.getvalue()
    assert f"resuming from step 2 ({run}" in said and f"model   {run}/last" in said and f"report  {run}" in said
    assert f"{name} [/] \\" in said
