"""A path, or none, leads to one whole checkpoint, or to a message that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.find import find_checkpoint, find_run, find_runs, newest_run
from tiny_transformer.storage import RunDirectory, RunLock, publish


def make_run(path: Path, *, steps: tuple[int, ...] = (100, 200), **links: int) -> Path:
    """A run with small published checkpoints; `best=100` makes that link."""
    path.mkdir(parents=True)
    run = RunDirectory(path)
    with run.lock():
        for step in steps:
            with run.publish_step(step) as staging:
                staging.write("config.json", b"{}")
                staging.write("model.safetensors", b"weights of step %d" % step)
        for name, step in links.items():
            run.point(name, step)
    return path


def set_age(link: Path, seconds: int) -> None:
    os.utime(link, (1_000_000 - seconds, 1_000_000 - seconds), follow_symlinks=False)


def refusal(*args: Path) -> UserError:
    with pytest.raises(UserError) as error:
        find_checkpoint(*args)
    lines = error.value.lines()
    assert len(lines) <= 3
    assert lines[-1].startswith("  try: ")
    return error.value


def test_without_a_path_the_newest_best_is_taken(tmp_path):
    old, new = (make_run(tmp_path / name, best=100, last=200) for name in ("old", "new"))
    make_run(tmp_path / "unevaluated", last=200)
    set_age(old / "best", 500)
    set_age(new / "best", 100)
    path, sentence = find_checkpoint(None, tmp_path)
    assert path == new / "step-00000100"
    assert sentence == f"using {new}/best (step-00000100), the newest best in {tmp_path}"
    set_age(old / "best", 10)
    assert find_checkpoint(None, tmp_path)[0] == old / "step-00000100"


def test_without_any_best_the_newest_last_is_taken(tmp_path):
    runs = [make_run(tmp_path / name, last=200) for name in ("a", "b")]
    set_age(runs[1] / "last", 100)
    set_age(runs[0] / "last", 500)
    path, sentence = find_checkpoint(None, tmp_path)
    assert path == runs[1] / "step-00000200"
    assert sentence.endswith(f"b/last (step-00000200), the newest last in {tmp_path}")


@pytest.mark.parametrize("runs", ["missing", "."])
def test_without_any_checkpoint_training_is_named(tmp_path, runs):
    error = refusal(None, tmp_path / runs)
    assert "there is no checkpoint in" in error.what
    assert "tiny-transformer train" in error.remedy


def test_a_run_directory_stands_for_its_best_then_last_then_newest(tmp_path):
    run = make_run(tmp_path / "run", best=100, last=200)
    assert find_checkpoint(run, tmp_path) == (run / "step-00000100", f"using {run}/best (step-00000100)")
    (run / "best").unlink()
    assert find_checkpoint(run, tmp_path) == (run / "step-00000200", f"using {run}/last (step-00000200)")
    (run / "last").unlink()
    assert find_checkpoint(run, tmp_path) == (run / "step-00000200", f"using {run}/step-00000200")


def test_a_checkpoint_or_a_link_to_one_stands_for_itself(tmp_path):
    run = make_run(tmp_path / "run", best=100, last=200)
    step = run / "step-00000200"
    assert find_checkpoint(step, tmp_path) == (step, f"using {step}")
    assert find_checkpoint(run / "last", tmp_path) == (step, f"using {run}/last (step-00000200)")


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json"])
def test_a_hugging_face_directory_without_a_manifest_is_taken(tmp_path, weights):
    for name in ("config.json", weights, "log.jsonl"):  # a log beside the weights does not make it a run
        (tmp_path / name).write_bytes(b"{}")
    assert find_checkpoint(tmp_path, tmp_path)[0] == tmp_path


def test_a_path_that_is_nothing_of_the_kind_is_refused(tmp_path):
    run = make_run(tmp_path / "runs" / "demo", best=100)
    file, folder = tmp_path / "notes.txt", tmp_path / "folder"
    file.write_text("x")
    folder.mkdir()
    runs = tmp_path / "runs"
    for path, what in (
        (tmp_path / "typo", "does not exist"),
        (file, "is not a directory"),
        (folder, "is not a checkpoint directory: no config.json"),
    ):
        error = refusal(path, runs)
        assert error.what == f"{path} {what}"
        assert error.remedy == f"the newest checkpoint is {run}/best"
        assert error.exit_code == ExitCode.USAGE
    assert "tiny-transformer train" in refusal(folder, tmp_path / "no runs").remedy


def half_write(step: Path) -> None:
    (step / "manifest.json").unlink()


def lose_weights(step: Path) -> None:
    (step / "model.safetensors").unlink()


def truncate(step: Path) -> None:
    (step / "model.safetensors").write_bytes(b"weights")


def flip_a_bit(step: Path) -> None:
    data = (step / "model.safetensors").read_bytes()
    (step / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def damage_manifest(step: Path) -> None:
    (step / "manifest.json").write_bytes((step / "manifest.json").read_bytes().replace(b"config", b"c0nfig"))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (half_write, "half-written checkpoint: no manifest.json"),
        (lose_weights, "model.safetensors is missing"),
        (truncate, "model.safetensors is 7 bytes long"),
        (flip_a_bit, "model.safetensors differs"),
        (damage_manifest, "manifest.json does not match"),
        (shutil.rmtree, "not there"),
    ],
)
def test_a_damaged_checkpoint_is_refused_naming_the_file_and_the_newest_whole_one(tmp_path, harm, named):
    run = make_run(tmp_path / "run", steps=(50, 100, 200), best=200, last=200)
    harm(run / "step-00000200")
    harmed = [run, run / "best", None] + ([run / "step-00000200"] if harm is not shutil.rmtree else [])
    for path in harmed:
        error = refusal(path, tmp_path)
        assert named in error.what
        assert error.where == str(run / "step-00000200")
        assert error.remedy == f"the newest whole checkpoint is {run}/step-00000100"
        assert error.exit_code == ExitCode.BAD_DATA


def test_a_run_of_damaged_checkpoints_only_says_so(tmp_path):
    run = make_run(tmp_path / "run", steps=(50, 100), last=100)
    for step in (50, 100):
        flip_a_bit(run / f"step-{step:08d}")
    assert "none here is whole" in refusal(run, tmp_path).remedy
    (run / "last").unlink()
    error = refusal(run, tmp_path)
    assert error.what == f"the run {run} has no whole checkpoint"
    assert error.remedy == f"tiny-transformer doctor {run} says what is damaged; use another run"


def test_a_run_before_its_first_save_is_told_from_a_wrong_path(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("")
    run = tmp_path / "run"
    error = refusal(run, tmp_path)
    assert error.what == f"the run {run} has no whole checkpoint" and "--overwrite" in (error.remedy or "")
    with RunLock(run):
        error = refusal(run, tmp_path)
        assert error.what == f"the run {run} has not saved yet" and "until its first save" in (error.remedy or "")


def test_a_run_that_diverged_before_its_first_save_is_not_told_to_train_on(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("log.jsonl", "not_finite.json"):
        (tmp_path / "run" / name).write_text("{}")
    error = refusal(tmp_path / "run", tmp_path)
    assert error.what == f"the run {tmp_path / 'run'} diverged before its first checkpoint"
    assert error.remedy is not None and "learning_rate" in error.remedy and "until its first save" not in error.remedy


def test_config_without_weights_is_half_written(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert refusal(tmp_path / "model", tmp_path).what == "half-written checkpoint: config.json but no model.safetensors"


def test_finding_a_checkpoint_imports_no_torch():
    code = "import sys, tiny_transformer.models.find; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_without_a_best_is_told_of_its_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", last=200)
    assert refusal(run / "best").remedy == f"this run has {run / 'last'}"


# --- names
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with two runs in runs/."""
    for name in ("demo", "demo-long"):
        make_run(tmp_path / "runs" / name, best=100, last=200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "step", "link"),
    [("demo", 100, "demo/best"), ("demo/last", 200, "demo/last"), ("demo-l*", 100, "demo-long/best")],
)
def test_a_name_means_a_run(home, name, step, link):
    run = Path("runs") / link.split("/")[0]
    path, sentence = find_checkpoint(name)
    assert path == run / f"step-{step:08d}"
    assert sentence == f"using runs/{link} (step-{step:08d})"
    assert find_checkpoint(f"demo/step-{step:08d}")[0] == Path(f"runs/demo/step-{step:08d}")


def test_a_path_that_exists_wins_over_a_name_and_says_so(home):
    make_run(home / "demo", steps=(300,), best=300)
    path, sentence = find_checkpoint("demo")
    assert path == Path("demo/step-00000300")
    assert sentence == "using demo/best (step-00000300) (demo is a path here; the run of that name is runs/demo)"
    assert find_run("demo") == (Path("demo"), "demo is a path here; the run of that name is runs/demo")
    assert find_run("runs/demo") == (Path("runs/demo"), "")


def test_a_path_that_is_no_checkpoint_names_the_run_of_that_name(home):
    (home / "demo").mkdir()
    error = refusal(Path("demo"))
    assert error.what == "demo is not a checkpoint directory: no config.json"
    assert error.remedy == "the run of that name is runs/demo"


def test_an_unknown_name_lists_near_ones(home):
    error = refusal(Path("demo-lnog"))
    assert (error.what, error.remedy) == ("demo-lnog does not exist", "did you mean demo-long or demo?")
    assert error.exit_code == ExitCode.USAGE
    assert refusal(Path("zzz")).remedy.startswith("the newest checkpoint is runs/demo")
    assert refusal(Path("z*")).what == "z* does not exist"


def test_a_name_never_leads_out_of_the_runs(home):
    (home / "other").mkdir()  # which is runs/../other
    assert refusal(Path("../other")).what == "../other does not exist"
    assert refusal(Path("/demo")).what == "/demo does not exist"


def test_globs_name_several_runs_each_once_in_order(home):
    demo, long = Path("runs/demo"), Path("runs/demo-long")
    assert find_runs(["demo*"]) == ([demo, long], [])
    assert find_runs(["demo-long", "demo*", "runs/d*"]) == ([long, demo], [])
    assert find_runs([home / "runs" / "demo-*"])[0] == [home / "runs" / "demo-long"]
    error = refusal(Path("demo*"))
    assert (error.what, error.remedy) == (
        "demo* means 2 directories, and one is needed",
        "one of runs/demo, runs/demo-long",
    )


def test_a_pattern_means_runs_before_other_directories_that_fit_it(home):
    for name in ("data", "demo-notes"):
        (home / name).mkdir()
    (home / "runs" / "notes").mkdir()
    runs = [Path("runs/demo"), Path("runs/demo-long")]
    assert find_runs(["*"]) == (runs, [])
    assert find_runs(["demo*"]) == (runs, [])
    assert find_runs(["runs/*"]) == (runs, [])
    assert find_runs(["d?ta"]) == ([Path("data")], [])  # prepared data, for doctor and inspect
    make_run(home / "demo-here", steps=(300,), best=300)
    assert find_runs(["demo*"]) == ([Path("demo-here")], [])


def test_the_newest_run_is_the_one_that_was_written_to_last(home):
    (home / "runs" / "later").mkdir()
    for run in ("demo", "demo-long"):
        for entry in (home / "runs" / run).iterdir():
            set_age(entry, 500)
    set_age(home / "runs/demo/last", 100)
    assert newest_run() == Path("runs/demo")
    set_age(home / "runs/demo-long/step-00000100", 50)
    assert newest_run() == Path("runs/demo-long")
    with pytest.raises(UserError, match="there is no run in nowhere"):
        newest_run(Path("nowhere"))


def test_a_run_that_is_named_in_two_ways_is_one_run(home):
    demo, long = Path("runs/demo"), Path("runs/demo-long")
    assert find_runs(["demo", "demo-long", "runs/demo-long/../demo", home / "runs" / "demo"])[0] == [demo, long]


def test_prepared_data_is_no_checkpoint(home):
    with publish(home / "data") as staging:
        staging.write("meta.json", b"{}")
    error = refusal(Path("data"))
    assert error.what == "data holds prepared data and no model"
    assert "--data_dir data" in (error.remedy or "")
