"""Every operation of a save fails, is lost, or is the last one of the process; and the power goes after every one.

Rows D3, D4, D7, D8 and D9 of the reliability table, without strace and without root: fast, exact about the operation.
"""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import suppress
from itertools import count

import pytest
from power_model import Recorder, check_power_cuts, leave_out, load, recorded_save
from storage_harness import (
    CHANGES,
    Acknowledged,
    Killed,
    Watched,
    attempt,
    check_lost,
    check_refusals,
    check_stops,
    half_writing,
    losing,
    new_run,
    next_save,
    refusing,
    save,
    stopping,
    violations,
)

from tiny_transformer.errors import UserError
from tiny_transformer.storage import RunDirectory, atomic_write, publish, verify


@pytest.mark.parametrize(("code", "persistent"), [(errno.EIO, False), (errno.ENOSPC, True)])
def test_refused_operation_never_costs_an_acknowledged_checkpoint(tmp_path, code, persistent):
    assert list(check_refusals(tmp_path, code=code, persistent=persistent)) == []


def test_stop_at_every_operation_keeps_what_was_acknowledged(tmp_path):
    assert list(check_stops(tmp_path)) == []


def test_lost_operations_are_noticed(tmp_path):
    """Every lost write is reported, but for a library's file, whose bytes nobody told us: it is hashed as it is."""
    tally: Counter = Counter()
    assert list(check_lost(tmp_path, tally=tally)) == []
    assert tally["write", "reported"] == 5  # four files and the manifest
    assert tally["write", "passed"] == 1
    assert tally["rename", "passed"] == 1  # hiding what is pruned: it simply stays


@pytest.mark.parametrize("make_fs", [refusing, stopping])
def test_first_save_of_a_new_run_under_faults(tmp_path, make_fs):
    """The directories above the run are made, too; the next try succeeds whatever the first one left."""
    for at in count():
        path, acknowledged, fs = tmp_path / f"{at}" / "runs" / "new", Acknowledged(), make_fs(at)
        with suppress(UserError, Killed):
            save(path, 1, acknowledged, fs)
        assert violations(path, acknowledged) == []
        if fs.count <= at:
            break
        assert next_save(path, 2, acknowledged) == []
    assert at > 50


def test_a_refusal_names_the_file_and_not_the_hidden_one_on_its_way(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing/talk.json", tmp_path / "file/talk.json"):
        with pytest.raises(UserError, match="cannot write") as refused:
            atomic_write(path, "{}", makes_parents=False)
        assert refused.value.where == str(path)


def test_half_writes_are_completed(tmp_path):
    acknowledged = new_run(tmp_path / "run")
    outcome = attempt(tmp_path / "run", acknowledged, half_writing())
    assert outcome.error is None and violations(tmp_path / "run", acknowledged) == []
    assert outcome.watched.names_called.count("write") > 20


def test_full_disk_names_path_reason_and_size(tmp_path):
    acknowledged = new_run(tmp_path / "run")

    def full(index, name, args):
        if name == "write" and len(args[1]) == 400:
            raise OSError(errno.ENOSPC, "No space left on device")

    outcome = attempt(tmp_path / "run", acknowledged, Watched(full))
    assert outcome.error is not None
    assert "No space left on device (writing 400 bytes)" in outcome.error.what
    assert "model.safetensors" in outcome.error.where and "free space" in outcome.error.remedy
    assert sorted(p.name for p in (tmp_path / "run").glob("step-*")) == [f"step-{s:08d}" for s in (1, 2, 3)]
    assert list((tmp_path / "run").glob(".tmp-*")) == []


def test_power_cut_after_every_operation_keeps_what_was_acknowledged(tmp_path):
    base = tmp_path / "base"
    assert list(check_power_cuts(base, *recorded_save(base))) == []


def test_power_cut_during_the_first_save_of_a_new_run(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    before, recorder, acknowledged = load(base), Recorder(), Acknowledged()
    save(base / "runs" / "new", 1, acknowledged, recorder)
    assert list(check_power_cuts(base, before, recorder.log, acknowledged, "runs/new")) == []
    made = [i for i, (name, _) in enumerate(recorder.log) if name == "fsync_dir"][:2]  # runs/ and runs/new
    for position in made:
        without = leave_out(recorder.log, position)
        assert next(check_power_cuts(base, before, without, acknowledged, "runs/new"), None)


def test_each_fsync_is_needed(tmp_path):
    """Leaving any single fsync out of the recorded operations shows in the power-cut model."""
    base = tmp_path / "base"
    before, log, acknowledged = recorded_save(base)
    positions = [i for i, (name, _) in enumerate(log) if name.startswith("fsync")]
    assert len(positions) == 11  # five files, manifest, two folders, the run after publish, link and prune
    for position in positions:
        found = next(check_power_cuts(base, before, leave_out(log, position), acknowledged), None)
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
    assert attempt(tmp_path / "run", acknowledged, watched).error is not None
    assert watched.names_called.count("fsync") == 1  # not tried a second time
    assert attempt(tmp_path / "run", acknowledged, watched).error is None
    assert len({path.parent if path.name == "trainer_state" else path for path in created}) == 2
    assert violations(tmp_path / "run", acknowledged) == []
    assert RunDirectory(tmp_path / "run").resolve("last").step == 4
