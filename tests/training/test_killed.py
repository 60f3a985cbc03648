"""The real trainer, killed and asked to stop at random instants: rows D2, D16 and D30 of the reliability table.

One run after another is trained in short lives: each life is a process of its own that takes the run up, is left alone
until it has entered a phase for the n-th time, and then gets its signal a random moment later. After each life the
directory is judged by the doctor and the log by its own lines; when a run has ended, it is compared with one that was
never disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fork_server import PHASES, ForkServer
from reward_helpers import reward_tree, write_questions
from run_helpers import TINY, fingerprint, log_without_clock, run_tiny

from tiny_transformer.errors import ExitCode
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.doctor import examine

NUM_KILLS = int(os.environ.get("TRAINER_KILLS", "40"))
NUM_STOPS = int(os.environ.get("TRAINER_STOPS", "40"))
SEED = int(os.environ.get("TRAINER_SEED", "20261121"))
STEPS, SAVE_STEPS = 40, 6
MOST_TIMES = {"start-up": 1, "steps": 9, "evaluation": 2, "save": 3, "prune": 3}
LATEST_SECONDS = {"start-up": 0.15, "steps": 0.02, "evaluation": 0.08, "save": 0.03, "prune": 0.01}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Lives:
    """Runs of one config, one after the other, each in many short lives."""

    def __init__(self, directory: Path, data_dir: Path, server: ForkServer, rng: random.Random) -> None:
        self.directory, self.server, self.rng = directory, server, rng
        self.config = directory / "short.yaml"
        training = {"steps": STEPS, "save_steps": SAVE_STEPS, "eval_steps": 10, "log_steps": 1, "keep_checkpoints": 1}
        tree = {
            **TINY,
            "data": {**TINY["data"], "data_dir": str(data_dir)},
            "training": {**TINY["training"], **training},
        }
        self.config.write_text(yaml.safe_dump(tree), encoding="utf-8")
        self.whole, self.num_runs, self.tally = directory / "whole", 1, Counter[str]()
        self.start(self.whole)
        assert server.wait() == 0, self.output

    @property
    def run(self) -> Path:
        """The directory of the run that lives now."""
        return self.directory / f"run-{self.num_runs}"

    @property
    def output(self) -> str:
        """What all lives printed."""
        return (self.directory / "output").read_text(encoding="utf-8")[-3000:]

    def start(self, run_dir: Path, phase: str | None = None, times: int = 1) -> int:
        """Begin a life; returns its pid."""
        resume = ["--resume"] if (run_dir / "config.yaml").exists() else []
        arguments = ["train", "--config", str(self.config), "--out_dir", str(run_dir), *resume]
        return self.server.start(arguments, self.directory / "output", phase, times)

    def live_until(self, phase: str) -> int:
        """A life that has come to a random moment in, or soon after, a phase; returns its pid."""
        pid = self.start(self.run, phase, self.rng.randint(1, MOST_TIMES[phase]))
        time.sleep(self.rng.uniform(0, LATEST_SECONDS[phase]))
        return pid

    def judge(self, code: int) -> None:
        """The log has every step once, not more than one save interval is lost, every checkpoint is whole; a run that
        has ended is as if it had never been disturbed, and the next one begins."""
        steps = [record["step"] for record in complete_lines(self.run)]
        assert steps == list(range(1, len(steps) + 1)), self.output
        newest, damaged = RunDirectory(self.run).newest_whole()
        assert not damaged
        assert len(steps) - (newest.step if newest else 0) <= SAVE_STEPS
        if self.run.exists() and any(self.run.iterdir()):
            report = examine(self.run)
            assert report.ok, report.lines()
        if code == 0:
            self.compare()

    def compare(self) -> None:
        assert fingerprint(self.whole) == fingerprint(self.run)
        assert fingerprint(self.whole, "best") == fingerprint(self.run, "best")
        assert log_without_clock(self.whole) == log_without_clock(self.run)
        self.num_runs += 1

    def finish(self) -> None:
        """Let the last run come to its end."""
        self.start(self.run)
        code = self.server.wait()
        assert code == 0, self.output
        self.judge(code)


def processor_seconds(pid: int) -> float | None:
    """What a process has used so far; None when it has ended, or where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def complete_lines(run_dir: Path) -> list[dict[str, object]]:
    """The log's records; a torn last line is not one."""
    path = run_dir / "log.jsonl"
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """Forks trainers."""
    server = ForkServer()
    yield server
    server.close()


@pytest.mark.fault
@pytest.mark.timeout(7200)
def test_killed_anywhere_a_run_ends_like_an_undisturbed_one(
    tiny_data: Path, tmp_path: Path, server: ForkServer
) -> None:
    """Forty kills over start-up, steps, evaluation, save and prune; TRAINER_KILLS=1000 for the full number."""
    lives = Lives(tmp_path, tiny_data, server, random.Random(SEED))
    while sum(lives.tally.values()) < NUM_KILLS:
        phase = PHASES[sum(lives.tally.values()) % len(PHASES)]
        server.signal(lives.live_until(phase), signal.SIGKILL)
        code = server.wait()
        assert code in (0, -signal.SIGKILL), lives.output
        lives.tally[phase] += code != 0
        lives.judge(code)
    lives.finish()
    print(f"seed {SEED}: {dict(lives.tally)} kills, {lives.num_runs - 1} runs")


@pytest.mark.fault
@pytest.mark.timeout(7200)
def test_asked_to_stop_a_run_saves_within_a_step_and_leaves(
    tiny_data: Path, tmp_path: Path, server: ForkServer
) -> None:
    """Forty signals, one in three followed by a second; TRAINER_STOPS=500 for the full number.

    The step in progress is finished and saved (with its evaluation, if it is due), and no other is begun. A second
    signal ends the process at once. Before the first step there is nothing to save, and the signal's own action is
    enough.
    """
    lives = Lives(tmp_path, tiny_data, server, random.Random(SEED))
    # After a signal, in seconds of a processor, on which no one else counts; with where it came and how it ended.
    busiest: dict[str, tuple[float, str, int]] = {"stop": (0.0, "", 0), "second": (0.0, "", 0)}
    for count in range(NUM_STOPS):
        phase, number = PHASES[count % len(PHASES)], lives.rng.choice(STOP_SIGNALS)
        pid = lives.live_until(phase)
        server.signal(pid, signal.SIGSTOP)  # so that what the log says is what has happened when the signal comes
        before = len(complete_lines(lives.run))
        server.signal(pid, number)
        server.signal(pid, signal.SIGCONT)
        kind, used = "stop", processor_seconds(pid)
        if count % 3 == 2:
            time.sleep(lives.rng.uniform(0, 0.01))
            used = processor_seconds(pid)
            # Not the same one: while a busy machine has not delivered the first, two of a kind are one.
            server.signal(pid, lives.rng.choice([other for other in STOP_SIGNALS if other != number]))
            kind = "second"
        code = server.wait()
        if used is not None:
            busiest[kind] = max(busiest[kind], (server.processor_seconds - used, f"{phase}, signal {count}", code))
        newest, _ = RunDirectory(lives.run).newest_whole()
        after = len(complete_lines(lives.run))
        if phase == "start-up":
            assert code in (0, ExitCode.STOPPED, -number, 130) or kind == "second", lives.output
        elif newest is not None and newest.step == STEPS:  # it may have been writing its report: nothing to stop for
            assert code in (0, ExitCode.STOPPED, 130, *(-signal for signal in STOP_SIGNALS)), (code, lives.output)
        else:
            assert code in (0, ExitCode.STOPPED), (code, lives.output)
        if code == ExitCode.STOPPED and kind == "stop":
            assert after - before <= 1
            assert newest is not None and newest.step == after
        lives.tally[f"{phase} {code}"] += 1
        lives.judge(code)
    lives.finish()
    assert busiest["stop"][0] < 10 and busiest["second"][0] < 1, busiest
    print(f"seed {SEED}: {dict(lives.tally)}, {lives.num_runs - 1} runs, busiest {busiest}")


@pytest.mark.fault
def test_a_process_of_its_own_killed_while_it_starts_is_taken_up(
    tiny_data: Path, tmp_path: Path, server: ForkServer
) -> None:
    """What the forks leave out: the interpreter and the imports."""
    lives = Lives(tmp_path, tiny_data, server, random.Random(SEED))
    command = [sys.executable, "-m", "tiny_transformer", "train", "--config", str(lives.config)]
    for seconds in (0.3, 1.0, 3.0):
        resume = ["--resume"] if (lives.run / "config.yaml").exists() else []
        process = subprocess.Popen([*command, "--out_dir", str(lives.run), *resume], stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        lives.judge(1 if process.wait() else 0)
    lives.finish()


@pytest.mark.fault
def test_killed_while_it_learns_from_rewards_a_run_ends_like_an_undisturbed_one(
    tiny_data: Path, tmp_path: Path, server: ForkServer
) -> None:
    """Kills among its steps and saves, with answers kept or not yet, and a verifier in a process of its own."""
    run_tiny(tiny_data, tmp_path / "base", steps=1, eval_steps=None)
    source, rng = write_questions(tmp_path / "questions.jsonl", count=16), random.Random(SEED)
    training = {"steps": 20, "save_steps": 3, "eval_steps": None}  # more than four lives can reach
    runs = {name: reward_tree(tmp_path / "base", source, tmp_path / name, training=training) for name in ("a", "b")}
    for name, tree in runs.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

    def live(name: str, phase: str | None = None, times: int = 1) -> int:
        resume = ["--resume"] if (tmp_path / name / "config.yaml").exists() else []
        pid = server.start(
            ["align", "--config", str(tmp_path / f"{name}.yaml"), *resume], tmp_path / "out", phase, times
        )
        if phase is not None:
            time.sleep(rng.uniform(0, 0.05))
            server.signal(pid, signal.SIGKILL)
        return server.wait()

    ends = [live("b", phase, times) for phase, times in (("steps", 2), ("steps", 2), ("save", 1), ("steps", 3))]
    assert ends == [-signal.SIGKILL] * 4 and live("b") == 0 and live("a") == 0, (tmp_path / "out").read_text()
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert log_without_clock(tmp_path / "a") == log_without_clock(tmp_path / "b")
