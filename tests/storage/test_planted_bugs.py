"""Do the tests bite? Every planted mistake turns the check that is meant for it red."""

from __future__ import annotations

import random
from collections import Counter

import planted
import pytest
import test_run_lock
import test_syscalls
from power_model import Recorder, check_power_cuts, load, recorded_save
from storage_harness import check_lost, check_refusals, check_stops, new_run, save
from test_damage import silent_flips
from test_run_lock import contention_problems, start_together

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import lock, manifest

pytestmark = pytest.mark.fault


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (planted.manifest_after_the_rename, check_stops),
        (planted.no_temporary_directory, check_stops),
        (planted.link_removed_and_made_again, check_stops),
        (planted.prune_in_sight, check_stops),
        (planted.prune_what_links_lead_to, check_stops),
        (planted.leftovers_never_removed, check_stops),
        (planted.prune_before_publish, check_refusals),
        (planted.failed_fsync_ignored, check_refusals),
        (planted.failed_fsync_tried_again, check_refusals),
        (planted.errors_of_the_system_escape, check_refusals),
        (planted.no_read_back, check_lost),
        (planted.link_moved_before_the_read_back, check_lost),
    ],
    ids=lambda value: value.__name__,
)
def test_planted_mistake_is_found(tmp_path, monkeypatch, plant, check):
    found = next(check(tmp_path, lambda: plant(monkeypatch.setattr)), None)
    print(found)
    assert found


class Forgetful(Recorder):
    """Leaves out one of the fsyncs."""

    def __init__(self, left_out: int) -> None:
        super().__init__()
        self.left_out, self.num_fsyncs = left_out, 0

    def done(self, name, args, result) -> None:
        if name.startswith("fsync"):
            self.num_fsyncs += 1
            if self.num_fsyncs - 1 == self.left_out:
                name = "lstat"
        super().done(name, args, result)


@pytest.mark.parametrize("left_out", range(11))
def test_forgotten_fsync_is_found(tmp_path, left_out):
    base = tmp_path / "base"
    base.mkdir()
    acknowledged = new_run(base / "run")
    before, forgetful = load(base), Forgetful(left_out)
    save(base / "run", 4, acknowledged, forgetful)
    assert forgetful.num_fsyncs == 11
    found = next(check_power_cuts(base, before, forgetful.log, acknowledged), None)
    print(found)
    assert found


def test_power_cut_finds_the_manifest_written_after_the_rename(tmp_path, monkeypatch):
    base = tmp_path / "base"
    recorded = recorded_save(base, lambda: planted.manifest_after_the_rename(monkeypatch.setattr))
    assert next(check_power_cuts(base, *recorded), None)


def test_manifest_that_does_not_check_itself_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "_self_hash", lambda raw: raw[-68:-4])
    new_run(tmp_path / "run")
    assert next(silent_flips(tmp_path / "run" / "step-00000003", 3, Counter()), None)


def test_comparing_sizes_only_is_found(tmp_path, monkeypatch):
    new_run(tmp_path / "run")
    monkeypatch.setattr(manifest.FileEntry, "__eq__", lambda self, other: self.size_bytes == other.size_bytes)
    assert next(silent_flips(tmp_path / "run" / "step-00000003", 3, Counter()), None)


def test_lock_that_locks_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", lambda fd, how: None)
    assert contention_problems(start_together(tmp_path, 10), 10)


def test_lock_kept_by_a_forked_worker_is_found(tmp_path, monkeypatch):
    class Forgetting(set):
        def add(self, item) -> None:
            pass

    monkeypatch.setattr(lock, "_held_here", Forgetting())
    with pytest.raises(UserError) as refused:
        test_run_lock.test_forked_child_of_a_killed_owner_does_not_keep_the_lock(tmp_path)
    assert refused.value.exit_code is ExitCode.LOCKED


@test_syscalls.needs_strace
@pytest.mark.parametrize("plant", [planted.no_temporary_directory, planted.prune_in_sight])
def test_kills_at_system_calls_find_a_planted_mistake(tmp_path, repository, plant):
    saves = test_syscalls.Saves(tmp_path, repository, plant.__name__)
    anywhere = random.Random(0).sample(saves.positions, len(saves.positions))
    assert any(saves.at(position, "signal=KILL").problems for position in anywhere)


@test_syscalls.needs_strace
def test_lost_writes_find_a_skipped_read_back(tmp_path, repository):
    saves = test_syscalls.Saves(tmp_path, repository, planted.no_read_back.__name__)
    writes = [position for position in saves.positions if position[0] == "write"]
    assert any(saves.at(position, "retval=1").problems for position in writes)
