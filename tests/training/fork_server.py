"""A process that has imported the trainer and started no thread; for each line on its input it forks one command line.

Importing torch takes longer than a tiny run. So one process imports it once, and each trainer that a test wants to kill
is a fork of it: a process of its own, with its own session, running the real command line from its first argument on.
`ForkServer` is the side of the test.

Input: one JSON object a line, `{"arguments": [...], "output": FILE, "phase": NAME or null, "times": N}`.
Output: `{"pid": N}` when it was started, `{"reached": true}` when it entered the phase for the N-th time,
`{"status": N}` when it ended, as `os.waitpid` gives it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PHASES = ("start-up", "steps", "evaluation", "save", "prune")


class ForkServer:
    """Starts command lines in forks, one at a time, and says when they reach a phase and how they ended."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )
        ready = self._answer()
        assert ready["num_threads"] == 1, "a fork of a process with threads may hang"

    def start(self, arguments: list[str], output: Path, phase: str | None = None, times: int = 1) -> int:
        """Fork; returns the pid once the phase was entered for the n-th time, or the command has ended before that."""
        task = {"arguments": arguments, "output": str(output), "phase": phase, "times": times}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        pid = self._answer()["pid"]
        answer = self._answer()
        self._status: int | None = answer.get("status")
        self.processor_seconds: float = answer.get("processor_seconds", 0.0)
        return pid

    def signal(self, pid: int, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self._status is None:
            with suppress(ProcessLookupError):  # it has just ended, and its status is on the way
                os.kill(pid, number)

    def wait(self) -> int:
        """The exit code of the command, negative for the signal that ended it."""
        if self._status is None:
            answer = self._answer()
            self._status, self.processor_seconds = answer["status"], answer["processor_seconds"]
        return os.waitstatus_to_exitcode(self._status)

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def announce_phases(wanted: str | None, times: int, pipe: int) -> None:
    """Wrap what a run consists of, so that entering the wanted phase for the n-th time writes a byte."""
    from tiny_transformer.stages import launch
    from tiny_transformer.stages.run import Run
    from tiny_transformer.storage import RunDirectory
    from tiny_transformer.training import loop

    left = [times]

    def entering(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            if name == wanted:
                left[0] -= 1
                if left[0] == 0:
                    os.write(pipe, b"r")
            return inner(*arguments, **options)

        return called

    launch.launch = entering("start-up", launch.launch)
    loop.update = entering("steps", loop.update)
    Run.evaluate = entering("evaluation", Run.evaluate)
    RunDirectory.publish_step = entering("save", RunDirectory.publish_step)
    RunDirectory.prune = entering("prune", RunDirectory.prune)


def run_one(task: dict[str, Any], pipe: int) -> int:
    """In the child: the command line, its output in a file."""
    from tiny_transformer.cli import run

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests under nohup, or in the background of a shell,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # have these ignored, and a run leaves ignored what was
    output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(0)
    announce_phases(task["phase"], task["times"], pipe)
    code = run(task["arguments"])
    sys.stdout.flush()
    return code


def serve() -> None:
    """Import, then fork until the input ends."""

    import tiny_transformer.cli.training
    import tiny_transformer.stages.command
    import tiny_transformer.stages.summary  # noqa: F401

    num_threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 1
    print(json.dumps({"ready": True, "num_threads": num_threads}), flush=True)
    for line in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.close(reading)
                code = run_one(json.loads(line), writing)
            finally:
                os._exit(code)
        os.close(writing)
        print(json.dumps({"pid": pid}), flush=True)
        if os.read(reading, 1):
            print(json.dumps({"reached": True}), flush=True)
        os.close(reading)
        _, status, used = os.wait4(pid, 0)
        print(json.dumps({"status": status, "processor_seconds": used.ru_utime + used.ru_stime}), flush=True)


if __name__ == "__main__":
    serve()
