"""`tiny-transformer runs`: which runs are found, what is said about each checkpoint, and that it costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import made_up_run as made
import pytest
from rich.console import Console

from tiny_transformer.reports.runs_table import RunSummary, list_runs, print_runs
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.runs import NOT_FINITE_FILE

SAVED = 1_795_257_000  # 2026-11-21T10:30:00Z, the `saved_at` of every made-up checkpoint


def printed(runs: list[RunSummary], now: float = SAVED + 180, width: int = 110) -> list[str]:
    """The printed table, line by line, runs of spaces shortened."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        print_runs(console, runs, now)
    lines = [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]
    return lines[1:] if runs else lines  # the first line of the two-line heading tells nothing new


def test_a_run_has_a_row_with_its_text_size_time_and_loss(tmp_path: Path) -> None:
    made.make_run(tmp_path, "demo")
    made.make_run(tmp_path, "other", data={"source": "texts/my novel.txt"}, status="stopped", total_steps=4000)
    assert printed(list_runs(tmp_path)) == [
        "run text model min steps loss byte saved",
        "demo stories 3.46M 9.6 2,000 1.620 0.736 finished 3 min ago",
        "other my novel 3.46M 9.6 2,000 1.620 0.736 stopped, 50% 3 min ago",
    ]


def test_the_loss_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    directory = RunDirectory(run)
    with directory.lock():
        directory.point("best", 1000)
    first = made.run_info(1000)
    assert f" {first['val_loss']:.3f} {first['val_bits_per_byte']:.3f} finished" in printed(list_runs(tmp_path))[1]


def test_a_run_that_was_never_evaluated_shows_the_loss_of_training_as_such(tmp_path: Path) -> None:
    made.make_run(tmp_path, "demo", val_loss=None, val_bits_per_byte=None, train_loss=2.5)
    lines = printed(list_runs(tmp_path))
    assert " 2,000 (2.500) – finished" in lines[1]
    assert lines[2] == "(in brackets: loss of training, never evaluated on held-out text)"


def without_checkpoints(run: Path) -> Path:
    for path in (*run.glob("step-*"), run / "last", run / "best"):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    return run


def test_a_run_without_checkpoints_shows_the_text_of_its_settings_and_what_it_logged(tmp_path: Path) -> None:
    without_checkpoints(made.make_run(tmp_path, "demo"))
    assert printed(list_runs(tmp_path))[1] == "demo stories – 9.6 2,000 1.620 0.736 stopped –"


@pytest.mark.parametrize(
    ("source", "title"),
    [
        *(("it's: a text.txt", "it's: a text"), ("7", "7"), ("a  # b.txt", "a  # b"), ("a/texts/*.txt", "texts")),
        *(("texts/**/*.md", "texts"), ("my book.txt.gz", "my book"), ("corpora/v1.2", "v1.2"), ("org/Set", "Set")),
        ("~nobody-here/a.txt", "a"),
    ],
)
def test_the_text_of_a_run_without_checkpoints_is_read_as_yaml(tmp_path: Path, source: str, title: str) -> None:
    config = made.CONFIG | {"data": {"source": source}}
    without_checkpoints(made.make_run(tmp_path, "demo", config=config))
    assert list_runs(tmp_path)[0].source == title


def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    run = without_checkpoints(made.make_run(tmp_path, "demo"))
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    assert printed(list_runs(tmp_path))[1] == "demo – – 9.6 2,000 1.620 0.736 stopped –"


def test_a_run_that_has_saved_nothing_stands_where_its_log_says(tmp_path: Path) -> None:
    made.make_run(tmp_path, "saved")
    unsaved = without_checkpoints(made.make_run(tmp_path, "a"))
    for seconds, order in ((SAVED + 50, ["saved", "a"]), (SAVED - 50, ["a", "saved"])):
        os.utime(unsaved / "log.jsonl", (seconds, seconds))
        assert [run.name for run in list_runs(tmp_path)] == order


def test_a_run_that_diverged_shows_where_and_after_what_loss(tmp_path: Path) -> None:
    saved, unsaved = made.make_run(tmp_path, "saved"), without_checkpoints(made.make_run(tmp_path, "unsaved"))
    for run in (saved, unsaved):
        made.write_log(run, [made.log_row(step, evaluated=False) for step in (1, 2, 4)])
        os.utime(run / "log.jsonl", (SAVED - 50, SAVED - 50))
        (run / "not_finite.json").write_text('{"step": 5}')
    loss = made.log_row(4, evaluated=False)["loss"]
    lines = printed(list_runs(tmp_path))
    assert lines[1] == f"unsaved stories – 0.0 5 ({loss:.3f}) – diverged –"
    assert lines[2].startswith("saved stories 3.46M 0.0 5 1.620 0.736 diverged")


def test_a_run_that_is_named_also_shows_its_checkpoints(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    first, second = (made.run_info(step) for step in (1000, 2000))
    sizes = [sum(f.stat().st_size for f in (run / f"step-0000{s}").iterdir()) / 1000 for s in (1000, 2000)]
    assert printed(list_runs(run))[2:] == [
        "train val bits/",
        "in demo epoch loss loss byte size saved",
        f"step 1,000 1.25 {first['train_loss']:.3f} {first['val_loss']:.3f} {first['val_bits_per_byte']:.3f} "
        f"{sizes[0]:.1f} kB 3 min ago",
        f"step 2,000 2.50 {second['train_loss']:.3f} 1.620 0.736 {sizes[1]:.1f} kB 3 min ago last, best",
    ]


def test_folders_of_runs_and_single_runs_can_be_mixed_and_none_is_listed_twice(tmp_path: Path) -> None:
    made.make_run(tmp_path / "a", "one", saved_at="2026-11-21T10:30:00+00:00")
    made.make_run(tmp_path / "a", "two", saved_at="2026-11-20T10:30:00+00:00")
    made.make_run(tmp_path, "three", saved_at="2026-11-22T10:30:00+00:00")
    (tmp_path / "a" / "not a run").mkdir()
    found = list_runs(tmp_path / "a", tmp_path / "three", tmp_path / "a" / ".." / "a" / "one", tmp_path / "absent")
    assert [run.name for run in found] == ["two", "one", "three"]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("finished", "finished"),
        ("stopped", "stopped"),
        ("stopped_early", "finished early"),
        ("running", "stopped"),
        (7, "stopped"),
    ],
)
def test_state_of_a_run_that_nobody_owns(tmp_path: Path, status: object, state: str) -> None:
    made.make_run(tmp_path, "demo", status=status)
    assert list_runs(tmp_path)[0].state == state


def test_run_is_running_while_another_process_owns_it_and_stopped_when_that_was_killed(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo", status="running")
    code = (
        "import sys; from tiny_transformer.storage import RunLock\n"
        f"with RunLock({str(run)!r}): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        assert list_runs(run)[0].state == "running"
        owner.kill()
    assert list_runs(run)[0].state == "stopped"


@pytest.mark.parametrize(
    ("status", "state"), [("finished", "finished"), ("stopped", "stopped"), ("running", "running")]
)
def test_state_that_a_training_process_sees_of_its_own_run(tmp_path: Path, status: str, state: str) -> None:
    run = made.make_run(tmp_path, "demo", status=status)
    with RunDirectory(run).lock():
        assert list_runs(run)[0].state == state
        (run / NOT_FINITE_FILE).write_text("{}")
        assert list_runs(run)[0].state == "diverged"


def spoil_manifest(checkpoint: Path) -> str:
    path = checkpoint / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"5000", b"5001"))
    return "manifest.json does not match its own hash"


def remove_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").unlink()
    return "manifest.json is missing: nothing was published here"


def cut_weights(checkpoint: Path) -> str:
    os.truncate(checkpoint / "model.safetensors", 4999)
    return "model.safetensors has 4,999 bytes, not 5,000"


def remove_weights(checkpoint: Path) -> str:
    (checkpoint / "model.safetensors").unlink()
    return "model.safetensors: No such file or directory"


@pytest.mark.parametrize("spoil", [spoil_manifest, remove_manifest, cut_weights, remove_weights])
def test_checkpoint_that_is_not_whole_is_shown_with_the_reason_and_the_doctor(tmp_path: Path, spoil) -> None:
    run = made.make_run(tmp_path, "my run", status="stopped")
    reason = spoil(run / "step-00002000")
    lines = printed(list_runs(run))
    assert lines[1].startswith("my run stories 3.46M 4.8 1,000 ")
    assert lines[5].endswith("not whole")
    assert lines[6:] == [f"to see what is not whole: tiny-transformer doctor '{run}'"]
    assert [c.problem for c in list_runs(run)[0].checkpoints] == [None, reason]


def test_run_of_which_no_checkpoint_is_whole_is_not_whole(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    for step in (1000, 2000):
        remove_manifest(run / f"step-0000{step}")
    assert list_runs(run)[0].state == "not whole"


def test_run_without_checkpoints_has_a_row(tmp_path: Path) -> None:
    made.write_log(tmp_path, [])
    assert " ".join(printed(list_runs(tmp_path))[1].split()[-7:]) == "– – – – – stopped –"


@pytest.mark.parametrize(
    "content", ["", "[]", "nonsense", '{"val_loss": "high", "epoch": null, "saved_at": 12}', "[" * 9999]
)
def test_odd_run_info_leaves_cells_empty(tmp_path: Path, content: str) -> None:
    run = made.make_run(tmp_path, "demo")
    (run / "step-00002000" / "run_info.json").write_text(content)
    assert printed(list_runs(run))[5].startswith("step 2,000 – – – –")


def test_without_runs_there_is_one_helpful_sentence(tmp_path: Path) -> None:
    assert list_runs(tmp_path, tmp_path / "absent") == []
    (line,) = printed([])
    assert "tiny-transformer train" in line


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    made.make_run(tmp_path, "a\x1b[31m[red]b")
    text = "\n".join(printed(list_runs(tmp_path)))
    assert "\x1b" not in text
    assert "[red]b" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-500, "just now"), (59, "just now"), (60, "1 min ago"), (7300, "2 h ago"), (86400 * 3 + 5, "3 days ago")],
)
def test_age_is_in_words(tmp_path: Path, seconds: int, words: str) -> None:
    made.make_run(tmp_path, "demo")
    assert words in printed(list_runs(tmp_path), now=SAVED + seconds)[1]


def test_tables_fit_a_terminal_of_eighty_columns(tmp_path: Path) -> None:
    run = made.make_run(
        tmp_path, "shakespeare-2", data={"source": "shakespeare.txt"}, status="stopped", total_steps=9999
    )
    assert len(printed(list_runs(tmp_path), width=80)) == 2
    assert len(printed(list_runs(run), width=80)) == 6


def test_listing_and_reporting_import_no_torch(tmp_path: Path) -> None:
    made.make_run(tmp_path, "demo")
    code = (
        "import io, sys, json; from pathlib import Path; from rich.console import Console\n"
        "from tiny_transformer.reports.runs_table import list_runs, print_runs\n"
        f"print_runs(Console(file=io.StringIO()), list_runs(Path({str(tmp_path)!r})))\n"
        "print(json.dumps([m for m in ('torch', 'numpy', 'yaml') if m in sys.modules]))\n"
        "from tiny_transformer.reports.report import write_report\n"
        f"write_report(Path({str(tmp_path / 'demo')!r}))\n"
        "print(json.dumps('torch' in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[], False]
