"""What a run directory promises when nothing goes wrong, and what publishing leaves on the disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from storage_harness import new_run

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.storage import Fs, RunDirectory, atomic_write, publish, read_manifest, verify
from tiny_transformer.storage.doctor import examine
from tiny_transformer.storage.temporary import in_the_making


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def put(run: RunDirectory, *steps: int) -> None:
    for step in steps:
        with run.publish_step(step) as staging:
            staging.write("model.safetensors", b"%d" % step)


def steps(run: RunDirectory) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def test_checkpoints_are_listed_by_step_and_links_resolve(run):
    assert run.checkpoints() == [] and run.resolve("last") is None and run.newest_whole() == (None, [])
    with run.lock():
        put(run, 2000, 100)
        run.point("last", 2000)
        run.point("best", 2000)
        run.point("best", 100)
    assert steps(run) == [100, 2000]
    assert run.step_path(2000).name == "step-00002000"
    assert run.resolve("last").path == run.step_path(2000) and run.resolve("best").step == 100
    assert str((run.path / "last").readlink()) == "step-00002000"  # relative: the run can be moved
    assert run.newest_whole()[0].manifest.info == {"step": 2000}
    assert {p.name for p in run.path.iterdir()} == {"step-00000100", "step-00002000", "last", "best", ".lock"}


def test_names_that_are_no_steps_are_ignored(run):
    with run.lock():
        put(run, 5)
    for name in ("step-5", "step-000000005", "step-0000000x", "step-00000005.bak", "other"):
        (run.path / name).mkdir()
    assert steps(run) == [5]


def test_link_to_something_else_is_refused(run):
    with run.lock():
        put(run, 1)
        with pytest.raises(UserError, match="nothing was published here"):
            run.point("last", 2)
        assert not (run.path / "last").is_symlink()
    (run.path / "last").symlink_to("../elsewhere")
    with pytest.raises(UserError, match="not a checkpoint of this run") as refused:
        run.resolve("last")
    assert refused.value.exit_code is ExitCode.BAD_DATA


@pytest.mark.parametrize(
    ("keep", "last", "best", "expected"),
    [
        (1, 5, None, [5]),
        (2, 5, None, [4, 5]),
        (1, 5, 2, [2, 5]),
        (1, 3, 1, [1, 3, 5]),
        (9, 5, None, [1, 2, 3, 4, 5]),
        (5, 5, None, [1, 2, 3, 4, 5]),
    ],
)
def test_prune_keeps_newest_and_linked(run, keep, last, best, expected):
    with run.lock():
        put(run, 1, 2, 3, 4, 5)
        run.point("last", last)
        if best:
            run.point("best", best)
        assert run.prune(keep) == [step for step in range(1, 6) if step not in expected]
        with pytest.raises(ValueError, match="at least 1"):
            run.prune(0)
    assert steps(run) == expected and examine(run.path).ok


def test_prune_never_removes_the_only_whole_checkpoint(run):
    with run.lock():
        put(run, 1, 2, 3, 4)
        for step in (3, 4):
            (run.step_path(step) / "model.safetensors").write_bytes(b"?")
        assert run.prune(1) == [1, 3]
        assert run.newest_whole()[0].step == 2
        (run.step_path(2) / "model.safetensors").write_bytes(b"?")
        assert run.prune(1) == []
        assert steps(run) == [2, 4]


def test_whole_checkpoint_is_never_replaced_and_a_damaged_one_is(run):
    with run.lock():
        put(run, 1)
        with pytest.raises(UserError, match="already there"):
            put(run, 1)
        (run.step_path(1) / "model.safetensors").write_bytes(b"?")
        put(run, 1)
    assert verify(run.step_path(1)) and {p.name for p in run.path.iterdir()} == {"step-00000001", ".lock"}


def test_leftovers_are_removed_and_nothing_else(run):
    with run.lock():
        put(run, 1)
        (run.path / ".tmp-step-00000002-abc" / "trainer_state").mkdir(parents=True)
        (run.path / ".tmp-step-00000002-abc" / "trainer_state" / "x").write_text("x")
        (run.path / ".tmp-last-abc").symlink_to("step-00000002")
        (run.path / ".tmp-config.yaml-abc").write_text("x")
        (run.path / "mine.tmp").write_text("x")
        assert run.clean_leftovers() == [".tmp-config.yaml-abc", ".tmp-last-abc", ".tmp-step-00000002-abc"]
        assert run.clean_leftovers() == []
    assert {p.name for p in run.path.iterdir()} == {"step-00000001", ".lock", "mine.tmp"}


def test_exception_in_the_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), publish(tmp_path / "data") as staging:
        staging.write("a", "b")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_existing_directory_is_in_the_way_unless_empty(tmp_path):
    (tmp_path / "data").mkdir()
    with publish(tmp_path / "data") as staging:
        staging.write("a", "1")
    with pytest.raises(UserError, match="already there") as refused, publish(tmp_path / "data"):
        pass
    assert refused.value.exit_code is ExitCode.USAGE
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="already there"), publish(tmp_path / "file"):
        pass
    assert verify(tmp_path / "data").files["a"].size_bytes == 1
    assert {p.name for p in tmp_path.iterdir()} == {"data", "file"}


def test_replaced_directory_keeps_its_open_files(tmp_path):
    for content in ("old", "new"):
        with publish(tmp_path / "data", replace=True) as staging:
            staging.write("train.bin", content)
        if content == "old":
            reader = (tmp_path / "data" / "train.bin").open()
    assert reader.read() == "old" and (tmp_path / "data" / "train.bin").read_text() == "new"
    reader.close()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_link_to_a_directory_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("disk/data")
    with publish(tmp_path / "link") as staging:
        staging.write("a", "1")
    assert (tmp_path / "link").is_symlink() and verify(tmp_path / "disk" / "data") == verify(tmp_path / "link")


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_modes_follow_the_umask_whoever_wrote_the_file(tmp_path, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        with publish(tmp_path / "data") as staging:
            staging.write("sub/ours", "1")
            fd = os.open(staging / "private", os.O_WRONLY | os.O_CREAT, 0o600)  # as safetensors does
            os.close(fd)
        atomic_write(tmp_path / "config.yaml", "a: 1\n")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    folders = {"data": folder_mode, "sub": folder_mode}
    assert modes == folders | dict.fromkeys(["ours", "private", "manifest.json", "config.yaml"], file_mode)


def test_safetensors_written_by_the_library_are_published(tmp_path):
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import load_file, save, save_file

    tensors = {"a": numpy.arange(6, dtype=numpy.float32).reshape(2, 3)}
    with publish(tmp_path / "step") as staging:
        save_file(tensors, staging / "by_library.safetensors")
        staging.write("by_us.safetensors", save(tensors))
    assert sorted(verify(tmp_path / "step").files) == ["by_library.safetensors", "by_us.safetensors"]
    for name in ("by_library", "by_us"):
        assert (load_file(tmp_path / "step" / f"{name}.safetensors")["a"] == tensors["a"]).all()


def test_file_in_pieces_equals_the_file_at_once(tmp_path):
    with publish(tmp_path / "data", info={"seq_len": 8}) as staging:
        staging.write("pieces", (bytes([i]) * 1000 for i in range(5)))
        staging.write("once", b"".join(bytes([i]) * 1000 for i in range(5)))
        staging.write("view", memoryview(bytearray(b"xyz")))
        staging.write("empty", b"")
        assert os.fspath(staging) == str(staging.path)
    manifest = verify(tmp_path / "data")
    assert manifest.files["pieces"] == manifest.files["once"] and manifest.files["once"].size_bytes == 5000
    assert manifest.files["view"].size_bytes == 3 and manifest.files["empty"].size_bytes == 0
    assert manifest.info == {"seq_len": 8} and manifest.size_bytes == 10_003
    assert read_manifest(tmp_path / "data") == manifest
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["format"] == 1


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "", ".", "a//b", "a/", "x\0"])
def test_names_outside_the_directory_are_refused(tmp_path, name):
    with publish(tmp_path / "data") as staging, pytest.raises(ValueError, match="not a name inside"):
        staging.write(name, "x")


def test_links_and_pipes_cannot_be_published(tmp_path):
    with pytest.raises(ValueError, match="only files and folders"), publish(tmp_path / "data") as staging:
        (staging / "link").symlink_to("/etc/passwd")
    assert list(tmp_path.iterdir()) == []


def test_file_changed_behind_our_back_is_not_saved(tmp_path):
    """`write` told what was meant; another hand put something else there before the block ended."""
    with pytest.raises(UserError, match="not what was written") as refused, publish(tmp_path / "data") as staging:
        staging.write("a", "meant")
        (staging / "a").write_text("other")
    assert refused.value.exit_code is ExitCode.IO and list(tmp_path.iterdir()) == []


def test_removed_file_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="not there"), publish(tmp_path / "data") as staging:
        staging.write("a", "meant")
        (staging / "a").unlink()


def test_atomic_write_replaces_a_file(tmp_path):
    for text in ("first", "second"):
        atomic_write(tmp_path / "deep" / "report.html", text)
        assert (tmp_path / "deep" / "report.html").read_text() == text
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_missing_disk_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    for use in (
        lambda p: publish(p).__enter__(),
        lambda p: atomic_write(p, "x"),
        lambda p: RunDirectory(p).lock().__enter__(),
    ):
        with pytest.raises(UserError) as refused:
            use(tmp_path / "file" / "below")
        assert refused.value.exit_code is ExitCode.IO and len(refused.value.lines()) == 3


def test_reading_asks_the_disk_each_time(tmp_path):
    """No step is remembered: what another process publishes or removes is seen at once."""
    run = RunDirectory(tmp_path / "run")
    new_run(run.path)
    assert run.newest_whole()[0].step == 3
    (run.step_path(3) / "config.json").write_text("")
    assert run.newest_whole()[0].step == 2
    assert Fs().names(run.path) == [".lock", "best", "last", "step-00000001", "step-00000002", "step-00000003"]


@pytest.mark.clock
def test_import_is_cheap_and_needs_no_tensor_library(repository):
    code = (
        "import time, sys; begin = time.process_time(); import tiny_transformer.storage\n"
        "print(time.process_time() - begin, sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True).stdout
        for _ in range(5)
    ]
    assert all(output.split(None, 1)[1].strip() == "[]" for output in outputs)
    assert min(float(output.split()[0]) for output in outputs) < 0.1  # 0.04 s measured


def test_the_newest_whole_checkpoint_before_a_step(run):
    with run.lock():
        put(run, 3, 5, 9)
    for before, expected in ((10, 9), (9, 5), (4, 3), (3, None)):
        found, damaged = run.newest_whole(before=before)
        assert (found.step if found else None, damaged) == (expected, [])


def test_only_what_is_read_is_verified(tmp_path, monkeypatch):
    """`generate` does not read what only `--resume` needs; `--resume` reads all of it."""
    run = RunDirectory(tmp_path / "run")
    new_run(run.path)
    read = []
    real = Fs.read
    monkeypatch.setattr(Fs, "read", lambda self, path: read.append(path.name) or real(self, path))
    find_checkpoint(run.path / "last")
    assert read.count("model.safetensors") == 1 and "optimizer.safetensors" not in read
    (run.step_path(3) / "trainer_state" / "optimizer.safetensors").write_bytes(b"?")
    assert find_checkpoint(run.path / "last")[0] == run.step_path(3)
    assert run.newest_whole()[0].step == 2
    (run.step_path(3) / "model.safetensors").write_bytes(b"?")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        find_checkpoint(run.path / "last")


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_a_killed_publish_left_is_removed_by_the_next_one_and_a_living_one_s_is_not(tmp_path, kind):
    """Exports and imports: their folder belongs to nobody, so nobody cleans it up."""
    (tmp_path / ".tmp-data-0123456789ab").mkdir()
    (tmp_path / ".tmp-data-0123456789ab" / "part").write_text("x")
    (tmp_path / ".tmp-data-0123456789ac").write_text("x")
    (tmp_path / ".tmp-other-0123456789ab").mkdir()
    make = Path.mkdir if kind == "directory" else Path.touch
    with in_the_making(tmp_path / "data", make) as living:
        with publish(tmp_path / "data") as staging:
            staging.write("a", "1")
        assert {path.name for path in tmp_path.iterdir()} == {"data", ".tmp-other-0123456789ab", living.name}
    with publish(tmp_path / "data", replace=True) as staging:
        staging.write("a", "2")
    assert {path.name for path in tmp_path.iterdir()} == {"data", ".tmp-other-0123456789ab"}


def test_killed_between_the_two_renames_of_a_replacement_the_old_directory_stays(tmp_path):
    with publish(tmp_path / "data") as staging:
        staging.write("a", "old")
    (tmp_path / "data").rename(tmp_path / ".tmp-data-0123456789ab")
    with pytest.raises(KeyboardInterrupt), publish(tmp_path / "data"):
        raise KeyboardInterrupt
    assert verify(tmp_path / ".tmp-data-0123456789ab")
