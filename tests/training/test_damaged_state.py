"""What decides the weights stands under a hash and is read by type: rows D9, D12, D20, D28, and F1 on a run's files."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import fingerprint, log_without_clock, run_tiny, tiny_request
from safetensors.torch import load_file, save

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.safetensors_file import encode
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.replay import replay
from tiny_transformer.stages.resume_check import DATA, check_data
from tiny_transformer.storage import Fs, RunDirectory, fs, publish
from tiny_transformer.storage.doctor import examine
from tiny_transformer.training import plan as planning
from tiny_transformer.training.plan import parse_plan, read_plan

STATE, OPTIMIZER, WEIGHTS = "trainer_state/state.json", "trainer_state/optimizer.safetensors", "model.safetensors"
OPTIONS = {"steps": 4, "save_steps": 2, "eval_steps": 2, "keep_checkpoints": 9}


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at 2 and 4."""
    run = tmp_path_factory.mktemp("trained") / "r"
    run_tiny(tiny_data, run, **OPTIONS)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "r", symlinks=True)
    return tmp_path / "r"


def resume(tiny_data: Path, run: Path, **options: Any) -> str:
    """Resume it to six steps; what it said."""
    screen = io.StringIO()
    request = tiny_request(tiny_data, run, resume=True, **{**OPTIONS, "steps": 6, **options})
    launch(request, Console(file=screen, width=400))
    return screen.getvalue()


def forge(checkpoint: Path, name: str, content: bytes) -> None:
    """Put other bytes into a checkpoint under a manifest that vouches for them."""
    kept = checkpoint.with_name("kept")
    checkpoint.rename(kept)
    with publish(checkpoint, info={"step": int(checkpoint.name[5:])}) as staging:
        for path in sorted(kept.rglob("*")):
            if path.is_file() and path.name != "manifest.json":
                inside = path.relative_to(kept).as_posix()
                staging.write(inside, content if inside == name else path.read_bytes())
    shutil.rmtree(kept)


# --- state.json -------------------------------------------------------------------------------------------------------

WRONG: dict[str, Any] = {
    "not an object": [1],
    "no version": {"format_version": None},
    "version 2": {"format_version": 2},
    "version true": {"format_version": "1"},
    "no identity": {"identity": None},
    "identity a list": {"identity": []},
    "step a text": {"step": "4"},
    "step a fraction": {"step": 4.0},
    "step true": {"step": True},
    "step negative": {"step": -4},
    "step of another checkpoint": {"step": 3},
    "step beyond everything": {"step": 10**30},
    "no step": {"step": None},
    "tokens a fraction": {"num_tokens": 1.5},
    "tokens negative": {"num_tokens": -1},
    "seconds a text": {"elapsed_seconds": "1"},
    "seconds infinite": {"elapsed_seconds": float("inf")},
    "seconds not a number": {"elapsed_seconds": float("nan")},
    "best loss a list": {"best_val_loss": [1.0]},
    "best loss not a number": {"best_val_loss": float("nan")},
    "best step in the future": {"best_step": 400},
    "patience a text": {"evaluations_without_gain": "0"},
    "scale zero": {"loss_scale": 0},
    "scale true": {"loss_scale": True},
    "scale steps null": {"steps_at_loss_scale": None},
    "metrics a list": {"metrics": []},
    "metrics of text": {"metrics": {"loss": "low"}},
    "spent negative": {"seconds": {"steps": -1.0}},
    "spent nested": {"seconds": {"steps": {}}},
    "counts null": {"counts": None},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_state_of_another_type_or_range_is_refused(case: str, run: Path, tiny_data: Path) -> None:
    raw = json.loads((run / "step-00000004" / STATE).read_text())
    change = WRONG[case]
    wrong = {**raw, **change} if isinstance(change, dict) else change
    shutil.rmtree(run / "step-00000002")
    forge(run / "step-00000004", STATE, json.dumps(wrong).encode())
    with pytest.raises(UserError) as refused:
        resume(tiny_data, run)
    assert refused.value.exit_code is ExitCode.BAD_DATA and "state" in refused.value.what
    assert len(refused.value.lines()) == 3


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b"[" * 100_000, b'{"step": 1e999}', b"\xff\xfe", b"9" * 5000])
def test_any_bytes_as_state_are_refused(raw: bytes, run: Path, tiny_data: Path) -> None:
    shutil.rmtree(run / "step-00000002")
    forge(run / "step-00000004", STATE, raw)
    with pytest.raises(UserError, match="cannot read the trainer state") as refused:
        resume(tiny_data, run)
    assert refused.value.exit_code is ExitCode.BAD_DATA


# --- optimizer.safetensors --------------------------------------------------------------------------------------------


def other_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2 and len(set(tensors[name].shape)) == 2)
    return {**tensors, name: tensors[name].t().contiguous()}


def other_dtype(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name in sorted(tensors) if tensors[name].ndim)
    return {**tensors, name: tensors[name].half()}


def integer_step(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name in sorted(tensors) if name.endswith("/step"))
    return {**tensors, name: tensors[name].long()}


def one_missing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in sorted(tensors)[1:]}


def one_more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "model.norm.weight/third_moment": torch.zeros(3)}


@pytest.mark.parametrize("edit", [other_shape, other_dtype, integer_step, one_missing, one_more])
def test_optimizer_tensors_that_do_not_fit_are_refused(
    edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], run: Path, tiny_data: Path
) -> None:
    shutil.rmtree(run / "step-00000002")
    path = run / "step-00000004" / OPTIMIZER
    forge(run / "step-00000004", OPTIMIZER, save(edit(load_file(path))))
    with pytest.raises(UserError, match="the trainer state does not fit") as refused:
        resume(tiny_data, run)
    assert refused.value.exit_code is ExitCode.BAD_DATA


@pytest.mark.parametrize("name", [OPTIMIZER, WEIGHTS, STATE])
def test_a_whole_checkpoint_that_cannot_be_loaded_is_passed_over(name: str, run: Path, tiny_data: Path) -> None:
    """Its manifest vouches for bytes that are no file of that kind; the next older one is taken, and later steps are
    saved as if it had never been there."""
    forge(run / "step-00000004", name, b"\x08\0\0\0\0\0\0\0{}      and more")
    said = resume(tiny_data, run)
    assert "skipping a damaged checkpoint: " in said and "resuming from step 2 " in said
    assert [c.step for c in RunDirectory(run).checkpoints()] == [2, 4, 6]
    assert (run / "step-00000004.bad").is_dir() and examine(run).ok
    assert [record["step"] for record in log_without_clock(run)] == [1, 2, 3, 4, 5, 6]


def test_when_none_loads_the_run_does_not_begin_again(run: Path, tiny_data: Path) -> None:
    for step in (2, 4):
        forge(run / f"step-{step:08d}", WEIGHTS, b"nothing")
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"cannot read model\.safetensors") as refused:
        resume(tiny_data, run)
    assert refused.value.exit_code is ExitCode.BAD_DATA and (run / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_when_none_is_whole_the_run_does_not_begin_again(harm: str, run: Path, tiny_data: Path) -> None:
    for step in (2, 4):
        weights = run / f"step-{step:08d}" / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1]) if harm == "cut" else weights.unlink()
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"no checkpoint of this run can be loaded; .* model\.safetensors") as refused:
        resume(tiny_data, run)
    assert refused.value.exit_code is ExitCode.BAD_DATA and str(run / "step-00000004") == refused.value.where
    assert (run / "log.jsonl").read_bytes() == log


def test_a_run_whose_checkpoints_were_all_set_aside_does_not_begin_again(run: Path, tiny_data: Path) -> None:
    for step in (2, 4):
        forge(run / f"step-{step:08d}", WEIGHTS, b"nothing")
    log = (run / "log.jsonl").read_bytes()
    for what in ("cannot read model.safetensors", "the checkpoint of step 4 could not be loaded earlier"):
        with pytest.raises(UserError) as refused:
            resume(tiny_data, run)
        assert what in refused.value.what and (run / "log.jsonl").read_bytes() == log


def test_a_checkpoint_that_the_disk_does_not_give_is_no_reason_to_take_an_older_one(
    run: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Fs.read

    def broken(self: Fs, path: Path) -> Any:
        if path == run / "step-00000004" / WEIGHTS:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(self, path)

    monkeypatch.setattr(fs.Fs, "read", broken)
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(UserError, match="cannot read: Input/output error") as refused:
        resume(tiny_data, run)
    assert refused.value.exit_code is ExitCode.IO and (run / "log.jsonl").read_bytes() == log


# --- what the library said --------------------------------------------------------------------------------------------


def test_our_safetensors_are_the_library_s_bytes() -> None:
    kinds = (
        *(torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16),
        *(torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64),
    )
    tensors = {str(kind): torch.arange(7).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3), 'odd "é': torch.randn(3, 4)}
    assert b"".join(encode(tensors, {"format": "pt"})) == save(tensors, {"format": "pt"})
    turned = {"a": torch.randn(3, 4).t()}
    assert b"".join(encode(turned)) == save({"a": turned["a"].contiguous()})


@pytest.mark.parametrize("code", [errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
def test_a_disk_that_refuses_tensors_is_told_in_three_lines(
    code: int, name: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, files = Fs.write, {}

    def create(self: Fs, path: Path) -> int:
        fd = real_create(self, path)
        files[fd] = path
        return fd

    def write(self: Fs, fd: int, data: bytes) -> int:
        if files[fd].as_posix().endswith(name):
            raise OSError(code, os.strerror(code))
        return inner(self, fd, data)

    real_create = Fs.create
    monkeypatch.setattr(fs.Fs, "create", create)
    monkeypatch.setattr(fs.Fs, "write", write)
    with pytest.raises(UserError, match=f"cannot save: {os.strerror(code)}") as refused:
        run_tiny(tiny_data, tmp_path / "r", **OPTIONS)
    assert refused.value.exit_code is ExitCode.IO and len(refused.value.lines()) == 3
    assert not list((tmp_path / "r").glob("step-*")) and not list((tmp_path / "r").glob(".tmp-*"))


@pytest.mark.slow
def test_every_lost_write_of_a_real_checkpoint_is_noticed(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write of a save in turn reports success and writes nothing."""
    real, count, lost = Fs.write, [0], []

    def write(self: Fs, fd: int, data: bytes) -> int:
        count[0] += 1
        return len(data) if count[0] == lost[0] else real(self, fd, data)

    monkeypatch.setattr(fs.Fs, "write", write)
    options = {"steps": 1, "eval_steps": None, "save_steps": None}
    for at in range(1, 100):
        count[0], lost[:] = 0, [at]
        try:
            run_tiny(tiny_data, tmp_path / str(at), **options)
        except UserError as error:
            assert error.exit_code is ExitCode.IO and "not what was written" in error.what
            assert not list((tmp_path / str(at)).glob("step-*"))
            continue
        break
    assert count[0] < at and at > 60  # plan, config, and a checkpoint with a write for each tensor


# --- plan.json --------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_plan_is_refused_or_changes_nothing(run: Path) -> None:
    path, plan = run / planning.FILE, read_plan(run)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :])
        try:
            assert read_plan(run) == plan, bit
        except UserError as refused:
            assert refused.exit_code is ExitCode.BAD_DATA and len(refused.lines()) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"segments": []},
        {"segments": [[0, 0.0, 9]]},
        {"segments": [[0, 0.0, "4"]]},
        {"segments": [[1, 0.0, 4]]},
        {"segments": [[0, 0.5, 4]]},
        {"segments": [[0, 0.0, 9], [5, 2.0, 4]]},
        {"segments": [[0, 0.0, 0]], "total_steps": 0},
        {"segments": [[0, 0.0, True]], "total_steps": True},
        {"warmup_steps": 9},
        {"warmup_steps": -1},
        {"warmup_steps": 1.5},
        {"reason": 3},
        {"is_fixed": 1},
        {"asked": {}},
        {"asked": {"steps": "4", "minutes": None, "tokens": None}},
        {"asked": {"steps": None, "minutes": float("inf"), "tokens": None}},
        {"more": 1},
        {"sha256": "0" * 64},
    ],
)
def test_a_plan_of_another_type_is_refused_with_and_without_its_hash(change: dict[str, Any], run: Path) -> None:
    raw = json.loads((run / planning.FILE).read_text())
    parse_plan(raw)
    for drops_hash in (False, True):
        wrong = {key: value for key, value in raw.items() if key != "sha256" or not drops_hash} | change
        with pytest.raises(ValueError, match=r"\w"):
            parse_plan(wrong)


def test_a_plan_from_before_hashes_is_read(run: Path) -> None:
    plan = read_plan(run)
    raw = json.loads((run / planning.FILE).read_text())
    del raw["sha256"]
    raw["legs"] = raw.pop("segments")
    assert parse_plan(raw) == plan


def test_a_lost_plan_is_the_one_in_the_checkpoint(run: Path) -> None:
    plan = read_plan(run)
    (run / planning.FILE).unlink()
    assert plan is not None and read_plan(run) == plan


@pytest.mark.parametrize("harm", ["no state", "another plan"])
def test_a_lost_plan_and_the_data_are_those_of_the_newest_checkpoint_that_tells(
    harm: str, run: Path, tiny_data: Path
) -> None:
    """Its manifest is sound and its state.json is not what was written."""
    plan = read_plan(run)
    (run / planning.FILE).unlink()
    path = run / "step-00000004" / STATE
    raw = json.loads(path.read_text())
    path.write_text("{" if harm == "no state" else json.dumps({**raw, "plan": {**raw["plan"], "warmup_steps": 1}}))
    assert plan is not None and read_plan(run) == plan
    check_data(RunDirectory(run), {DATA: raw["identity"][DATA]})
    with pytest.raises(UserError, match="this is not what the run was trained on"):
        check_data(RunDirectory(run), {DATA: "other"})
    replay(run, 1, Console(quiet=True))


# --- log.jsonl --------------------------------------------------------------------------------------------------------


def changed_digit(log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"loss": 5', b'"loss": 4', 1))


def first_line_gone(log: Path) -> None:
    log.write_bytes(log.read_bytes().partition(b"\n")[2])


def cut(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-1500])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed_digit, "log.jsonl was changed after the checkpoint"),
        (first_line_gone, "log.jsonl is "),
        (cut, "log.jsonl is 1,500 bytes shorter than it was at the checkpoint"),
        (Path.unlink, "log.jsonl is missing"),
    ],
)
def test_a_log_that_is_not_as_it_was_is_said(
    change: Callable[[Path], None], said: str, run: Path, tiny_data: Path
) -> None:
    assert "log.jsonl" not in resume(tiny_data, run)
    change(run / "log.jsonl")
    assert f"{said}" in resume(tiny_data, run, steps=8)


def test_a_lost_log_line_is_noticed_at_the_next_save(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        return len(data) if data.startswith(b'{"step": 2,') else real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(UserError, match="not what was written") as refused:
        run_tiny(tiny_data, tmp_path / "r", **OPTIONS)
    assert refused.value.exit_code is ExitCode.IO and str(refused.value.where).endswith("log.jsonl")
    assert not list((tmp_path / "r").glob("step-*"))


# --- checkpoints of older versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", sorted(p.name for p in (Path(__file__).parent.parent / "storage/golden").iterdir()))
def test_a_run_of_an_older_version_goes_on_as_it_would_have_then(
    age: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    """Row D28: its files are kept as they were written; what the version of its time made of it stands beside them."""
    from tiny_transformer.cli import run as command_line

    golden = repository / "tests/storage/golden" / age
    shutil.copytree(golden, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert examine(tmp_path / "run").ok
    assert command_line(["train", "--resume", "--out_dir", "run", "--steps", "12"]) == ExitCode.OK
    expected = json.loads((golden / "expected.json").read_text())
    records = {record["step"]: record for record in log_without_clock(tmp_path / "run")}
    for record in expected:
        for name, value in record.items():
            # It was written where Muon orthogonalised in bf16; an fp32 run now does so in fp32 everywhere.
            close = pytest.approx(value, rel=1e-3 if name == "grad_norm" else 1e-4)
            assert records[record["step"]][name] == close, (record["step"], name)
    assert set(fingerprint(tmp_path / "run")) == {WEIGHTS, OPTIMIZER}
