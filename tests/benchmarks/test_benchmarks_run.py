"""The benchmarks start, measure and print; their figures are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_quick(repository: Path, tmp_path: Path, name: str, *arguments: str) -> dict:
    """The figures that a benchmark prints, run from a scratch directory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    command = [sys.executable, str(repository / "benchmarks" / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("{\n") :])


@pytest.mark.clock
def test_training_benchmark_compares_us_with_transformers_and_nanogpt(repository: Path, tmp_path: Path) -> None:
    only = ("peak", "ours", "nanoGPT", "transformers, eager")
    tiny = run_quick(repository, tmp_path, "train.py", "--quick", "--only", *only)["shapes"]["tiny"]
    assert set(tiny["tokens_per_second"]) == {"ours", "nanoGPT", "transformers, eager"}
    assert all(0 < share < 1.5 for share in tiny["of_peak"].values())


@pytest.mark.slow
def test_race_counts_both_sides_from_raw_text_to_checkpoint(repository: Path, tmp_path: Path) -> None:
    race = run_quick(repository, tmp_path, "race.py", "--quick")
    (ours,) = race["ours"]
    assert ours["seconds, raw text to checkpoint"] > race["prepare_seconds"]
    assert ours["parameters"] == pytest.approx(race["nanoGPT"]["parameters"], rel=0.02)
    is_good = ours["val_loss"] <= race["nanoGPT"]["val_loss"]
    assert (race["at least as good, sooner by"] is not None) == is_good


def test_gpu_benchmark_ends_politely_without_a_gpu(repository: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(repository / "benchmarks" / "gpu.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "nothing to measure" in done.stdout


@pytest.mark.slow
def test_gpu_benchmark_is_tried_out_on_a_cpu(repository: Path, tmp_path: Path) -> None:
    """Each line of it, but for the peers that are compiled: step times, then the three commands of document 000."""
    found = run_quick(repository, tmp_path, "gpu.py", "--device", "cpu", "--quick", "--only", "peak", "ours")
    assert set(found["shapes"]["tiny"]["tokens_per_second"]) == {"ours"}
    demo = found["demo of document 000"]
    assert demo["step"] == 4 and set(demo["seconds"]) == {"prepare_dataset", "train", "sample"}
    assert found["flash attention takes our shapes"] == {"tiny": True}
