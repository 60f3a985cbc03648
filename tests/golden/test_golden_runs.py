"""Runs of earlier versions load, say what they said, and go on with the same losses: row D28, for ever.

A golden run is a directory here with an expected.json; `make_golden.py` tells how it was made. A red test means that
this version cannot take up its users' runs: mend the version, never the golden run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from make_golden import GOLDEN, MAX_BYTES, PROMPT, compared, greedy, logits_of

from tiny_transformer.cli import run

RUNS = sorted(path.parent.name for path in GOLDEN.glob("*/expected.json"))


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of its log."""
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_family_has_one() -> None:
    assert {"llama", "qwen3", "qwen3_next"} <= set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_it_goes_on_with_the_same_losses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on another processor, so the last digits may differ."""
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    expected = json.loads((tmp_path / "expected.json").read_text(encoding="utf-8"))
    before = records(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--resume", "--out_dir", "run"]) == 0
    after = records(tmp_path / "run")
    assert after[: len(before)] == before  # with the old readings of the clock: it did not start from the beginning
    assert len(after) == len(before) + len(expected["continued"])
    for record, wanted in zip(after[len(before) :], expected["continued"], strict=True):
        assert compared(record) == pytest.approx(wanted, rel=1e-5, abs=0.0), record["step"]
    assert (tmp_path / "run/last/model.safetensors").exists()


@pytest.mark.parametrize("name", RUNS)
def test_its_model_says_what_it_said(name: str) -> None:
    checkpoint = next((GOLDEN / name / "run").glob("step-*"))
    expected = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))
    torch.testing.assert_close(logits_of(checkpoint, PROMPT), torch.tensor(expected["logits"]), rtol=1e-5, atol=1e-5)
    assert greedy(checkpoint)[0] == expected["greedy"]


@pytest.mark.parametrize("name", RUNS)
def test_it_is_small_and_every_byte_is_as_it_was_saved(name: str) -> None:
    """Git has changed nothing, and nobody else; no path of the machine it was made on."""
    files = [path for path in (GOLDEN / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert run(["doctor", str(GOLDEN / name / "run")]) == 0
    assert not [path for path in files if str(GOLDEN.parents[1]).encode() in path.read_bytes()]
