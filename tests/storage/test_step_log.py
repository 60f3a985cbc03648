"""log.jsonl: each step once, in order, whatever cut the file short."""

from __future__ import annotations

import json
import math
import os

import pytest

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import StepLog, read_log, step_log
from tiny_transformer.storage.doctor import examine


def records(*steps: int) -> list[dict]:
    return [{"step": step, "loss": 1 / (1 + step)} for step in steps]


def write(path, *steps: int) -> StepLog:
    log = StepLog(path)
    for record in records(*steps):
        log.append(record)
    return log


@pytest.mark.parametrize("after", [None, 0])
def test_a_log_that_shares_its_file_with_a_copy_leaves_the_copy_alone(tmp_path, after):
    """`cp -rl`, `rsync --link-dest`: going on with one run wrote into the log of the other."""
    write(tmp_path / "log.jsonl", 0, 10).close()
    (tmp_path / "copy").mkdir()
    os.link(tmp_path / "log.jsonl", tmp_path / "copy/log.jsonl")
    log = StepLog(tmp_path / "copy/log.jsonl", after)
    log.append(records(20)[0])
    log.sync()
    log.close()
    assert read_log(tmp_path / "log.jsonl") == records(0, 10)
    assert read_log(tmp_path / "copy/log.jsonl") == records(*((0, 20) if after == 0 else (0, 10, 20)))


def test_records_are_read_back_in_order(tmp_path):
    write(tmp_path / "run" / "log.jsonl", 0, 10, 20).close()
    assert read_log(tmp_path / "run" / "log.jsonl") == records(0, 10, 20)
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert read_log(tmp_path / "none.jsonl") == []


def test_steps_that_do_not_increase_are_refused(tmp_path):
    log = write(tmp_path / "log.jsonl", 1, 2)
    for step in (2, 1, 0, -1, "3", None, 2.5):
        with pytest.raises(ValueError, match="cannot follow"):
            log.append({"step": step})
    log.close()
    with pytest.raises(ValueError, match="cannot follow step 2"):
        StepLog(tmp_path / "log.jsonl").append({"step": 2})
    assert read_log(tmp_path / "log.jsonl") == records(1, 2)


def test_log_cut_at_every_byte_is_read_and_continued(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, 1, 2, 3).close()
    data = path.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(data) if byte == ord("\n"))]
    for length in range(len(data) + 1):
        complete = sum(end <= length for end in ends) - 1
        for tail in (b"", b"\0" * 40):  # zeros: the length reached the disk before the data
            path.write_bytes(data[:length] + tail)
            assert read_log(path) == records(*range(1, complete + 1))
            write(path, 7).close()
            assert path.read_bytes() == data[: ends[complete]] + json.dumps(records(7)[0]).encode() + b"\n"


def test_a_resumed_log_drops_later_steps_and_goes_on(tmp_path, monkeypatch):
    write(tmp_path / "log.jsonl", 1, 2, 3, 4).close()
    parsed, synced, loads, sync = [], [], json.loads, os.fsync
    monkeypatch.setattr(step_log.json, "loads", lambda line: parsed.append(line) or loads(line))
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size) or sync(fd))
    log = StepLog(tmp_path / "log.jsonl", after=2)
    assert len(parsed) == 4 and synced == [sum(map(len, parsed[:2])) + 2]  # read once, cut for good
    assert read_log(tmp_path / "log.jsonl") == records(1, 2)
    log.append(records(3)[0])
    log.close()
    undisturbed = write(tmp_path / "other.jsonl", 1, 2, 3)
    undisturbed.close()
    assert (tmp_path / "log.jsonl").read_bytes() == (tmp_path / "other.jsonl").read_bytes()
    StepLog(tmp_path / "log.jsonl", after=100).close()
    assert read_log(tmp_path / "log.jsonl") == records(1, 2, 3)
    StepLog(tmp_path / "log.jsonl", after=0).close()
    assert (tmp_path / "log.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"3",
        b"null",
        b'{"loss": 1}',
        b'{"step": "4"}',
        b'{"step": 4.5}',
        b"\xff",
        b"",
        b'{"step": 1}',
        b"[" * 9999,
    ],
    ids=lambda line: repr(line[:12]),
)
def test_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 5}\n')
    for use in (read_log, StepLog):
        with pytest.raises(UserError) as refused:
            use(path)
        assert refused.value.exit_code is ExitCode.BAD_DATA and "line 2" in refused.value.what
        assert refused.value.where == f"{path}:2"
    assert path.read_bytes().endswith(b'{"step": 5}\n')  # nothing was thrown away
    assert not examine(tmp_path).ok


def test_numbers_that_are_not_finite_become_null(tmp_path):
    log = StepLog(tmp_path / "log.jsonl")
    log.append({"step": 1, "loss": math.nan, "more": [math.inf, 1.5], "deep": {"x": -math.inf}})
    expected = [{"step": 1, "loss": None, "more": [None, 1.5], "deep": {"x": None}}]
    assert read_log(tmp_path / "log.jsonl") == expected


def test_refused_write_does_not_spoil_the_next(tmp_path, monkeypatch):
    log = write(tmp_path / "log.jsonl", 1)
    real = os.pwrite

    def half_then_full(fd, data, offset):
        monkeypatch.setattr(os, "pwrite", full)
        return real(fd, data[: len(data) // 2], offset)

    def full(fd, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", half_then_full)
    with pytest.raises(UserError, match="No space left") as refused:
        log.append(records(2)[0])
    assert refused.value.exit_code is ExitCode.IO
    assert read_log(tmp_path / "log.jsonl") == records(1)
    monkeypatch.setattr(os, "pwrite", real)
    log.append(records(2)[0])
    assert read_log(tmp_path / "log.jsonl") == records(1, 2)


def test_doctor_reads_the_log(tmp_path):
    write(tmp_path / "log.jsonl", 1, 2).close()
    assert examine(tmp_path).log == "2 records, steps 1 to 2"
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"st')
    assert examine(tmp_path).log == "2 records, steps 1 to 2, and an unfinished last line"
    assert examine(tmp_path).ok
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 2}\n{"step": 2}\n')
    assert examine(tmp_path).problems == ["log.jsonl: steps do not increase"]
