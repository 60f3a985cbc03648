"""`train --continue`, which `make demo` is: an interrupted run goes on, a finished one stays and gets company."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from run_helpers import TINY

from tiny_transformer import cli
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.reports.runs_table import list_runs
from tiny_transformer.stages.command import run_training
from tiny_transformer.storage import RunDirectory


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of a second's run, and the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    tree = {**TINY, "data": {**TINY["data"], "data_dir": str(tiny_data)}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def demo(config: Path, *overrides: str) -> str:
    """What `make demo` does; what it said."""
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    run_training(str(config), list(overrides), resume=False, overwrite=False, go_on=True, console=console)
    return screen.getvalue()


def states() -> dict[str, str]:
    return {run.name: run.state for run in list_runs(Path("runs"))}


def interrupt(run_dir: Path, *, after: int) -> None:
    """Leave what a run has on disk that was killed some time after a save."""
    for checkpoint in run_dir.glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > after:
            shutil.rmtree(checkpoint)
    directory = RunDirectory(run_dir)
    with directory.lock():
        if after:
            directory.point("last", after)


def test_a_finished_run_stays_as_it_is_and_the_new_one_stands_beside_it(config: Path) -> None:
    assert "runs/small" not in demo(config).partition("\n")[0]  # nothing to tell about the first
    kept = {path: path.read_bytes() for path in Path("runs/small").rglob("*") if path.is_file()}
    said = demo(config, "training.steps=6")
    assert said.startswith("runs/small is finished and is left as it is: starting a new run beside it")
    assert states() == {"small": "finished", "small-2": "finished"}
    assert {path: path.read_bytes() for path in Path("runs/small").rglob("*") if path.is_file()} == kept
    demo(config, "training.steps=6")
    assert states() == {"small": "finished", "small-2": "finished", "small-3": "finished"}


def test_an_interrupted_run_goes_on_as_it_was_planned(config: Path) -> None:
    demo(config, "training.keep_checkpoints=9")
    log = Path("runs/small/log.jsonl").read_text()
    interrupt(Path("runs/small"), after=8)
    assert states() == {"small": "stopped"}
    said = demo(config, "training.steps=6")  # another length: not of the run that was begun
    assert said.startswith("runs/small was interrupted: resuming it as planned")
    assert "resuming from step 8" in said
    assert states() == {"small": "finished"}
    assert [json.loads(line)["loss"] for line in Path("runs/small/log.jsonl").read_text().splitlines()] == [
        json.loads(line)["loss"] for line in log.splitlines()
    ]


def test_a_run_that_was_interrupted_before_its_first_checkpoint_begins_again_in_its_place(config: Path) -> None:
    demo(config, "training.keep_checkpoints=9")
    interrupt(Path("runs/small"), after=0)
    for mark in ("last", "best"):
        Path("runs/small", mark).unlink(missing_ok=True)
    assert "starting from the beginning" in demo(config)
    assert states() == {"small": "finished"}


def test_of_several_runs_the_newest_counts(config: Path) -> None:
    demo(config)
    demo(config, "training.keep_checkpoints=9")
    interrupt(Path("runs/small-2"), after=4)
    assert demo(config).startswith("runs/small-2 was interrupted")
    assert states() == {"small": "finished", "small-2": "finished"}


def test_continue_excludes_the_other_two(config: Path) -> None:
    for options in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(UserError, match="--continue already decides"):
            run_training(str(config), [], go_on=True, console=Console(file=io.StringIO()), **options)


def test_a_run_that_is_named_goes_on_or_is_left_to_its_owner(config: Path) -> None:
    named = "out_dir=runs/mine"
    demo(config, named, "training.keep_checkpoints=9")
    interrupt(Path("runs/mine"), after=8)
    assert demo(config, named).startswith("runs/mine was interrupted")
    with pytest.raises(UserError, match="runs/mine already holds a run"):
        demo(config, named)


def test_continue_must_know_which_run() -> None:
    with pytest.raises(UserError, match="--continue needs to know which run"):
        run_training(None, [], resume=False, overwrite=False, minutes=1.0, go_on=True, console=Console(quiet=True))


def test_explain_without_minutes_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "--config", str(config), "--explain"]) == ExitCode.USAGE
    assert "there is no --minutes" in capsys.readouterr().err


def test_make_demo_overwrites_nothing(repository: Path) -> None:
    recipe = (repository / "Makefile").read_text(encoding="utf-8").partition("\ndemo:")[2].partition("\n\n")[0]
    assert "--continue" in recipe
    assert "--overwrite" not in recipe and "--out_dir" not in recipe
