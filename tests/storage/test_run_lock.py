"""One writer per run directory: row D15 of the reliability table."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import RunDirectory, RunLock
from tiny_transformer.storage import lock as lock_module
from tiny_transformer.storage.doctor import examine
from tiny_transformer.storage.lock import is_alive, is_this_process, owner_of, owner_record

RECORDS_START_TIMES = Path("/proc/self/stat").exists()


def in_child(work) -> int:
    """Forks; the child does `work` and is gone without passing through pytest."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def start_together(path: Path, num_processes: int, take=RunLock) -> list[dict]:
    """Starts processes that all try to own `path` at the same instant; the winner keeps it until all have answered."""
    go_read, go_write = os.pipe()
    stop_read, stop_write = os.pipe()
    answer_read, answer_write = os.pipe()

    def contend() -> None:
        os.close(go_write)
        os.close(stop_write)
        os.read(go_read, 1)  # returns at once for all of them when the parent closes its end
        begin = time.process_time()
        answer: dict = {"pid": os.getpid()}
        try:
            with take(path):
                answer["won"] = True
                os.write(answer_write, json.dumps(answer).encode() + b"\n")
                os.read(stop_read, 1)
        except UserError as error:
            answer |= {"won": False, "code": int(error.exit_code), "text": str(error)}
            answer["seconds"] = time.process_time() - begin  # of work: it may have to wait for the winner's name
            os.write(answer_write, json.dumps(answer).encode() + b"\n")

    children = [in_child(contend) for _ in range(num_processes)]
    for fd in (go_read, stop_read, answer_write):
        os.close(fd)
    os.close(go_write)
    received = b""
    while received.count(b"\n") < num_processes and select.select([answer_read], [], [], 200)[0]:
        received += os.read(answer_read, 65536)
    os.close(stop_write)
    os.close(answer_read)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads(line) for line in received.splitlines()]


def contention_problems(answers: list[dict], num_processes: int) -> list[str]:
    winners = [answer["pid"] for answer in answers if answer["won"]]
    if len(winners) != 1 or len(answers) != num_processes:
        return [f"{len(winners)} of {len(answers)} own the run"]
    expected = f"process {winners[0]} on {socket.gethostname()}"
    losers = [answer for answer in answers if not answer["won"]]
    problems = [f"{a['text']!r} does not name {expected}" for a in losers if expected not in a["text"]]
    problems += [f"exit code {a['code']}" for a in losers if a["code"] != ExitCode.LOCKED]
    return problems + [f"took {a['seconds']:.1f} s" for a in losers if a["seconds"] > 2]


@pytest.mark.parametrize("repeat", range(4))
def test_of_ten_simultaneous_starts_exactly_one_runs(tmp_path, repeat, monkeypatch):
    """5 rounds of 10 in each of 4 repeats: 200 starts. On a busy machine the winner may write its name late."""
    monkeypatch.setattr(lock_module, "_PATIENCE_SECONDS", 100.0)
    for round_ in range(5):
        assert contention_problems(start_together(tmp_path / f"run-{round_}", 10), 10) == []


def test_lock_of_a_killed_owner_is_taken_over_at_once(tmp_path, monkeypatch):
    for _ in range(100):
        ready_read, ready_write = os.pipe()

        def own(ready=ready_write) -> None:
            RunLock(tmp_path).__enter__()
            os.write(ready, b"x")
            signal.pause()

        pid = in_child(own)
        os.read(ready_read, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready_read)
        os.close(ready_write)
        record = json.loads((tmp_path / ".lock").read_text())
        assert record["pid"] == pid and not is_alive(record)
        with monkeypatch.context() as patch:
            patch.setattr(lock_module.time, "sleep", lambda seconds: pytest.fail("waits"))
            with RunLock(tmp_path) as lock:
                assert lock.held


def test_forked_child_of_a_killed_owner_does_not_keep_the_lock(tmp_path):
    """A data worker that outlives its trainer."""
    pids_read, pids_write = os.pipe()

    def own() -> None:
        RunLock(tmp_path).__enter__()
        worker = in_child(signal.pause)
        os.write(pids_write, f"{worker}\n".encode())
        signal.pause()

    trainer = in_child(own)
    worker = int(os.read(pids_read, 100))
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    try:
        os.kill(worker, 0)
        with RunLock(tmp_path) as lock:
            assert lock.held
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(pids_read)
        os.close(pids_write)


@pytest.mark.skipif(not RECORDS_START_TIMES, reason="needs /proc")
def test_pid_given_to_another_process_is_recognised(tmp_path):
    """The record of a dead owner names a pid that lives again as something else."""
    for offset in range(20):
        record = owner_record(os.getpid())
        assert is_alive(record)
        record["started_ticks"] = [str(int(record["started_ticks"][0]) - 1 - offset)]
        assert not is_alive(record)
        (tmp_path / ".lock").write_text(json.dumps(record))
        with RunLock(tmp_path) as lock:
            assert lock.held


@pytest.mark.skipif(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), reason="needs root to choose a pid")
def test_lock_is_taken_over_although_the_pid_of_its_owner_lives_again(tmp_path):
    num_reused = 0
    for _ in range(20):
        owner = in_child(lambda: (RunLock(tmp_path).__enter__(), os.kill(os.getpid(), signal.SIGKILL)))
        os.waitpid(owner, 0)
        time.sleep(0.011)  # start times are counted in ticks of 10 ms
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(owner - 1))
        stranger = in_child(signal.pause)
        try:
            record = json.loads((tmp_path / ".lock").read_text())
            assert record["pid"] == owner and not is_alive(record)
            num_reused += stranger == owner
            with RunLock(tmp_path) as lock:
                assert lock.held
        finally:
            os.kill(stranger, signal.SIGKILL)
            os.waitpid(stranger, 0)
    assert num_reused >= 10  # others start processes, too


def test_owner_of_an_earlier_boot_or_another_host(tmp_path):
    record = owner_record(os.getpid())
    assert not is_alive({**record, "boot_id": "another"})
    assert is_alive({**record, "host": "elsewhere", "boot_id": "another", "pid": 1 << 40})  # nobody can tell from here
    assert not is_alive({**record, "pid": 1 << 22})
    assert not is_alive({}) and not is_alive({"pid": "1"})


@pytest.mark.skipif(not owner_record(1)["boot_id"], reason="needs /proc")
def test_a_machine_that_was_renamed_is_still_this_machine(tmp_path):
    record = {**owner_record(os.getpid()), "host": "renamed"}
    assert is_alive(record) and not is_alive({**record, "pid": 1 << 22})


def test_who_owns_a_run_is_what_the_kernel_says(tmp_path):
    """A name left behind, by a dead process or one of another host, is no owner."""
    assert owner_of(tmp_path) is None
    (tmp_path / ".lock").write_text(json.dumps({**owner_record(os.getpid()), "host": "elsewhere", "boot_id": "x"}))
    assert owner_of(tmp_path) is None
    with RunLock(tmp_path):
        assert owner_of(tmp_path)["pid"] == os.getpid()
    assert owner_of(tmp_path) is None


def test_a_lock_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match="not a regular file") as refused, RunLock(tmp_path):
        pass
    assert refused.value.exit_code is ExitCode.IO


def test_second_owner_in_the_same_process_is_refused(tmp_path):
    with RunLock(tmp_path), pytest.raises(UserError) as refused, RunLock(tmp_path):
        pass
    assert refused.value.exit_code is ExitCode.LOCKED
    assert f"process {os.getpid()} on {socket.gethostname()}" in refused.value.what
    with RunLock(tmp_path):
        pass


def test_unreadable_record_does_not_hide_the_lock(tmp_path, monkeypatch):
    naps = []
    clock = SimpleNamespace(monotonic=lambda: sum(naps), sleep=naps.append)
    with RunLock(tmp_path):
        (tmp_path / ".lock").write_bytes(b"\xff[")
        monkeypatch.setattr(lock_module, "time", clock)
        with pytest.raises(UserError, match="left no name"), RunLock(tmp_path):
            pass
        assert 0 < sum(naps) < 2
    (tmp_path / ".lock").write_bytes(b"[1, 2]")
    with RunLock(tmp_path) as lock:
        assert lock.held


def test_doctor_tells_who_holds_the_lock(tmp_path):
    with RunLock(tmp_path):
        assert examine(tmp_path).lock == f"held by process {os.getpid()} on {socket.gethostname()}"
    assert examine(tmp_path).lock is None


def test_doctor_in_a_loop_does_not_keep_a_run_from_starting(tmp_path):
    with RunLock(tmp_path):
        pass

    def look() -> None:
        while True:
            examine(tmp_path)

    pid = in_child(look)
    try:
        for _ in range(300):
            with RunLock(tmp_path):
                pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_lock_makes_the_run_directory_and_refuses_a_file(tmp_path):
    with RunLock(tmp_path / "runs" / "new"):
        assert (tmp_path / "runs" / "new").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as refused, RunLock(tmp_path / "file"):
        pass
    assert refused.value.exit_code is ExitCode.IO and "file" in refused.value.where


def test_writing_without_the_lock_is_a_bug(tmp_path):
    run = RunDirectory(tmp_path)
    for write in (lambda: run.publish_step(1).__enter__(), lambda: run.point("last", 1), lambda: run.prune(1)):
        with pytest.raises(RuntimeError, match="without its lock"):
            write()
    with pytest.raises(RuntimeError, match="without its lock"):
        run.clean_leftovers()
    with run.lock():
        result_read, result_write = os.pipe()

        def inherit() -> None:
            os.write(result_write, b"held" if run.lock().held else b"free")

        os.waitpid(in_child(inherit), 0)
        assert os.read(result_read, 4) == b"free"  # a forked child does not own what its parent owns
        assert run.lock().held


def test_a_record_with_the_pid_of_this_process_may_be_of_another_one() -> None:
    """In two containers both trainers are often process 7."""
    record = owner_record(os.getpid())
    assert is_this_process(record) and is_this_process({**record, "host": "renamed"})
    assert not is_this_process({**record, "started_ticks": ["1"]})
    assert not is_this_process({**record, "boot_id": "another"})
    assert not is_this_process({})


def hard_linked(run: Path, copy: Path) -> Path:
    """A copy of a run directory as `cp -al` makes it."""
    copy.mkdir()
    for path in run.iterdir():
        os.link(path, copy / path.name)
    return copy


def test_a_copy_of_hard_links_has_a_lock_of_its_own(tmp_path):
    """Made while the run is in progress, and before; either side may start first, and each has one owner."""
    with RunLock(tmp_path / "run") as lock:
        copy = hard_linked(tmp_path / "run", tmp_path / "copy")
        assert owner_of(copy) is None and owner_of(tmp_path / "run")["pid"] == os.getpid()
        with RunLock(copy) as own:
            lock.check_place()
            own.check_place()
            for path in (copy, tmp_path / "run"):
                assert owner_of(path)["pid"] == os.getpid()
                with pytest.raises(UserError, match="in use"), RunLock(path):
                    pass
    later = hard_linked(tmp_path / "run", tmp_path / "later")
    with RunLock(later), RunLock(tmp_path / "run") as lock:
        lock.check_place()
    assert owner_of(later) is owner_of(tmp_path / "run") is None


def test_of_ten_starts_in_a_copy_of_hard_links_one_runs(tmp_path, monkeypatch):
    """Of those that are refused, some may name the owner of the original."""
    monkeypatch.setattr(lock_module, "_PATIENCE_SECONDS", 100.0)
    for round_ in range(5):
        with RunLock(tmp_path / f"run-{round_}") as lock:
            answers = start_together(hard_linked(tmp_path / f"run-{round_}", tmp_path / f"copy-{round_}"), 10)
            assert len(answers) == 10 and sum(answer["won"] for answer in answers) == 1
            lock.check_place()


def test_one_at_a_time_takes_out_the_lock_of_the_original(tmp_path):
    """While another process decides, this one leaves the file where it is."""
    with RunLock(tmp_path / "run"):
        copy = hard_linked(tmp_path / "run", tmp_path / "copy")
        turn = os.open(copy, os.O_RDONLY)
        fcntl.flock(turn, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use"), RunLock(copy):
            pass
        assert (copy / ".lock").samefile(tmp_path / "run" / ".lock")
        os.close(turn)
        with RunLock(copy) as lock:
            assert lock.held


def test_a_lock_that_was_replaced_before_it_was_locked_is_taken_again(tmp_path, monkeypatch):
    def replace_first(fd: int, operation: int) -> None:
        monkeypatch.undo()
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").touch()
        fcntl.flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    with RunLock(tmp_path) as lock:
        lock.check_place()


def test_a_name_copied_from_elsewhere_does_not_cost_an_owner_its_lock(tmp_path):
    """A plain copy has the record of a living process in it, and so has a file that is shared with nobody's run."""
    with RunLock(tmp_path / "run"):
        (tmp_path / "copy").mkdir()
        copied = (tmp_path / "run" / ".lock").read_bytes()
        (tmp_path / "copy" / ".lock").write_bytes(copied)
        with RunLock(tmp_path / "copy") as lock:
            (tmp_path / "copy" / ".lock").write_bytes(copied)  # as between taking the lock and writing the name
            with pytest.raises(UserError, match="in use"), RunLock(tmp_path / "copy"):
                pass
            lock.check_place()
