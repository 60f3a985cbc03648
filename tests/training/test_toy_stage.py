"""The engine knows no stage by name: a second one is resumed, planned, replayed, shared, logged and judged as well."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import TINY, fingerprint, log_without_clock
from safetensors.torch import load_file
from toy_stage import ToyConfig, register
from worlds import Worlds

from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import UserError
from tiny_transformer.models import build_model
from tiny_transformer.reports.diagnosis import diagnose
from tiny_transformer.reports.diagnosis.evidence import Evidence, Finding
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.stages import run as engine
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.replay import replay
from tiny_transformer.stages.stage import Request, RunResult
from tiny_transformer.stages.summary import finish
from tiny_transformer.training import loop


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a stage `toy`."""
    register(monkeypatch)


def config_of(data_dir: Path, run_dir: Path, **training: Any) -> dict[str, Any]:
    return {
        **TINY,
        "stage": "toy",
        "mask": {"every": 4},
        "data": {**TINY["data"], "data_dir": str(data_dir)},
        "training": {**TINY["training"], **training},
        "out_dir": str(run_dir),
    }


def run_toy(data_dir: Path, run_dir: Path, *, resume: bool = False, **training: Any) -> tuple[RunResult, str]:
    """One start of a run, its end shown."""
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    config = load_run_config(config_of(data_dir, run_dir, **training))
    result = launch(Request(config, "toy", resume=resume, command=["test"]), console)
    finish(result, console)
    return result, screen.getvalue()


def test_its_config_has_a_section_of_its_own_and_is_read_back(tiny_data: Path, tmp_path: Path) -> None:
    result, told = run_toy(tiny_data, tmp_path / "r")
    assert "one target in 4" in told and "masked loss" in told
    saved = load_run_config(tmp_path / "r/config.yaml")
    assert isinstance(saved, ToyConfig) and saved.mask.every == 4 and saved.stage == "toy"
    with pytest.raises(UserError, match=r"unknown key mask\.ever = 3"):
        load_run_config({**config_of(tiny_data, tmp_path / "x"), "mask": {"ever": 3}})
    with pytest.raises(UserError, match="there is no stage 'toi'"):
        load_run_config({**config_of(tiny_data, tmp_path / "x"), "stage": "toi"})
    assert result.state.num_tokens == 12 * 4 * 8  # steps x rows x targets that count in 32


def test_its_loss_figures_and_evaluation_are_logged(tiny_data: Path, tmp_path: Path) -> None:
    run_toy(tiny_data, tmp_path / "r")
    rows = log_without_clock(tmp_path / "r")
    assert [row["masked_targets"] for row in rows] == [1.0] * 12  # figures are means over the targets
    assert [row["step"] for row in rows if "masked_loss" in row] == [5, 10, 12]
    assert "embed_tokens" not in rows[0]["update_ratios"]  # it is frozen
    losses = {row["step"]: row["masked_loss"] for row in rows if "masked_loss" in row}
    assert read_run(tmp_path / "r").newest.info["step"] == 12
    assert (tmp_path / "r/best").resolve().name == f"step-{min(losses, key=losses.__getitem__):08d}"


def test_a_frozen_weight_stays_and_has_no_optimizer_state(tiny_data: Path, tmp_path: Path) -> None:
    run_toy(tiny_data, tmp_path / "r")
    last = tmp_path / "r/last"
    fresh = build_model(load_run_config(tmp_path / "r/config.yaml").model, seed=0, dropout=0.1)
    weights = load_file(last / "model.safetensors")
    assert torch.equal(weights["model.embed_tokens.weight"], fresh.model.embed_tokens.weight)
    assert not torch.equal(weights["model.norm.weight"], fresh.model.norm.weight)
    assert not [name for name in load_file(last / "trainer_state/optimizer.safetensors") if "embed" in name]


def test_a_resumed_run_is_the_run_that_was_never_stopped(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toy(tiny_data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        inner = loop.train
        patch.setattr(engine, "train", lambda job, state, _: inner(job, state, lambda: state.step >= 7))
        assert run_toy(tiny_data, tmp_path / "parts")[0].status == "stopped"
    run_toy(tiny_data, tmp_path / "parts", resume=True)
    assert fingerprint(tmp_path / "parts") == fingerprint(tmp_path / "whole")
    assert log_without_clock(tmp_path / "parts") == log_without_clock(tmp_path / "whole")
    config = load_run_config({**config_of(tiny_data, tmp_path / "parts", steps=14), "mask": {"every": 5}})
    with pytest.raises(UserError, match=r"cannot resume: mask\.every was 4 and is now 5"):
        launch(Request(config, "toy", resume=True, command=["test"]), Console(file=io.StringIO()))


def test_a_step_is_made_again_with_its_own_loss(tiny_data: Path, tmp_path: Path) -> None:
    run_toy(tiny_data, tmp_path / "r")
    screen = io.StringIO()
    gradient = replay(tmp_path / "r", 7, Console(file=screen, width=200))
    assert gradient.loss == pytest.approx(log_without_clock(tmp_path / "r")[6]["loss"], rel=1e-6)
    assert "masked micro-batches" in screen.getvalue() and "not the same step" not in screen.getvalue()


def test_it_fits_its_minutes(tiny_data: Path, tmp_path: Path) -> None:
    result, told = run_toy(tiny_data, tmp_path / "r", steps=None, max_train_minutes=0.01)
    assert result.status == "finished" and " 0.01 minutes;" in told
    assert result.state.counts["evaluations"] >= 1
    assert f"model   {tmp_path / 'r'}/best" in told  # what the figures are of, where anything was evaluated


def test_only_the_checks_that_it_names_judge_it(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overfitting(evidence: Evidence) -> Finding:
        return Finding("overfitting", "It overfits.", "Stop.")

    def data_repeated(evidence: Evidence) -> Finding:
        return Finding("data repeated", "It repeats.", "Stop.")

    monkeypatch.setattr(diagnose, "CHECKS", (overfitting, data_repeated))
    run_toy(tiny_data, tmp_path / "r")
    info = json.loads((tmp_path / "r/last/run_info.json").read_text(encoding="utf-8"))
    assert info["checks"] == ["overfitting", "rate_too_high"] and info["toy"] == 4
    page = (tmp_path / "r/report.html").read_text(encoding="utf-8")
    assert "It overfits." in page and "It repeats." not in page


def test_two_processes_take_the_same_steps(tiny_data: Path, tmp_path: Path, worlds: Worlds) -> None:
    """In fp32 the losses of both differ by rounding alone."""
    run_toy(tiny_data, tmp_path / "one", precision="fp32", dropout=0.0)
    worlds.results(2, "toy", tree=config_of(tiny_data, tmp_path / "two", precision="fp32", dropout=0.0))
    one, two = ([row["loss"] for row in log_without_clock(tmp_path / name) if "loss" in row] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
