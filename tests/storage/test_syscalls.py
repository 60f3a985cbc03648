"""Every system call of a save fails, lies, or is the last one of the process: rows D3, D7, D8, D9, with strace.

A first run is recorded to learn the calls of a save, each by its name and by how many of that name the process made
before. Then the save runs once per position and fault, on a copy of a run with three checkpoints.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from storage_harness import Acknowledged, files_of, new_run, next_save, violations

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (apt install strace)")
pytestmark = [pytest.mark.fault, needs_strace]

# Calls of the interpreter's memory and of its own identity: a fault there is not a fault of the disk.
NOT_THE_DISK = {"mmap", "munmap", "mremap", "mprotect", "brk", "madvise", "futex", "getpid", "access", "rt_sigaction"}
TAKES_SPACE = {"openat", "write", "pwrite64", "ftruncate", "mkdir", "rename", "symlink", "fsync", "close"}
CHANGES_DISK = TAKES_SPACE | {"unlink", "rmdir", "chmod"}
MAY_BE_INTERRUPTED = {"openat", "read", "write", "pwrite64", "fsync", "close", "flock", "ftruncate"}
NAMES_A_PATH = {"openat", "newfstatat", "mkdir", "rename", "symlink", "unlink", "rmdir", "readlink", "chmod"}

Position = tuple[str, int]  # the k-th call of that name in the life of the process


class Result:
    """One save under strace: its exit code, what it acknowledged, and whether the fault took place."""

    def __init__(self, code: int, trace: str, path: Path, known: Acknowledged) -> None:
        self.code = code
        self.hit = "(INJECTED)" in trace or code == -9
        self.acknowledged = copy.deepcopy(known)
        for what, step in re.findall(r'access\("/(saved|last)-(\d+)"', trace):
            self.acknowledged.note(None, what, int(step))
        self.problems = violations(path, self.acknowledged)
        if code not in (0, 74, -9):
            self.problems.append(f"exit code {code}")
        if code == -9:
            self.problems += next_save(path, 5, self.acknowledged)
        if code == 0 and self.acknowledged.links["last"] != 4:
            self.problems.append("exit code 0 and nothing acknowledged")


class Saves:
    """Runs saves of step 4 under strace, each on a fresh copy of the same run."""

    def __init__(self, folder: Path, repository: Path, planted: str = "") -> None:
        self.folder, self.repository, self.planted = folder, repository, planted
        self.known = new_run(folder / "template")
        self.num_runs = 0
        self.run([])  # so that compiled modules are on the disk before calls are counted
        self.positions = self._record()

    def run(self, faults: list[str], trace: str = "access", filtered: bool = True) -> Result:
        """`filtered` lets untraced calls pass unseen, which is faster; a signal is only injected without it."""
        path, output = self.folder / "run", self.folder / "trace"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.folder / "template", path, symlinks=True)
        options = [part for fault in faults for part in ("-e", f"inject={fault}")]
        script = [sys.executable, "-I", "-S", "tests/storage/save_once.py", str(self.repository), str(path), "4"]
        script += [self.planted] if self.planted else []
        command = [
            "strace",
            "-f",
            *(["--seccomp-bpf"] if filtered else []),
            "-o",
            str(output),
            "-e",
            f"trace={trace}",
            *options,
            *script,
        ]
        done = subprocess.run(command, cwd=self.repository, check=False, capture_output=True)
        self.num_runs += 1
        return Result(done.returncode, output.read_text(), path, self.known)

    def at(self, position: Position, fault: str, when: str = "") -> Result:
        name, k = position
        return self.run([f"{name}:{fault}:when={k}{when}"], f"{name},access", filtered=not fault.startswith("signal"))

    def _record(self) -> list[Position]:
        assert self.run([], trace="all", filtered=False).code == 0
        positions, counts, inside = [], Counter(), False
        for line in (self.folder / "trace").read_text().splitlines():
            name = line.split(None, 1)[1].partition("(")[0]
            counts[name] += 1
            if name == "access" and '"/end"' in line:
                break
            if inside and name != "access":
                positions.append((name, counts[name]))
            inside = inside or (name == "access" and '"/begin"' in line)
        return positions


@pytest.fixture
def saves(tmp_path, repository) -> Saves:
    return Saves(tmp_path, repository)


def judge(outcomes: Iterable[tuple[str, Result]], at_least: int) -> None:
    """No outcome has a problem, and the faults took place (allocation may move a memory call or two between runs)."""
    problems, num_hit, num_all, codes = [], 0, 0, Counter()
    for what, result in outcomes:
        problems += [f"{what}: {text}" for text in result.problems]
        num_all += 1
        num_hit += result.hit
        codes[result.code] += 1
    print(f"{num_all} runs, {num_hit} faults took place, exit codes {dict(codes)}")
    assert problems == []
    assert num_hit >= max(at_least, 0.95 * num_all)


def halves(cases: list, half: int) -> list:
    return cases[half::2]


@pytest.mark.parametrize("half", [0, 1])
def test_kill_at_every_call(saves, half):
    cases = halves(saves.positions, half)
    judge(((f"killed at {p}", saves.at(p, "signal=KILL")) for p in cases), at_least=80)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_error_once_at_every_call(saves, error, half):
    cases = halves([p for p in saves.positions if p[0] not in NOT_THE_DISK], half)
    judge(((f"{error} once at {p}", saves.at(p, f"error={error}")) for p in cases), at_least=80)


def persistent(saves: Saves, error: str, names: set[str], half: int) -> Iterable[tuple[str, Result]]:
    """From each position on, every call of these names fails."""
    calls = [p for p in saves.positions if p[0] in names]
    for index in halves(list(range(len(calls))), half):
        first: dict[str, int] = {}
        for name, k in calls[index:]:
            first.setdefault(name, k)
        faults = [f"{name}:error={error}:when={k}+" for name, k in first.items()]
        yield f"{error} from {calls[index]} on", saves.run(faults, trace=",".join([*first, "access"]))


@pytest.mark.parametrize("half", [0, 1])
def test_disk_dead_from_every_call_on(saves, half):
    names = {name for name, _ in saves.positions} - NOT_THE_DISK
    judge(persistent(saves, "EIO", names, half), at_least=80)


@pytest.mark.parametrize("half", [0, 1])
def test_disk_full_from_every_call_on(saves, half):
    """Only calls that take space fail then; between two of them, no position differs from the later one."""
    judge(persistent(saves, "ENOSPC", TAKES_SPACE, half), at_least=40)


@pytest.mark.parametrize(
    ("error", "names"),
    [
        ("EDQUOT", TAKES_SPACE),
        ("EROFS", CHANGES_DISK),
        ("EACCES", NAMES_A_PATH),
        ("EMFILE", {"openat"}),
        ("EINTR", MAY_BE_INTERRUPTED),
    ],
)
def test_other_errors_where_they_occur(saves, error, names):
    cases = [p for p in saves.positions if p[0] in names]
    judge(((f"{error} at {p}", saves.at(p, f"error={error}")) for p in cases), at_least=30)


def test_failed_fsync_is_never_a_save(saves):
    cases = [p for p in saves.positions if p[0] == "fsync"]
    outcomes = [(f"EIO at {p}", saves.at(p, "error=EIO", when)) for p in cases for when in ("", "+")]
    judge(outcomes, at_least=2 * 11)
    assert [what for what, result in outcomes if result.code != 74] == []


def test_lost_write_is_noticed(saves):
    """Each write reports all, or one byte, of what it was given as written, and writes nothing."""
    sizes = [len(data) for data in files_of(4).values()]
    *ours, library, manifest = [p for p in saves.positions if p[0] == "write"]
    cases = [*zip(ours, sizes, strict=True), (manifest, 1)]
    outcomes = [
        (f"{p} lost, {reported} reported", saves.at(p, f"retval={reported}"))
        for p, size in cases
        for reported in {size, 1}
    ]
    judge(outcomes, at_least=9)
    assert [what for what, result in outcomes if result.code != 74] == []
    # What a library wrote is hashed as it arrived; what we promise of it is only that it stays so.
    assert saves.at(library, "retval=2").problems == []
