"""A verifier's scores come back whole; whatever it does, the program that asks goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.verifiers import Verifier

FILE = """
import os, subprocess, sys, time
from helper import OFFSET

def length(prompt, text):
    print("noise", flush=True)
    return len(prompt) + len(text) + OFFSET

def is_four(prompt, text): return text == "4"
def fails(prompt, text): return 1 / (len(text) - 1)
def wrong(prompt, text): return text
def nothing(prompt, text): return float("nan")
def dies(prompt, text): os._exit(3)
def pid(prompt, text): return os.getpid()
def reads(prompt, text): return len(sys.stdin.read())

def hangs(prompt, text):
    if text == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(prompt, "w").write(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    return 1.0

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("OFFSET = 100\n")
    (tmp_path / "verify.py").write_text(FILE)
    return tmp_path / "verify.py"


def test_scores_come_from_one_child_and_what_it_prints_disturbs_nothing(file):
    with Verifier(file, "length") as verifier:
        assert [verifier.score("ab", text) for text in ("c", "", "zoë\n\u2028")] == [(103, ""), (102, ""), (107, "")]
    with Verifier(file, "is_four") as verifier:
        assert [verifier.score("2 + 2", text).score for text in ("4", "5")] == [1.0, 0.0]
    with Verifier(file, "pid") as verifier:
        assert verifier.score("", "") == verifier.score("", "")
    with Verifier(file, "reads") as verifier:
        assert verifier.score("", "").score == 0


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("fails", "ZeroDivisionError: "),
        ("wrong", "it returned 'x', which is no finite number"),
        ("nothing", "it returned nan"),
        ("dies", "ended with 3"),
    ],
)
def test_a_text_that_cannot_be_judged_says_why_and_the_next_one_can(file, function, problem):
    with Verifier(file, function) as verifier:
        score, told = verifier.score("", "x")
        assert score == 0 and problem in told
        assert bool(verifier.score("", "four").problem) == (function != "fails")


@pytest.mark.parametrize(
    ("content", "function", "what"),
    [
        (FILE, "missing", "AttributeError"),
        (FILE, "NUMBER", "NUMBER is no function"),
        ("def f(", "f", "SyntaxError"),
        ("import sys; sys.exit(1)", "f", "SystemExit"),
        ("import os; os._exit(1)", "f", "does not answer"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(file, content, function, what):
    file.write_text(content)
    with pytest.raises(UserError, match="cannot be loaded") as refused, Verifier(file, function) as verifier:
        verifier.score("", "")
    assert what in refused.value.what and refused.value.exit_code == ExitCode.BAD_DATA


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no\.py does not exist"):
        Verifier(tmp_path / "no.py", "f")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.fault
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_one_that_does_not_answer_is_killed_with_what_it_has_started(file, tmp_path):
    note = tmp_path / "pids"
    with Verifier(file, "hangs", timeout_seconds=2) as verifier:
        assert verifier.score(str(note), "go") == (1.0, "")
        assert verifier.score(str(note), "hang") == (0.0, "no answer within 2 s")
        pids = [int(pid) for pid in note.read_text().split()]
        for _ in range(200):
            if not any(map(is_running, pids)):
                break
            time.sleep(0.02)
        assert len(pids) == 2 and not any(map(is_running, pids))
        assert verifier.score(str(note), "go") == (1.0, "")
    assert os.getpgid(0) not in pids
