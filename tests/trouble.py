"""Reads docs/TROUBLESHOOTING.md, and types its commands where a fault has been planted.

An entry is a heading of the third level, a `console` block (a command after `$`, then what the terminal shows, in which
`...` stands for anything), why, and a `bash` block, the cure.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tiny_transformer.cli import run

PAGE = Path(__file__).parent.parent / "docs/TROUBLESHOOTING.md"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Only named: not ours, in need of a network or of another machine, or changing the environment.
NAMED = (
    "source",
    "python3",
    "python3.11",
    "pip",
    "make",
    "hf",
    "nvidia-smi",
    "df",
    "curl",
    "pdftotext",
    "llama-quantize",
)
TOOLS = ("cp", "iconv", "sed")  # run as they stand


@dataclass(frozen=True)
class Entry:
    """One trouble: what is typed, what is shown, and the commands of the cure."""

    title: str
    command: str
    shown: str
    cure: tuple[str, ...]


def read_entries(text: str) -> list[Entry]:
    """The page's entries.

    Raises:
        ValueError: an entry that lacks one of its parts.
    """
    entries = []
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        title, blocks = part.partition("\n")[0], FENCED.findall(part.partition("\n## ")[0])
        if [kind for kind, _ in blocks] != ["console", "bash"] or not re.search(
            r"\*\*Why\.\*\* .*\*\*Do\.\*\*", part, re.S
        ):
            raise ValueError(f"{title}: an entry has a console block, why, what to do, and a bash block")
        command, _, shown = blocks[0][1].partition("\n")
        if not command.startswith("$ "):
            raise ValueError(f"{title}: the console block begins with a command")
        entries.append(Entry(title, command[2:], shown, tuple(blocks[1][1].splitlines())))
    return entries


def shows(output: str, expected: str) -> bool:
    """Whether what was printed holds the lines of a console block; line breaks and blanks count for nothing."""
    words, wanted = " ".join(output.split()), " ".join(expected.split())
    return re.search(".*?".join(map(re.escape, re.split(r" ?\.\.\. ?", wanted))), words) is not None


class Place:
    """A directory in which commands are typed.

    Attributes:
        path: the directory, which is the current one.
        patch: what it changed is put back before the cure, unless the case keeps it.
    """

    def __init__(self, path: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.patch, self._capsys = path, patch, capsys
        self.lock: Any = None

    def type(self, line: str) -> tuple[int, str]:
        """Exit code and output of a line of the page; (0, "") for a program that is only named."""
        words = shlex.split(line, comments=True)
        with changed_environment(self.patch, words), ignored_hangup(words):
            if words[0] == "tiny-transformer":
                self._capsys.readouterr()
                code = run(words[1:])
                out, err = self._capsys.readouterr()
                return int(code), out + "\n" + err
            if words[0] in NAMED:
                return 0, ""
            if words[0] == "python":
                return in_a_process([sys.executable, *words[1:]])
            assert words[0] in TOOLS, line
            return in_a_process(words)

    def must(self, line: str) -> str:
        """The output of a command that must succeed."""
        code, output = self.type(line)
        assert code == 0, f"$ {line}\n{output}"
        return output

    def at_step(self, step: int, work: Callable[[], Any]) -> None:
        """Have something happen in the middle of a run, once, before it computes this step."""
        from tiny_transformer.training import loop

        real, left = loop.find_gradient, [work]

        def find_gradient(job: Any, state: Any, micro_batches: Any) -> Any:
            if state.step == step and left:
                left.pop()()
            return real(job, state, micro_batches)

        self.patch.setattr(loop, "find_gradient", find_gradient)


def in_a_process(words: list[str], **environment: str) -> tuple[int, str]:
    """Exit code and output of a program, of ours from this checkout."""
    env = {**os.environ, "PYTHONPATH": str(PAGE.parent.parent), **environment}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + "\n" + done.stderr


@contextmanager
def changed_environment(patch: pytest.MonkeyPatch, words: list[str]) -> Iterator[None]:
    """Take `NAME=value` off the front of a command, for as long as it runs."""
    with patch.context() as inner:
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            inner.setenv(name, value)
        yield


@contextmanager
def ignored_hangup(words: list[str]) -> Iterator[None]:
    """What nohup does."""
    if words[0] != "nohup":
        yield
        return
    words.pop(0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
