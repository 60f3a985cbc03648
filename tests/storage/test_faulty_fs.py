"""Every operation of a save fails, is lost, or is the last one of the process; and the power goes after every one.

Rows D3, D4, D7, D8 and D9 of the reliability table without strace and without root: fast, and exact about the operation.
"""

from __future__ import annotations

import copy
import errno
import tempfile
from pathlib import Path

import pytest
from power_model import Directory, Recorder, build, load, play, survivors
from storage_harness import (
    CHANGES,
    Acknowledged,
    Watched,
    attempt,
    every_operation,
    half_writing,
    losing,
    new_run,
    refusing,
    save,
    stopping,
    violations,
)

from tiny_transformer.storage import RunDirectory, atomic_write, publish, verify


def check_refusals(folder: Path, save_step=save, code: int = errno.EIO, persistent: bool = False) -> list[str]:
    """A fault at every operation: what was acknowledged is whole, a failed fsync is never acknowledged."""
    found, num_positions = [], 0
    make_fs = lambda at: refusing(at, code, persistent=persistent)  # noqa: E731
    for at, path, acknowledged, outcome in every_operation(folder, make_fs, save_step):
        num_positions += 1
        name = outcome.watched.names_called[at]
        found += [f"operation {at} ({name}) refused: {text}" for text in violations(path, acknowledged)]
        if name.startswith("fsync") and outcome.error is None:
            found.append(f"operation {at} ({name}) refused and nobody told")
        if outcome.error is None and 4 not in acknowledged.saved:
            found.append(f"operation {at} ({name}) refused: no error, no save")
    assert num_positions > 40
    return found


def check_stops(folder: Path, save_step=save) -> list[str]:
    """The process ends at every operation; the next save then succeeds and leaves nothing behind."""
    found = []
    for at, path, acknowledged, _ in every_operation(folder, stopping, save_step):
        found += [f"stopped at operation {at}: {text}" for text in violations(path, acknowledged)]
        newest, _ = RunDirectory(path).newest_whole()
        if newest.step not in acknowledged.saved:  # the next process finds it and goes on from there
            acknowledged.note(Watched(), "saved", newest.step)
        save_step(path, 5, acknowledged, Watched())
        found += [f"next save after a stop at operation {at}: {text}" for text in violations(path, acknowledged)]
        found += [f"left after a stop at operation {at}: {left}" for left in path.glob(".tmp-*")]
    return found


def check_lost(folder: Path, save_step=save) -> list[str]:
    """Every operation in turn is reported done and not done: noticed, or without effect on what was acknowledged."""
    found = []
    for at, path, acknowledged, outcome in every_operation(folder, losing, save_step):
        name = outcome.watched.names_called[at]
        found += [f"operation {at} ({name}) lost: {text}" for text in violations(path, acknowledged)]
    return found


def check_power_cuts(
    base: Path, before: Directory, log: list, acknowledged: Acknowledged, run: str
) -> tuple[list[str], int]:
    """The judge's findings over everything a power cut after each operation may leave, and the number of states judged."""
    root, found, judged = before, [], {}
    for cut in range(len(log) + 1):
        known = acknowledged.before(cut)
        for tree in survivors(root):
            key = repr((tree, known.saved, known.links))
            if key not in judged:
                path = Path(tempfile.mkdtemp(dir=base.parent)) / "after"
                build(tree, path)
                judged[key] = violations(path / run, known)
                found += [f"cut before operation {cut}: {text}" for text in judged[key]]
        if cut < len(log):
            play(root, base, log[cut])
    return found, len(judged)


def recorded_save(base: Path, save_step=save) -> tuple[Directory, list, Acknowledged]:
    """A run with three checkpoints as the disk has it, the operations of a fourth save, and what was acknowledged."""
    base.mkdir()
    acknowledged = new_run(base / "run")
    before, recorder = load(base), Recorder()
    save_step(base / "run", 4, acknowledged, recorder)
    return before, recorder.log, acknowledged


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_refused_operation_never_costs_an_acknowledged_checkpoint(tmp_path, code, persistent):
    assert check_refusals(tmp_path, code=code, persistent=persistent) == []


def test_stop_at_every_operation_keeps_what_was_acknowledged(tmp_path):
    assert check_stops(tmp_path) == []


def test_lost_operations_are_noticed(tmp_path):
    assert check_lost(tmp_path) == []


def test_every_lost_write_is_reported(tmp_path):
    """But for the file of a library, whose bytes nobody told us: that one is hashed as it arrived."""
    num_reported = 0
    for at, _, acknowledged, outcome in every_operation(tmp_path, losing):
        if outcome.watched.names_called[at] == "write" and 4 not in acknowledged.saved:
            assert "not what was written" in outcome.error.what
            num_reported += 1
    assert num_reported == 5  # four files and the manifest


def test_half_writes_are_completed(tmp_path):
    acknowledged = new_run(tmp_path / "run")
    outcome = attempt(tmp_path / "run", acknowledged, half_writing(), 0)
    assert outcome.error is None and violations(tmp_path / "run", acknowledged) == []
    assert outcome.watched.names_called.count("write") > 20


def test_full_disk_names_path_reason_and_size(tmp_path):
    acknowledged = new_run(tmp_path / "run")

    def full(index, name, args):
        if name == "write" and len(args[1]) == 400:
            raise OSError(errno.ENOSPC, "No space left on device")

    outcome = attempt(tmp_path / "run", acknowledged, Watched(full), 0)
    assert outcome.error is not None
    assert "No space left on device (writing 400 bytes)" in outcome.error.what
    assert "model.safetensors" in outcome.error.where and "free space" in outcome.error.remedy
    assert sorted(p.name for p in (tmp_path / "run").glob("step-*")) == [f"step-{s:08d}" for s in (1, 2, 3)]
    assert list((tmp_path / "run").glob(".tmp-*")) == []


def test_power_cut_after_every_operation_keeps_what_was_acknowledged(tmp_path):
    base = tmp_path / "base"
    found, num_states = check_power_cuts(base, *recorded_save(base), "run")
    assert found == [] and num_states >= 10


def test_power_cut_during_the_first_save_of_a_new_run(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    before, recorder, acknowledged = load(base), Recorder(), Acknowledged()
    save(base / "runs" / "new", 1, acknowledged, recorder)
    found, num_states = check_power_cuts(base, before, recorder.log, acknowledged, "runs/new")
    assert found == [] and num_states >= 4


def test_each_fsync_is_needed(tmp_path):
    """Leaving any single fsync out of the recorded operations shows in the power-cut model."""
    base = tmp_path / "base"
    before, log, acknowledged = recorded_save(base)
    positions = [i for i, (name, _) in enumerate(log) if name.startswith("fsync")]
    assert len(positions) == 11
    for position in positions:
        # The operation keeps its place (so acknowledgements keep theirs) and does nothing.
        without = [("lstat", args) if i == position else (name, args) for i, (name, args) in enumerate(log)]
        found, _ = check_power_cuts(base, copy.deepcopy(before), without, acknowledged, "run")
        assert found, f"operation {position}, {log[position]}, can be left out unnoticed"


@pytest.mark.parametrize("make_fs", [refusing, stopping, losing])
def test_atomic_write_leaves_old_or_new_bytes(tmp_path, make_fs):
    target = tmp_path / "config.yaml"
    for at in range(100):
        target.write_text("old")
        fs = make_fs(at)
        try:
            atomic_write(target, "new", fs)
            assert target.read_text() == "new" or fs.names_called[at] in CHANGES
        except BaseException as error:
            assert not isinstance(error, OSError)
            assert target.read_text() in ("old", "new")
        if fs.count <= at:
            break
    assert target.read_text() == "new" and at > 5


@pytest.mark.parametrize("make_fs", [refusing, losing])
def test_replaced_directory_is_old_or_new(tmp_path, make_fs):
    """`publish(replace=True)` under a fault at every operation: one of the two is there whole, never none or half."""
    for at in range(200):
        path = tmp_path / f"{at}" / "data"
        with publish(path, info={"version": "old"}) as staging:
            staging.write("train.bin", b"old")
        fs = make_fs(at)
        try:
            with publish(path, info={"version": "new"}, replace=True, fs=fs) as staging:
                staging.write("train.bin", b"newer")
            saved = True
        except Exception:
            saved = False
        assert verify(path).info["version"] == ("new" if saved else "old")
        if fs.count <= at:
            break
    assert at > 20


def test_failed_fsync_starts_the_next_save_in_a_new_directory(tmp_path):
    acknowledged = new_run(tmp_path / "run")
    created = []

    def before(index, name, args):
        if name == "mkdir":
            created.append(args[0])
        if name == "fsync" and len(created) <= 2:
            raise OSError(errno.EIO, "Input/output error")

    watched = Watched(before)
    assert attempt(tmp_path / "run", acknowledged, watched, 0).error is not None
    assert watched.names_called.count("fsync") == 1  # not tried a second time
    assert attempt(tmp_path / "run", acknowledged, watched, 0).error is None
    assert len({path.parent if path.name == "trainer_state" else path for path in created}) == 2
    assert violations(tmp_path / "run", acknowledged) == []
    assert RunDirectory(tmp_path / "run").resolve("last").step == 4
