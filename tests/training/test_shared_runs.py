"""Whole runs on 1, 2 and 4 processes: rows D22 and D23 of the reliability table, stopping, and what ends a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_helpers import TINY, fingerprint, log_without_clock
from worlds import Worlds

from tiny_transformer.data.batches import Batches
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.doctor import examine

SIZES = (1, 2, 4)
SHARED = {
    "micro_batch_size": 2,
    "grad_accum_steps": 4,
    "optimizer": "muon",
    "dropout": 0.1,
    "eval_steps": 12,
    "save_steps": None,
}


# --- D22: the same loss for any number of processes -------------------------------------------------------------------


@pytest.mark.slow
def test_a_deterministic_run_is_the_same_bit_for_bit_on_1_2_and_4_processes(
    worlds: Worlds, precision: str, tiny_data: Path, tmp_path: Path
) -> None:
    options = {
        **SHARED,
        "deterministic": True,
        "steps": 24,
        "data": {"packing": "documents"},
        "precision": precision,
    }
    for size in SIZES:
        worlds.results(size, "train", data_dir=str(tiny_data), out_dir=str(tmp_path / str(size)), **options)
    logs = [log_without_clock(tmp_path / str(size)) for size in SIZES]
    assert len(logs[0]) == 24 and all("loss" in line and "update_ratios" in line for line in logs[0])
    assert logs[0] == logs[1] == logs[2]
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "2") == fingerprint(tmp_path / "4")


@pytest.mark.slow
def test_a_deterministic_run_goes_on_with_another_number_of_processes(
    worlds: Worlds, tiny_data: Path, tmp_path: Path
) -> None:
    options = {**SHARED, "deterministic": True, "data_dir": str(tiny_data), "schedule": "constant", "warmup_steps": 2}
    worlds.results(1, "train", out_dir=str(tmp_path / "whole"), steps=15, **options)
    parts = str(tmp_path / "parts")
    for size, steps in ((4, 6), (1, 9), (2, 15)):
        worlds.results(size, "train", out_dir=parts, steps=steps, resume=size != 4, **options)
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["own random numbers", "in reverse"])
def test_what_depends_on_the_process_or_the_order_is_noticed(
    worlds: Worlds, tiny_data: Path, tmp_path: Path, patch: str
) -> None:
    """The tests above can fail."""
    options = {**SHARED, "deterministic": True, "steps": 6, "data_dir": str(tiny_data), "patch": patch}
    for size in (1, 2):
        worlds.results(size, "train", out_dir=str(tmp_path / str(size)), **options)
    assert fingerprint(tmp_path / "1") != fingerprint(tmp_path / "2")


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_fast_run_has_nearly_the_same_loss(
    worlds: Worlds, precision: str, rounding: float, tiny_data: Path, tmp_path: Path, parallelism: str
) -> None:
    """A loss is a mean over hundreds of targets, in which the rounding of the products averages out; a gradient's
    length is not."""
    loss_apart, norm_apart = max(1e-5, rounding / 8), max(1e-2, 8 * rounding)
    options = {
        **SHARED,
        "precision": precision,
        "steps": 100 if parallelism == "ddp" else 50,
        "log_steps": 10,
        "eval_steps": 50,
        "parallelism": parallelism,
    }
    logs = []
    for size in SIZES if parallelism == "ddp" else (1, 2):
        worlds.results(size, "train", data_dir=str(tiny_data), out_dir=str(tmp_path / str(size)), **options)
        logs.append(log_without_clock(tmp_path / str(size)))
    for log in logs[1:]:
        for alone, shared in zip(logs[0], log, strict=True):
            for name in {"loss", "val_loss"} & alone.keys():
                assert shared[name] == pytest.approx(alone[name], rel=loss_apart), alone["step"]
            assert shared["num_tokens"] == alone["num_tokens"]
            assert shared["part_grad_norms"] == pytest.approx(alone["part_grad_norms"], rel=norm_apart)
            assert shared["update_ratios"] == pytest.approx(alone["update_ratios"], rel=norm_apart)


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_compiled_checkpointed_and_with_experts(
    worlds: Worlds, precision: str, rounding: float, tiny_data: Path, tmp_path: Path, parallelism: str
) -> None:
    hybrid = {
        "model_type": "qwen3_next",
        "full_attention_interval": 2,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_nextn_predict_layers": 1,
        "router_aux_loss_coef": 0.0,
    }
    ways: list[dict[str, Any]] = [
        {"compile": True, "patch": "compile quickly", "gradient_checkpointing": True},
        {"model": hybrid, "gradient_checkpointing": True},
    ]
    for number, way in enumerate(ways):
        metrics = []
        for size in (1, 2):
            options = {
                **SHARED,
                "steps": 3,
                "parallelism": parallelism,
                "precision": precision,
                **way,
                "out_dir": str(tmp_path / f"{number}-{size}"),
            }
            metrics.append(worlds.results(size, "train", data_dir=str(tiny_data), **options)[0]["metrics"])
        assert metrics[1] == pytest.approx(metrics[0], rel=max(1e-5, rounding / 8)), way


@pytest.mark.slow
def test_validation_does_not_depend_on_the_number_of_processes(
    worlds: Worlds, precision: str, tiny_data: Path, tmp_path: Path
) -> None:
    """Of the same weights: after a resumption whose learning rate is next to nothing."""
    options = {**SHARED, "data_dir": str(tiny_data), "deterministic": True, "eval_steps": 1, "precision": precision}
    found = {}
    for patch in ("nothing", "add as they come"):
        for size in SIZES if patch == "nothing" else (1, 2):
            result = worlds.results(
                size, "train", out_dir=str(tmp_path / f"{patch}{size}"), steps=2, patch=patch, **options
            )
            found[patch, size] = result[0]["metrics"]["val_loss"]
            assert all(other == result[0] for other in result), "the processes disagree"
    assert found["nothing", 1] == found["nothing", 2] == found["nothing", 4]
    assert len({found["add as they come", size] for size in (1, 2)}) > 1, "this test cannot fail"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_deterministic_run_is_the_same_on_one_and_two_gpus(worlds: Worlds, tiny_data: Path, tmp_path: Path) -> None:
    options = {**SHARED, "deterministic": True, "steps": 24, "device": "cuda", "data_dir": str(tiny_data)}
    for size in (1, 2):
        worlds.results(size, "train", out_dir=str(tmp_path / str(size)), **options)
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "2")


# --- D23: save on N, load on M ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_and_optimizer_are_the_same_bits_saved_on_n_and_loaded_on_m(
    worlds: Worlds, tiny_data: Path, tmp_path: Path
) -> None:
    """All nine pairs of 1, 2, 4 processes, saved with one way of sharing and loaded with the other, and with the
    same; Muon's memories and AdamW's, which has the embedding and the norms."""
    options = {**SHARED, "steps": 3, "eval_steps": None}
    runs = []
    for parallelism in ("ddp", "fsdp"):
        for size in SIZES:
            run = tmp_path / f"{parallelism}-{size}"
            arguments = {"data_dir": str(tiny_data), "out_dir": str(run), "parallelism": parallelism}
            worlds.results(size, "train", **arguments, **options)
            runs.append(run)
    for parallelism in ("ddp", "fsdp"):
        for size in SIZES:
            pairs = [(str(run), str(tmp_path / f"{run.name}-{parallelism}-{size}")) for run in runs]
            arguments = {"data_dir": str(tiny_data), "pairs": pairs, "parallelism": parallelism}
            worlds.results(size, "load_and_save", **arguments, **options)
            for run, (_, target) in zip(runs, pairs, strict=True):
                for name, saved in fingerprint(run).items():
                    assert (Path(target) / name).read_bytes() == saved, (run.name, parallelism, size, name)
    names = {run.name: sorted(p.name for p in (run / "last").iterdir()) for run in runs}
    assert len({tuple(found) for found in names.values()}) == 1, "one checkpoint looks like the other"


# --- ends -------------------------------------------------------------------------------------------------------------


def command_of(tiny_data: Path, directory: Path, **training: Any) -> list[str]:
    """A command line for the tiny run of 400 steps."""
    tree = {
        **TINY,
        "data": {**TINY["data"], "data_dir": str(tiny_data)},
        "training": {**TINY["training"], **SHARED, "steps": 400, **training},
    }
    config = directory / "shared.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return ["train", "--config", str(config), "--out_dir", str(directory / "run")]


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    worlds: Worlds, tiny_data: Path, tmp_path: Path, parallelism: str
) -> None:
    arguments = command_of(tiny_data, tmp_path, parallelism=parallelism)
    for rank, extra in ((1, []), (0, ["--resume"])):
        at_step = 7 if rank else 11
        ended = worlds.run(2, "command", arguments=[*arguments, *extra], fault="SIGTERM", at_step=at_step, rank=rank)
        assert ended.codes == [ExitCode.STOPPED] * 2, ended.output
        last = RunDirectory(tmp_path / "run").resolve("last")
        assert last is not None and last.step == at_step + 1
        assert ended.output.count("stopped at step") == 1
    assert [line["step"] for line in log_without_clock(tmp_path / "run")] == list(range(1, 13))
    assert not examine(tmp_path / "run").problems


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "code", "shown"),
    [
        ("full disk", 0, ExitCode.IO, "error: cannot save: no space left"),
        ("bug", 0, ExitCode.INTERNAL, "ValueError: a bug in one process"),
        ("bug", 1, ExitCode.INTERNAL, "ValueError: a bug in one process"),
    ],
)
def test_what_ends_one_process_ends_all_with_its_code_and_is_shown_once(
    worlds: Worlds, tiny_data: Path, tmp_path: Path, fault: str, rank: int, code: int, shown: str
) -> None:
    ended = worlds.run(2, "command", arguments=command_of(tiny_data, tmp_path), fault=fault, rank=rank)
    assert ended.codes == [code] * 2, ended.output
    assert ended.output.count(shown) == 1, ended.output


def test_what_all_find_is_shown_once(worlds: Worlds, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    ended = worlds.run(2, "command", arguments=command_of(tiny_data, tmp_path))
    assert (ended.codes, ended.output.count("already holds a run")) == ([2, 2], 1), ended.output
    ended = worlds.run(2, "command", arguments=command_of(tiny_data, tmp_path, micro_batch_size=1, grad_accum_steps=1))
    assert (ended.codes, ended.output.count("cannot share a batch of 1 sequences")) == ([2, 2], 1), ended.output


def test_what_is_not_finite_names_the_whole_batch(worlds: Worlds, tiny_data: Path, tmp_path: Path) -> None:
    """Not only the rows of the process that tells it."""
    run = str(tmp_path / "run")
    options = {**SHARED, "optimizer": "adamw", "learning_rate": 1e30, "warmup_steps": 0}
    ended = worlds.run(2, "train", data_dir=str(tiny_data), out_dir=run, patch="report slowly", **options)
    assert (tmp_path / "run/report.html").exists(), ended.output
    found = re.search(rf"the batch of step (\d+), examples ([\d, ]+)\n.*replay {run} --step \1 ", ended.output)
    assert found, ended.output
    batches = Batches(open_dataset(tiny_data).train, seq_len=32, global_batch_size=8, seed=0)
    assert [int(row) for row in found[2].split(",")] == batches.batch(int(found[1]) - 1).sample_ids.tolist()


# --- as a person starts it --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_starts_both_forms_of_the_command(tiny_data: Path, tmp_path: Path) -> None:
    arguments = command_of(tiny_data, tmp_path, steps=4)
    scripts = Path(sys.executable).parent
    module = ["-m", "tiny_transformer"]
    program = ["--no-python", str(scripts / "tiny-transformer")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for form, extra in ((module, []), (program, ["--overwrite"])):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *form]
        done = subprocess.run(
            [*command, *arguments, *extra], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        info = json.loads((tmp_path / "run/last/run_info.json").read_text())
        assert (info["step"], info["status"], info["num_processes"]) == (4, "finished", 2)
