"""A run goes on from another directory, under another name, from a copy, and on a disk without symbolic links."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from run_helpers import TINY, fingerprint, prepare_tiny, run_tiny, tiny_request

from tiny_transformer.cli import run as command_line
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.reports.run_reader import read_checkpoints, state_of
from tiny_transformer.stages.replay import replay
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.doctor import examine
from tiny_transformer.storage.lock import owner_record

OPTIONS = {"steps": 8, "save_steps": 4, "eval_steps": 4, "schedule": "constant", "warmup_steps": 0}


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps, and `whole`, one of 12 that was never moved."""
    directory = tmp_path_factory.mktemp("moved")
    run_tiny(tiny_data, directory / "r", **OPTIONS)
    shutil.copytree(directory / "r", directory / "whole", symlinks=True)
    run_tiny(tiny_data, directory / "whole", resume=True, **{**OPTIONS, "steps": 12})
    return directory


def check_everybody(run: Path, last: int, best: int) -> None:
    """Every reader finds the same checkpoints behind the marks."""
    directory = RunDirectory(run)
    assert [c.step for name in ("last", "best") if (c := directory.resolve(name))] == [last, best]
    for name, step in (("last", last), ("best", best)):
        found, sentence = find_checkpoint(run / name)
        assert found in (run / f"step-{step:08d}", run / name) and name in sentence
    assert find_checkpoint(run)[0].resolve() in ((run / f"step-{best:08d}").resolve(), (run / "best").resolve())
    assert find_checkpoint(None, run.parent)[1].endswith(f"the newest best in {run.parent}")
    shown = {c.step: (c.is_last, c.is_best) for c in read_checkpoints(run)}
    assert shown[last][0] and shown[best][1] and sum(a for a, _ in shown.values()) == 1
    assert examine(run).ok, examine(run).lines()


# --- another working directory ----------------------------------------------------------------------------------------


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two directories; in the first one data and a run, made with relative paths."""
    home, other = tmp_path / "A", tmp_path / "B"
    home.mkdir()
    other.mkdir()
    prepare_tiny(home / "dat")
    monkeypatch.chdir(home)
    tree = {**TINY, "data": {**TINY["data"], "data_dir": "dat"}, "training": {**TINY["training"], **OPTIONS}}
    Path("tiny.yaml").write_text(yaml.safe_dump(tree))
    assert command_line(["train", "--config", "tiny.yaml", "--out_dir", "runs/x"]) == ExitCode.OK
    monkeypatch.chdir(other)
    return home, other


def test_resumed_from_another_directory_a_run_finds_its_data_and_prepares_none(
    homes: tuple[Path, Path], trained: Path
) -> None:
    home, other = homes
    assert "# started in ../..; relative paths are meant from there\n" in (home / "runs/x/config.yaml").read_text()
    assert command_line(["train", "--resume", "--out_dir", "../A/runs/x", "--steps", "12"]) == ExitCode.OK
    assert list(other.iterdir()) == []
    assert fingerprint(home / "runs/x") == fingerprint(trained / "whole")
    gradient = replay(Path("../A/runs/x"), 11, Console(file=io.StringIO()))
    logged = [json.loads(line) for line in (home / "runs/x/log.jsonl").read_text().splitlines()]
    assert gradient.loss == logged[10]["loss"]


def test_resumed_from_elsewhere_and_then_renamed_or_moved_with_all_around_it_a_run_still_finds_its_data(
    homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = homes
    assert command_line(["train", "--resume", "--out_dir", "../A/runs/x", "--steps", "9"]) == ExitCode.OK
    (home / "runs/x").rename(home / "runs/y")
    monkeypatch.chdir(home)
    assert command_line(["train", "--resume", "--out_dir", "runs/y", "--steps", "10"]) == ExitCode.OK
    monkeypatch.chdir(other)
    assert command_line(["train", "--resume", "--out_dir", "../A/runs/y", "--steps", "11"]) == ExitCode.OK
    shutil.move(home.parent, home.parent.with_name("elsewhere"))
    monkeypatch.chdir(home.parent.with_name("elsewhere") / "A")
    assert command_line(["train", "--resume", "--out_dir", "runs/y", "--steps", "12"]) == ExitCode.OK


def test_a_name_that_looks_like_markup_is_shown_as_it_is(
    homes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = homes[1] / "r[/red]x"
    shutil.copytree(homes[0] / "runs/x", run, symlinks=True)
    where = str(run)
    for words in (
        ["generate", "--ckpt", where, "--max_new_tokens", "2"],
        ["evaluate", where, "--data_dir", "../A/dat"],
        ["export", where, "--gguf", "f32"],
    ):
        code = command_line(words)
        shown = "".join(capsys.readouterr())
        assert code == ExitCode.OK, shown
        assert "r[/red]x" in shown.replace("\n", "")
    info = json.loads((run / "last/run_info.json").read_text())
    (run / "last/run_info.json").write_text(json.dumps(info | {"status": "stopped"}))
    command_line(["train", "--continue", "--out_dir", "r[/red]x"])
    shown = "".join(capsys.readouterr())
    assert "This is a bug" not in shown and "r[/red]x was interrupted" in shown.replace("\n", " ")


def test_other_data_of_the_same_name_here_is_not_taken(homes: tuple[Path, Path], trained: Path) -> None:
    home, other = homes
    assert command_line(["prepare", "--out_dir", "dat", "--tokenizer", "byte", "--max_bytes", "9000"]) == ExitCode.OK
    before = sorted(other.rglob("*"))
    assert command_line(["train", "--resume", "--out_dir", "../A/runs/x", "--steps", "12"]) == ExitCode.OK
    assert fingerprint(home / "runs/x") == fingerprint(trained / "whole") and sorted(other.rglob("*")) == before


def test_data_that_is_nowhere_is_named_with_the_way_out(homes: tuple[Path, Path]) -> None:
    home, other = homes
    (home / "dat").rename(home / "moved")
    for source in ([], ["--config", "../A/tiny.yaml"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["tiny-transformer"])
            screen = io.StringIO()
            patch.setattr("typer.echo", lambda text, err=False, screen=screen: screen.write(str(text)))
            arguments = ["train", *source, "--resume", "--out_dir", "../A/runs/x", "--steps", "12"]
            assert command_line(arguments) == ExitCode.USAGE
        assert "the data of this run, dat, is missing" in screen.getvalue()
        assert "--resume --data_dir DIR" in screen.getvalue()
    assert list(other.iterdir()) == []
    with pytest.raises(UserError, match="is missing"):
        replay(Path("../A/runs/x"), 3, Console(file=io.StringIO()))
    arguments = ["train", "--resume", "--out_dir", "../A/runs/x", "--data_dir", "../A/moved", "--steps", "12"]
    assert command_line(arguments) == ExitCode.OK


@pytest.mark.parametrize("step", [3, 7])
def test_replay_refuses_data_that_the_run_was_not_trained_on(homes: tuple[Path, Path], step: int) -> None:
    """Step 3 lies before every checkpoint that is left: there nothing would be loaded, and nothing compared."""
    home, _ = homes
    shutil.rmtree(home / "dat")
    prepared = ["prepare", "--out_dir", str(home / "dat"), "--tokenizer", "byte", "--max_bytes", "9000"]
    assert command_line(prepared) == ExitCode.OK
    with pytest.raises(
        UserError, match=r"not what the run was trained on: the data \(hash of train\.bin\) was"
    ) as told:
        replay(home / "runs/x", step, Console(file=io.StringIO()))
    assert told.value.exit_code is ExitCode.USAGE


# --- copies -----------------------------------------------------------------------------------------------------------


def cp(*options: str) -> Callable[[Path, Path], Any]:
    return lambda source, target: subprocess.run(["cp", *options, str(source), str(target)], check=True)


def zipped(source: Path, target: Path) -> None:
    """As programs do that follow links."""
    with zipfile.ZipFile(target.with_suffix(".zip"), "w") as archive:
        for folder, _, names in os.walk(source, followlinks=True):
            for name in names:
                archive.write(Path(folder, name), Path(folder, name).relative_to(source))
    with zipfile.ZipFile(target.with_suffix(".zip")) as archive:
        archive.extractall(target)


def links_as_text(source: Path, target: Path) -> None:
    """As `zip -y` and version control do, unpacked where there are no links: the target's name, and no line's end."""
    shutil.copytree(source, target, symlinks=True)
    for name in ("last", "best"):
        leads_to = str((target / name).readlink())
        (target / name).unlink()
        (target / name).write_text(leads_to)


def without_marks(source: Path, target: Path) -> None:
    """As programs do that leave links out."""
    shutil.copytree(source, target, symlinks=True)
    for name in ("last", "best"):
        (target / name).unlink()


@pytest.mark.parametrize("copy", [cp("-r"), cp("-rL"), cp("-a"), cp("-al"), zipped, links_as_text, without_marks])
def test_a_copy_is_read_and_goes_on_however_it_was_made(
    copy: Callable[[Path, Path], Any], tiny_data: Path, trained: Path, tmp_path: Path
) -> None:
    copy(trained / "r", tmp_path / "copy")
    if copy is not without_marks:
        check_everybody(tmp_path / "copy", last=8, best=8)
    run_tiny(tiny_data, tmp_path / "copy", resume=True, **{**OPTIONS, "steps": 12})
    assert fingerprint(tmp_path / "copy") == fingerprint(trained / "whole")
    assert {name: (tmp_path / "copy" / name).readlink() for name in ("last", "best")} == {
        name: (trained / "whole" / name).readlink() for name in ("last", "best")
    }
    assert not list((tmp_path / "copy").glob(".tmp-*")) and examine(tmp_path / "copy").ok


def test_of_a_copy_only_the_best_is_left(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "r", tmp_path / "r")  # links become directories
    for step in (4, 8):
        shutil.rmtree(tmp_path / f"r/step-{step:08d}")
    assert find_checkpoint(tmp_path / "r")[0] == tmp_path / "r/best"
    assert find_checkpoint(tmp_path / "r/best")[0] == tmp_path / "r/best"


# --- disks without links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_links_marks_are_text(
    code: int, tiny_data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(os, "symlink", refuse)
    run = tmp_path / "runs" / "r"
    run_tiny(tiny_data, run, **OPTIONS)
    assert (run / "last").read_text() == "step-00000008\n" and not (run / "last").is_symlink()
    check_everybody(run, last=8, best=8)
    run_tiny(tiny_data, run, resume=True, **{**OPTIONS, "steps": 12})
    assert fingerprint(trained / "whole") == {
        name: (run / "step-00000012" / name).read_bytes() for name in fingerprint(trained / "whole")
    }
    check_everybody(run, last=12, best=12)


@pytest.mark.parametrize("text", ["", "step-00000099", "../elsewhere", "nonsense", "step-8", "x" * 10_000, "\0\0"])
def test_a_text_that_names_no_checkpoint_is_told(text: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "r", tmp_path / "r", symlinks=True)
    (tmp_path / "r/best").unlink()
    (tmp_path / "r/best").write_text(text)
    assert not examine(tmp_path / "r").ok
    with pytest.raises(UserError) as refused:
        find_checkpoint(tmp_path / "r/best")
    assert refused.value.exit_code in (ExitCode.USAGE, ExitCode.BAD_DATA)
    with pytest.raises(UserError):
        RunDirectory(tmp_path / "r").resolve("best")


# --- another machine --------------------------------------------------------------------------------------------------


def test_the_name_of_a_dead_owner_on_another_host_shows_no_run_as_running(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "r", tmp_path / "r", symlinks=True)
    for host, boot in (("elsewhere", "another"), (os.uname().nodename, "another"), ("renamed", None)):
        record = {**owner_record(os.getpid()), "host": host, **({"boot_id": boot} if boot else {"pid": 1 << 22})}
        (tmp_path / "r/.lock").write_text(json.dumps(record))
        assert state_of(tmp_path / "r", read_checkpoints(tmp_path / "r")) == "finished"


def test_a_checkpoint_says_nothing_of_where_it_was_made(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = tiny_request(tiny_data, tmp_path / "r", **{**OPTIONS, "steps": 4})
    secrets = ["--hf_token", "CANARY-1", "--api-key=CANARY-2", "wandb_api_key=CANARY-3", str(tmp_path / "sub/CANARY-4")]
    monkeypatch.setenv("HOME", str(tmp_path))
    object.__setattr__(request, "command", ["/usr/home/someone/bin/tt", "train", "--max_tokens", "7", *secrets])
    from tiny_transformer.stages.launch import launch

    launch(request, Console(file=io.StringIO()))
    texts = [path.read_bytes() for path in (tmp_path / "r/step-00000004").rglob("*") if path.is_file()]
    assert not any(str(tmp_path).encode() in text or str(tiny_data).encode() in text for text in texts)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file())
    assert b"someone" not in everything
    assert not any(f"CANARY-{number}".encode() in everything for number in (1, 2, 3))
    command = json.loads((tmp_path / "r/last/run_info.json").read_text())["command"]
    assert command[:4] == [".../bin/tt", "train", "--max_tokens", "7"]
    assert command[4:] == ["--hf_token", "***", "--api-key=***", "wandb_api_key=***", "~/sub/CANARY-4"]


def test_a_value_that_looks_like_a_secret_is_not_echoed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--hf_token", "CANARY"], ["--hf_token=CANARY"], ["training.api_key=CANARY"]):
        assert command_line(["train", *words]) == ExitCode.USAGE
        told = capsys.readouterr()
        assert "CANARY" not in told.out + told.err and "unknown key" in told.err
