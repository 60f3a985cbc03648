"""Worlds of a few processes for the tests: forks of one process that has imported the trainer and started no thread.

Importing torch takes longer than a tiny run, so it is done once. As under `torchrun`, the store that the processes meet
at lives in a process of its own, and each process finds its place in the environment. `Worlds` is the side of the test;
what the processes do stands in `world_jobs.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Ended:
    """How the processes of one world ended.

    Attributes:
        codes: exit codes by rank, negative for a signal; None for one that had to be killed at the end of the time.
        results: what each job returned, None where it did not get so far.
        output: what all of them printed.
        seconds: until each of them ended, by rank.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        self.codes: list[int | None] = answer["codes"]
        self.seconds: list[float] = answer["seconds"]
        self.results: list[Any] = answer["results"]
        self.output: str = answer["output"]


class Worlds:
    """Starts worlds, one at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._count = directory, 0
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worlds.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "GLOO_SOCKET_IFNAME": "lo"},
        )
        assert self._answer()["num_threads"] == 1, "a fork of a process with threads may hang"

    def run(self, world_size: int, job: str, timeout: float = 1200.0, after: float = 300.0, **arguments: Any) -> Ended:
        """Run a function of `world_jobs` in each of several processes, for at most `timeout` seconds, and for at most
        `after` seconds after one of them has ended."""
        self._count += 1
        directory = self._directory / f"world-{self._count}"
        directory.mkdir()
        limits = {"timeout": timeout, "after": after}
        task = {"size": world_size, "job": job, "arguments": arguments, "directory": str(directory), **limits}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return Ended(self._answer())

    def results(self, world_size: int, job: str, **arguments: Any) -> list[Any]:
        """The same, for jobs that must end well."""
        ended = self.run(world_size, job, **arguments)
        assert ended.codes == [0] * world_size, f"{ended.codes} after {ended.seconds}: {ended.output[-3000:]}"
        return ended.results

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Import, then start worlds until the input ends."""
    sys.path.insert(0, str(HERE))
    import world_jobs

    num_threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 1
    print(json.dumps({"num_threads": num_threads}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        reading, writing = os.pipe()
        store = fork(partial(keep_store, writing))
        port = int(os.read(reading, 16))
        for pipe in (reading, writing):
            os.close(pipe)
        size, directory = task["size"], Path(task["directory"])
        begun = time.monotonic()
        ranks = [fork(partial(work, world_jobs, task, rank, port)) for rank in range(size)]
        codes, seconds = wait_for(ranks, begun, task["timeout"], task["after"])
        os.kill(store, 9)
        os.waitpid(store, 0)
        results = [directory / f"result-{rank}" for rank in range(size)]
        answer = {
            "codes": codes,
            "seconds": seconds,
            "results": [json.loads(path.read_text()) if path.exists() else None for path in results],
            "output": "".join(path.read_text() for path in sorted(directory.glob("output-*"))),
        }
        print(json.dumps(answer), flush=True)


def fork(job: Any) -> int:
    """Run a function in a child; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = job()
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def keep_store(pipe: int) -> int:
    """What `torchrun` does: the store, on a port of the system's choice."""
    from torch import distributed

    store = distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    os.write(pipe, str(store.port).encode())
    time.sleep(2000)
    return 0


def work(jobs: Any, task: dict[str, Any], rank: int, port: int) -> int:
    """One process: its place in the environment, its output in a file, its result in another."""
    size, directory = task["size"], Path(task["directory"])
    output = os.open(directory / f"output-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    result = getattr(jobs, task["job"])(**task["arguments"])
    (directory / f"result-{rank}").write_text(json.dumps(result))
    sys.stdout.flush()
    return 0


def wait_for(pids: list[int], begun: float, timeout: float, after: float) -> tuple[list[int | None], list[float]]:
    """Exit codes and times; what is left at the end of the time is killed and has no code."""
    codes: dict[int, int | None] = {}
    seconds: dict[int, float] = {}
    while len(codes) < len(pids):
        passed = time.monotonic() - begun
        is_late = passed > timeout or (bool(seconds) and passed > min(seconds.values()) + after)
        for pid in pids:
            if pid in codes:
                continue
            if is_late:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                codes[pid] = None
            else:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended == 0:
                    continue
                codes[pid] = os.waitstatus_to_exitcode(status)
            seconds[pid] = time.monotonic() - begun
        time.sleep(0.01)
    return [codes[pid] for pid in pids], [seconds[pid] for pid in pids]


if __name__ == "__main__":
    serve()
