"""Whose a run directory is, and what `--overwrite` costs when the new run cannot begin: rows D6, D10 and D15."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from run_helpers import run_tiny, tiny_request

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.stages import pretrain
from tiny_transformer.stages import run as stage
from tiny_transformer.stages.launch import launch
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.doctor import examine
from tiny_transformer.storage.replaced import REPLACED, claimed
from tiny_transformer.training import loop

SHORT = {"steps": 4, "eval_steps": None, "save_steps": 2}


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def contents(directory: Path) -> dict[str, bytes]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, work: Callable[[], object]) -> None:
    """Do something to the directory while the run is in a step."""
    inner = loop.update

    def update(job: loop.Job, state: loop.TrainState, *more: object):
        if state.step == step:
            work()
        return inner(job, state, *more)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(loop, "update", update)


def test_a_run_that_came_and_went_while_another_prepared_is_left_alone(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start looked before the second one trained; it gets the lock when the second one has ended."""
    request, fit = tiny_request(tiny_data, tmp_path / "r"), pretrain.fit_vocabulary

    def slow_start(*arguments: object):
        monkeypatch.setattr(pretrain, "fit_vocabulary", fit)
        run_tiny(tiny_data, tmp_path / "r", **SHORT)
        return fit(*arguments)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(pretrain, "fit_vocabulary", slow_start)
    with pytest.raises(UserError, match="already holds a run") as refused:
        launch(request, Console(file=io.StringIO()))
    assert refused.value.exit_code is ExitCode.USAGE
    assert examine(tmp_path / "r").ok
    run = RunDirectory(tmp_path / "r")
    assert [c.step for c in run.checkpoints()] == [2, 4] and len((run.path / "log.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("end", ["too large for the disk", "too large for the memory", "killed by a bug"])
def test_overwrite_that_ends_before_its_first_save_gives_the_old_run_back(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    run_tiny(tiny_data, tmp_path / "r", **SHORT)
    (tmp_path / "r/notes.txt").write_text("mine")
    before = contents(tmp_path / "r")

    def refuse(*_: object) -> None:
        raise UserError("no room", exit_code=ExitCode.IO) if "too large" in end else RuntimeError("a bug")

    monkeypatch.setattr(stage, {"t": "check_disk", "k": "announce"}[end[0]], refuse)
    if "memory" in end:
        monkeypatch.setattr("tiny_transformer.stages.launch.check_memory", refuse)
    with pytest.raises((UserError, RuntimeError)):
        run_tiny(tiny_data, tmp_path / "r", overwrite=True, steps=3, seed=5)
    assert contents(tmp_path / "r") == before
    assert (tmp_path / "r/last").readlink() == Path("step-00000004") and examine(tmp_path / "r").ok


def test_overwrite_removes_the_old_run_after_the_first_save_and_leaves_other_files(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    run_tiny(tiny_data, run, **SHORT)
    (run / "notes.txt").write_text("mine")
    at_step(monkeypatch, 1, lambda: seen.append((run / REPLACED / "step-00000004").exists()))
    at_step(monkeypatch, 2, lambda: seen.append((run / REPLACED).exists()))
    seen: list[bool] = []
    run_tiny(tiny_data, run, overwrite=True, **{**SHORT, "steps": 3, "seed": 5})
    assert seen == [True, False]
    assert names_in(run) >= {"notes.txt", "step-00000002", "step-00000003"}
    assert not names_in(run) & {REPLACED, ".replacing", "step-00000004"}


def test_figures_for_other_programs_and_rejected_checkpoints_are_replaced_and_put_back_too(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else TensorBoard would show the curves of two runs as one, and a rejected checkpoint count as the new run's."""
    run = tmp_path / "r"
    run_tiny(tiny_data, run, **SHORT)
    theirs = ("tensorboard/events.1", "wandb/run-1/files/x", "step-00000001.bad/config.json")
    for name in (*theirs, "mine/notes.txt", "step-1.bad"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    before = contents(run)
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_tiny(tiny_data, run, overwrite=True, **{**SHORT, "seed": 5})
    assert contents(run) == before
    at_step(monkeypatch, 0, lambda: seen.extend(run / name for name in theirs if (run / name).exists()))
    seen: list[Path] = []
    run_tiny(tiny_data, run, overwrite=True, **{**SHORT, "seed": 5})
    assert seen == [] and not [name for name in theirs if (run / name).exists()]
    assert (run / "mine/notes.txt").exists() and (run / "step-1.bad").exists()  # the user's


def killed_while_replacing(run: Path, at: int) -> None:
    """The process ends at one of the renames with which the old run is moved aside."""
    real, count = Path.rename, iter(range(100))

    def rename(self: Path, target: Path) -> Path:
        if next(count) == at:
            raise KeyboardInterrupt
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        directory = RunDirectory(run)
        with directory.lock(), claimed(directory, resume=False, overwrite=True):
            pass


@pytest.mark.parametrize("next_start", ["plain", "resume"])
def test_killed_at_any_rename_of_overwrite_the_old_run_is_found_again(
    tiny_data: Path, tmp_path: Path, next_start: str
) -> None:
    run_tiny(tiny_data, tmp_path / "old", **SHORT)
    before = contents(tmp_path / "old")
    for at in range(8):
        run = tmp_path / f"r{at}"
        shutil.copytree(tmp_path / "old", run, symlinks=True)
        try:
            killed_while_replacing(run, at)
        except KeyboardInterrupt:
            pass
        else:
            assert at == 7  # a mark, two checkpoints, three files, the folder
            break
        directory = RunDirectory(run)
        with directory.lock():
            if next_start == "plain":
                with pytest.raises(UserError, match="already holds a run"):
                    claimed(directory, resume=False, overwrite=False).__enter__()
            else:
                claimed(directory, resume=True, overwrite=False).__enter__()
        assert contents(run) == before, at


def remove_tree(run: Path) -> None:
    shutil.rmtree(run)


def rename(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def replace_by_copy(run: Path) -> None:
    shutil.copytree(run, run.with_name("copy"), symlinks=True)
    rename(run)
    run.with_name("copy").rename(run)


def remove_lock(run: Path) -> None:
    (run / ".lock").unlink()


def save_log_as_editors_do(run: Path) -> None:
    (run / "log.new").write_bytes((run / "log.jsonl").read_bytes())
    (run / "log.new").rename(run / "log.jsonl")


def remove_log(run: Path) -> None:
    (run / "log.jsonl").unlink()


@pytest.mark.parametrize(
    "work", [remove_tree, rename, replace_by_copy, remove_lock, save_log_as_editors_do, remove_log]
)
def test_a_directory_that_is_not_the_same_any_more_is_not_written_to(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], None]
) -> None:
    run, before = tmp_path / "r", {}

    def change() -> None:
        work(run)
        before.update(contents(run) if run.exists() else {})

    at_step(monkeypatch, 2, change)
    options = {**SHORT, "sample_prompts": ["Once"], "steps": 8, "log_steps": 8}
    monkeypatch.setattr(loop, "is_log_step", lambda step, log_steps: step % log_steps == 0)
    with pytest.raises(UserError) as refused:
        run_tiny(tiny_data, run, **options)
    assert refused.value.exit_code is ExitCode.IO and str(run) in str(refused.value.where)
    assert len(refused.value.lines()) == 3
    assert "removed" in refused.value.what or "No such file" in refused.value.what
    after = contents(run) if run.exists() else {}
    on_the_way = ("samples.json", "growth.json")  # may be written between two looks at the directory
    assert {k: v for k, v in after.items() if k not in on_the_way} == {
        k: v for k, v in before.items() if k not in on_the_way
    }
    if work in (remove_tree, rename):
        assert not run.exists()
