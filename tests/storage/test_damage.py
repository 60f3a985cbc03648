"""Truncated files and flipped bits: rows D11 and D12 of the reliability table."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_harness import new_run

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import RunDirectory, StepLog, publish, read_log, verify
from tiny_transformer.storage.doctor import DAMAGED, INCOMPLETE, WHOLE, examine
from tiny_transformer.storage.step_log import log_problem


def refusal(directory) -> UserError | None:
    try:
        verify(directory)
    except UserError as error:
        return error
    return None


def flip(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]


def silent_flips(directory, every: int, tally: Counter) -> Iterator[str]:
    """Flips every n-th bit of every file and yields the flips that the doctor or `verify` let pass."""
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        data = file.read_bytes()
        for bit in range(tally["flips"] % every, 8 * len(data), every):
            file.write_bytes(flip(data, bit))
            tally["flips"] += 1
            error = refusal(directory)
            if error is None or error.exit_code is not ExitCode.BAD_DATA or examine(directory).ok:
                yield f"{file.name}, bit {bit}"
        file.write_bytes(data)


def test_flipped_bits_are_noticed(tmp_path):
    new_run(tmp_path / "run")
    tally: Counter = Counter()
    assert list(silent_flips(tmp_path / "run" / "step-00000003", 17, tally)) == [] and tally["flips"] > 500
    assert verify(tmp_path / "run" / "step-00000003")


@pytest.mark.fault
def test_every_flipped_bit_is_noticed(tmp_path):
    new_run(tmp_path / "run")
    tally: Counter = Counter()
    assert list(silent_flips(tmp_path / "run" / "step-00000003", 1, tally)) == []
    print(f"{tally['flips']} flips, 0 silent")
    assert tally["flips"] >= 10_000


def test_every_truncation_is_noticed_and_the_older_checkpoint_taken(tmp_path):
    run = RunDirectory(tmp_path / "run")
    new_run(run.path)
    for file in sorted(p for p in run.step_path(3).rglob("*") if p.is_file()):
        data = file.read_bytes()
        name = file.relative_to(run.step_path(3)).as_posix()
        for length in sorted({*range(0, len(data), max(1, len(data) // 60)), len(data) - 1}):
            file.write_bytes(data[:length])
            whole, damaged = run.newest_whole()
            assert whole is not None and whole.step == 2
            assert len(damaged) == 1 and damaged[0].exit_code is ExitCode.BAD_DATA
            assert damaged[0].what.startswith(name) and str(run.step_path(3)) == damaged[0].where
            report = examine(run.path)
            assert report.state("step-00000003") == DAMAGED and not report.ok
        file.write_bytes(data + b"\0")
        assert refusal(run.step_path(3)) is not None and not examine(run.path).ok
        file.write_bytes(data)
    assert run.newest_whole()[0].step == 3


def test_size_difference_is_named(tmp_path):
    new_run(tmp_path / "run")
    directory = tmp_path / "run" / "step-00000003"
    (directory / "model.safetensors").write_bytes(b"x" * 399)
    assert refusal(directory).what == "model.safetensors is 399 bytes long, the manifest says 400"
    (directory / "model.safetensors").unlink()
    assert refusal(directory).what == "model.safetensors is missing"
    assert examine(directory).directories[0].problems == ["model.safetensors: missing"]


def test_directory_without_manifest_does_not_exist(tmp_path):
    run = RunDirectory(tmp_path / "run")
    new_run(run.path)
    (run.step_path(3) / "manifest.json").unlink()
    assert [c.step for c in run.checkpoints()] == [1, 2]
    assert run.newest_whole()[0].step == 2
    assert examine(run.path).state("step-00000003") == INCOMPLETE
    assert examine(run.path / "last").state("last") == INCOMPLETE
    with pytest.raises(UserError, match="nothing was published here"):
        run.resolve("last")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"\0" * 500,
        b"[" * 100_000,
        b'"\n}\n',
        b"0" * 64 + b'"\n}\n',
        b'{"format": 1, "files": {}, "info": {}}',
        b"\xff\xfe",
    ],
    ids=repr,
)
def test_any_bytes_as_manifest_are_refused(tmp_path, raw):
    (tmp_path / "manifest.json").write_bytes(raw)
    error = refusal(tmp_path)
    assert error is not None and error.exit_code is ExitCode.BAD_DATA and len(error.lines()) == 3
    assert examine(tmp_path).directories[0].state == DAMAGED


def forge(directory, text: str) -> None:
    """Writes a manifest with a right hash over whatever it says."""
    from tiny_transformer.storage import manifest

    raw = (text[:-1] + ',\n "manifest_sha256": "' + "0" * 64 + '"\n}\n').encode()
    (directory / "manifest.json").write_bytes(raw[:-68] + manifest._self_hash(raw) + raw[-4:])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 1, "info": {}, "files": {"../x": {"size_bytes": 1, "sha256": ""}}}', "leaves the directory"),
        (
            '{"format": 1, "info": {}, "files": {"/etc/passwd": {"size_bytes": 1, "sha256": ""}}}',
            "leaves the directory",
        ),
        ('{"format": 1, "info": {}, "files": {"a/../../x": {"size_bytes": 1, "sha256": ""}}}', "leaves the directory"),
        ('{"format": 1, "info": {}, "files": {"a\\u0000": {"size_bytes": 1, "sha256": ""}}}', "leaves the directory"),
        ('{"format": 2, "info": {}, "files": {}}', "format 2"),
        ('{"format": 1, "info": {}, "files": []}', "is not a manifest"),
        ('{"format": 1, "info": 3, "files": {}}', "is not a manifest"),
        ('{"format": 1, "info": {}, "files": {"a": {"size_bytes": "x", "sha256": ""}}}', "is not a manifest"),
        ('{"format": 1, "info": {}, "files": {"a": null}}', "is not a manifest"),
    ],
)
def test_forged_manifest_is_refused(tmp_path, text, said):
    forge(tmp_path, text)
    error = refusal(tmp_path)
    assert error is not None and error.exit_code is ExitCode.BAD_DATA and said in error.what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 1, "info": {}, "files": {}}', "lists no files"),
        ('{"format": 2, "info": {}, "files": {"a": {"size_bytes": 1, "sha256": "%s"}}}', "format 2"),
        ('{"format": true, "info": {}, "files": {"a": {"size_bytes": 1, "sha256": "%s"}}}', "format True"),
        ('{"format": null, "info": {}, "files": {"a": {"size_bytes": 1, "sha256": "%s"}}}', "format None"),
        ('{"format": 1, "info": {}, "files": {"a": {"size_bytes": -1, "sha256": "%s"}}}', "is damaged"),
        ('{"format": 1, "info": {}, "files": {"a": {"size_bytes": 1.0, "sha256": "%s"}}}', "is damaged"),
        ('{"format": 1, "info": {}, "files": {"a": {"size_bytes": 1, "sha256": null}}}', "is damaged"),
        ('{"format": 1, "info": null, "files": {"a": {"size_bytes": 1, "sha256": "%s"}}}', "is damaged"),
        ('{"format": 1, "info": {}, "files": {"a": null}}', "is damaged"),
        ('{"format": 1, "info": {}, "info": {}, "files": {"a": {"size_bytes": 1, "sha256": "%s"}}}', "is damaged"),
        ('{"format": 1, "info": {}, "files": {"a\\u0000": {"size_bytes": 1, "sha256": "%s"}}}', "leads out"),
        ('{"format": 1, "info": {}, "files": {"\\ud800": {"size_bytes": 1, "sha256": "%s"}}}', "leads out"),
        ('{"format": 1, "info": {}, "files": {"\\u001b[2J": {"size_bytes": 1, "sha256": "%s"}}}', "missing"),
        ('{"format": 1, "info": {}, "files": {"../a": {"size_bytes": 1, "sha256": "%s"}}}', "leads out"),
    ],
)
def test_doctor_is_the_strictest_reader(tmp_path, text, said):
    """Each of these manifests has a right hash over itself."""
    forge(tmp_path, text.replace("%s", "0" * 64))
    report = examine(tmp_path)
    assert report.directories[0].state == DAMAGED and not report.ok
    assert said in report.directories[0].problems[0]
    lines = "\n".join(report.lines())
    assert lines.encode() and not any(character < " " for line in report.lines() for character in line)


def test_doctor_names_a_manifest_of_another_step(tmp_path):
    new_run(tmp_path / "run")
    (tmp_path / "run/step-00000003").rename(tmp_path / "run/step-00000008")
    assert examine(tmp_path / "run").directories[-1].problems == ["manifest.json is that of step 3"]


ODD = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "directory": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "20 GB of nothing": lambda path: (path.touch(), os.truncate(path, 20 << 30)),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "name",
    ["last", "log.jsonl", ".lock"]
    + [f"step-00000003/{n}" for n in ("manifest.json", "model.safetensors", "run_info.json")],
)
def test_nothing_in_a_run_is_waited_for_or_read_without_end(tmp_path, name, odd):
    run = tmp_path / "run"
    new_run(run)
    path = run / name
    if path.is_symlink() or path.exists():
        path.unlink()
    ODD[odd](path)
    try:
        report = examine(run)
        assert "\n".join(report.lines())
        assert not report.ok or name in (".lock", "step-00000003/run_info.json")
    except UserError as error:
        assert odd == "link to itself" and error.exit_code is ExitCode.IO
    if name.startswith("step"):
        error = refusal(run / "step-00000003") if "run_info" not in name else None
        assert error is None or error.exit_code is (ExitCode.IO if odd == "link to itself" else ExitCode.BAD_DATA)
        assert error is not None or "run_info" in name
    if name == "log.jsonl":
        with pytest.raises(UserError):
            read_log(path)


def test_doctor_compares_the_log_with_the_newest_checkpoint(tmp_path):
    run = RunDirectory(tmp_path / "run")
    log = StepLog(run.path / "log.jsonl")
    log.append({"step": 1, "loss": 2.5})
    mark = log.sync()
    with run.lock(), run.publish_step(1) as staging:
        staging.write("run_info.json", json.dumps({"log": vars(mark)}))
    log.append({"step": 2, "loss": 2.5})
    log.close()
    path, whole = run.path / "log.jsonl", (run.path / "log.jsonl").read_bytes()
    assert examine(run.path).ok and log_problem(path, vars(mark)) is None
    path.write_bytes(whole.replace(b"2.5", b"1.5", 1))
    assert examine(run.path).problems == ["log.jsonl was changed after step-00000001 was saved"]
    assert log_problem(path, vars(mark)) == "log.jsonl was changed after the checkpoint"
    path.write_bytes(whole[:10])
    assert examine(run.path).problems == ["log.jsonl is 15 bytes shorter than it was when step-00000001 was saved"]
    path.unlink()
    assert examine(run.path).problems == ["log.jsonl is missing; step-00000001 was saved with one"]
    assert log_problem(path, vars(mark)) == "log.jsonl is missing"


def test_doctor_tells_whole_from_damaged_from_incomplete(tmp_path):
    new_run(tmp_path / "run")
    (tmp_path / "run" / "step-00000002" / "config.json").write_text("{}")
    shutil.copytree(tmp_path / "run" / "step-00000003", tmp_path / "run" / "step-00000009")
    (tmp_path / "run" / "step-00000009" / "manifest.json").unlink()
    (tmp_path / "run" / ".tmp-step-00000004-00").mkdir()
    (tmp_path / "run" / "step-00000003" / "README.md").write_text("added by hand")
    report = examine(tmp_path / "run")
    assert {d.name: d.state for d in report.directories} == {
        "step-00000001": WHOLE,
        "step-00000002": DAMAGED,
        "step-00000003": WHOLE,
        "step-00000009": INCOMPLETE,
    }
    assert report.links == {"last": "step-00000003", "best": "step-00000001"}
    assert report.leftovers == [".tmp-step-00000004-00"] and not report.ok
    text = "\n".join(report.lines())
    assert "config.json: 2 bytes instead of 23" in text
    assert "also here, not part of it: README.md" in text
    assert "last -> step-00000003" in text and ".tmp-step-00000004-00" in text


def test_doctor_reports_links_that_lead_nowhere(tmp_path):
    new_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "step-00000001")
    (tmp_path / "run" / "last").unlink()
    os.mkfifo(tmp_path / "run" / "last")
    problems = examine(tmp_path / "run").problems
    assert "best leads to step-00000001, which is not a checkpoint of this run" in problems
    assert "last is neither a link nor a file with the name of a checkpoint" in problems


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "samples.json"])
def test_doctor_sees_that_a_file_beside_the_checkpoints_is_no_file(tmp_path, name, odd):
    new_run(tmp_path / "run")
    ODD[odd](tmp_path / "run" / name)
    report = examine(tmp_path / "run")
    assert not report.ok
    (problem,) = report.problems
    assert problem.startswith(f"{name} ") and any(
        words in problem for words in ("is not a regular file", "cannot be read", "is too large", "is empty")
    )


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.yaml", b"", "config.yaml is empty"),
        ("config.yaml", b"\xff\xfe", "config.yaml is not UTF-8 text"),
        ("plan.json", b'{"segments": [', "plan.json is not JSON"),
        ("samples.json", b"\n", "samples.json is empty"),
        ("skills.json", b'{"lost": NaN}', None),
        ("config.yaml", b"training: {}\n", None),
    ],
)
def test_doctor_reads_the_files_beside_the_checkpoints(tmp_path, name, content, problem):
    new_run(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    assert examine(tmp_path / "run").problems == ([problem] if problem else [])


def test_doctor_examines_a_data_directory(tmp_path):
    with publish(tmp_path / "data") as staging:
        staging.write("train.bin", bytes(100))
        staging.write("meta.json", "{}")
    assert examine(tmp_path / "data").ok
    (tmp_path / "data" / "train.bin").write_bytes(bytes(99))
    assert examine(tmp_path / "data").directories[0].problems == ["train.bin: 99 bytes instead of 100"]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_text("x"), lambda p: p.mkdir()])
def test_doctor_refuses_what_is_no_run(tmp_path, make):
    make(tmp_path / "thing")
    with pytest.raises(UserError) as refused:
        examine(tmp_path / "thing")
    assert refused.value.exit_code is ExitCode.USAGE


def test_doctor_says_that_nothing_was_saved_and_names_the_runs_of_a_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").write_text('{"step": 1}\n')
    assert examine(tmp_path / "run").lines()[1:] == ["  no checkpoint has been saved", "  log.jsonl: 1 record, step 1"]
    with pytest.raises(UserError) as refused:
        examine(tmp_path)
    assert refused.value.remedy == f"it holds runs; give one of them, such as {tmp_path / 'run'}"


def test_doctor_shares_no_code_with_the_writer(repository):
    source = (repository / "tiny_transformer" / "storage" / "doctor.py").read_text()
    imported = [line for line in source.splitlines() if line.startswith(("import ", "from ")) and "tiny_" in line]
    assert imported == ["from tiny_transformer.errors import ExitCode, UserError"]


def test_a_directory_without_a_manifest_gets_advice(tmp_path):
    (tmp_path / "run/step-00000004").mkdir(parents=True)
    lines = examine(tmp_path / "run").lines()
    assert any("no manifest.json" in line and "--resume passes it over" in line for line in lines)
