"""Each thing a run remembers, changed on the disk: the resumed run must differ in something that can be seen.

So nothing in the state is decorative; that nothing is missing is what the chains show (`test_chains`).
"""

from __future__ import annotations

import io
import json
import shutil
import types
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import evaluation, fingerprint, log_without_clock, tiny_request
from safetensors.torch import load_file, save_file

from tiny_transformer.hardware import Hardware, choose_hardware
from tiny_transformer.stages import launch as launching
from tiny_transformer.stages import run as stage
from tiny_transformer.stages.launch import launch
from tiny_transformer.storage import publish
from tiny_transformer.training import loop, loss_scale
from tiny_transformer.training import state as train_state
from tiny_transformer.training.speed import Speed
from tiny_transformer.training.state import TrainState

Edit = Callable[[Any], Any]
WEIGHTS, OPTIMIZER, COUNTERS = "model.safetensors", "trainer_state/optimizer.safetensors", "trainer_state/state.json"
MINUTES = {"max_train_minutes": 0.06, "steps": None}
PATIENCE = {"early_stopping_patience": 4, "eval_steps": 1}


def tensors_ending(end: str) -> Edit:
    """Move one element of the first tensor of such a name."""

    def edit(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(name for name in sorted(tensors) if name.endswith(end))
        changed = tensors[name].clone()
        changed.view(-1)[0] += 1.0
        return {**tensors, name: changed}

    return edit


def counter(name: str, value: Any) -> Edit:
    """Put another value in state.json; `name` may lead into a table."""

    def edit(counters: dict[str, Any]) -> dict[str, Any]:
        outer, _, inner = name.partition(".")
        return {**counters, outer: {**counters[outer], inner: value} if inner else value}

    return edit


# What is changed, in which file, how, and the settings of the run in which it can be seen.
ROWS: dict[str, tuple[str, Edit, dict[str, Any]]] = {
    "weights": (WEIGHTS, tensors_ending("norm.weight"), {}),
    "exp_avg": (OPTIMIZER, tensors_ending("/exp_avg"), {}),
    "exp_avg_sq": (OPTIMIZER, tensors_ending("/exp_avg_sq"), {}),
    "AdamW's step": (OPTIMIZER, tensors_ending("/step"), {}),
    "momentum_buffer": (OPTIMIZER, tensors_ending("/momentum_buffer"), {}),
    "num_tokens": (COUNTERS, counter("num_tokens", 1), {}),
    "elapsed_seconds": (COUNTERS, counter("elapsed_seconds", 1.0), MINUTES),
    "best_val_loss": (COUNTERS, counter("best_val_loss", 0.5), {"eval_steps": 1}),
    "best_step": (COUNTERS, counter("best_step", 2), {"eval_steps": 1}),
    "evaluations_without_gain": (COUNTERS, counter("evaluations_without_gain", 3), PATIENCE),
    "loss_scale": (COUNTERS, counter("loss_scale", 4.0), {"precision": "fp16"}),
    "steps_at_loss_scale": (COUNTERS, counter("steps_at_loss_scale", 7), {"precision": "fp16"}),
    "metrics.val_loss": (COUNTERS, counter("metrics.val_loss", 9.0), {"eval_steps": 5}),
    "metrics.val_perplexity": (COUNTERS, counter("metrics.val_perplexity", 9.0), {"eval_steps": 5}),
    "metrics.val_bits_per_byte": (COUNTERS, counter("metrics.val_bits_per_byte", 9.0), {"eval_steps": 5}),
    **{
        f"seconds.{kind}": (COUNTERS, counter(f"seconds.{kind}", 0.0 if kind == "steps" else 1.0), MINUTES)
        for kind in ("steps", "data", "forward_backward", "optimizer", "logging", "planning")
    },
    **{
        f"seconds.{kind}": (COUNTERS, counter(f"seconds.{kind}", 30.0), {**MINUTES, "sample_prompts": ["Once"]})
        for kind in ("evaluations", "saves", "samples")
    },
    "plan.segments": ("plan.json", lambda plan: {**plan, "segments": [[0, 0.0, 14]], "total_steps": 14}, {}),
    "plan.warmup_steps": ("plan.json", counter("warmup_steps", 9), {}),
    "plan.reason": ("plan.json", counter("reason", "because"), {}),
    "plan.asked": ("plan.json", counter("asked.minutes", 9.0), MINUTES),
    "plan.is_fixed": ("plan.json", counter("is_fixed", True), MINUTES),
}
# Checked (the step, too: it is the checkpoint's name), compared, and for readers; of the counts only what is added to
# them within one start is looked at.
NOT_STATE = {"format_version", "identity", "total_steps", "plan", "sha256", "step", "counts"}
TOLD_BY_THE_LOG = {"metrics.loss"}  # only a run whose log has no loss shows it


class Clock:
    """Goes on by ten milliseconds each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """The time."""
        self.now += 0.01
        return self.now


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same readings of the clock in every run, losses that first fall and then rise, and fp16 on the CPU."""
    monkeypatch.setattr(stage.Run, "measure_speed", lambda run: Speed(0.02, 0.02, 0.02, 0.02))
    monkeypatch.setattr(stage.Run, "evaluate", lambda run: evaluation(1.0 + abs(run.state.step - 4)))
    choose = choose_hardware
    half = Hardware(torch.device("cpu"), torch.float16)
    monkeypatch.setattr(
        "tiny_transformer.stages.launch.choose_hardware", lambda d, p: half if p == "fp16" else choose(d, p)
    )
    monkeypatch.setattr(loss_scale, "STEPS_UNTIL_DOUBLED", 10)


def start(data_dir: Path, run_dir: Path, *, resume: bool, stop_at: int | None = None, **options: Any) -> dict[str, Any]:
    """One start of the run; everything about it that can be seen."""
    with pytest.MonkeyPatch.context() as patch:
        inner, clock, screen = loop.train, Clock(), io.StringIO()
        for module in (loop, train_state, stage, launching):
            patch.setattr(module, "time", types.SimpleNamespace(monotonic=clock.monotonic))
        if stop_at is not None:
            patch.setattr(stage, "train", lambda job, state, _: inner(job, state, lambda: state.step >= stop_at))
        request = tiny_request(data_dir, run_dir, resume=resume, **{"save_steps": 2, "keep_checkpoints": 9, **options})
        console = Console(file=screen, width=200, color_system=None)
        outcome = launch(request, console)
        outcome.stage.show_figures(outcome, console)
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    infos = [json.loads(path.read_text()) for path in sorted(run_dir.glob("step-*/run_info.json"))]
    return {
        "weights": fingerprint(run_dir),
        "log": log_without_clock(run_dir),
        "where the time went": [record["seconds"] for record in records],
        "clock": [record["elapsed_seconds"] for record in records],
        "end": (outcome.status, outcome.state.step),
        "best": (run_dir / "best").readlink() if (run_dir / "best").is_symlink() else None,
        "screen": [line for line in screen.getvalue().splitlines() if str(run_dir.parent) not in line],
        "run_info": [{key: value for key, value in info.items() if key not in ("saved_at", "log")} for info in infos],
        "plan": (run_dir / "plan.json").read_text(),
    }


def edit_file(run_dir: Path, name: str, edit: Edit) -> None:
    """Change a file of the newest checkpoint, and publish it anew; or plan.json."""
    if name == "plan.json":
        path = run_dir / name
        plan = json.loads(path.read_text())
        del plan["sha256"]  # as in plans of older versions, which have no hash
        path.write_text(json.dumps(edit(plan)))
        return
    old = (run_dir / "last").resolve()
    kept = run_dir.parent / "kept"
    shutil.copytree(old, kept)
    with publish(old, info={"step": int(old.name[5:])}, replace=True) as staging:
        shutil.copytree(kept, staging.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        path = staging.path / name
        if name == COUNTERS:
            path.write_text(json.dumps(edit(json.loads(path.read_text()))))
        else:
            save_file(edit(load_file(path)), path)


@pytest.fixture(scope="module")
def resumed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Stops a run at step 5, changes a file of its state, and resumes it; the run before the change is made once."""
    stopped: dict[str, Path] = {}

    def resume(name: str, edit: Edit, options: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(options)
        if key not in stopped:
            stopped[key] = tmp_path_factory.mktemp("stopped") / "r"
            start(tiny_data, stopped[key], resume=False, stop_at=5, **options)
        run_dir = tmp_path_factory.mktemp("resumed") / "r"
        shutil.copytree(stopped[key], run_dir, symlinks=True)
        edit_file(run_dir, name, edit)
        return start(tiny_data, run_dir, resume=True, **options)

    return resume


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_what_is_remembered_can_be_seen(row: str, resumed: Callable[..., dict[str, Any]]) -> None:
    name, edit, options = ROWS[row]
    plain, changed = resumed(name, lambda same: same, options), resumed(name, edit, options)
    again = resumed(name, lambda same: same, options) if row == "weights" else plain
    assert plain == again  # what differs below differs by the change
    differing = [what for what in plain if plain[what] != changed[what]]
    print(row, differing)
    assert differing


def test_the_rows_name_all_of_the_state(tiny_data: Path, tmp_path: Path) -> None:
    start(tiny_data, tmp_path / "r", resume=False, stop_at=5, **MINUTES, sample_prompts=["Once"])
    counters = json.loads((tmp_path / "r/last" / COUNTERS).read_text())
    plan = json.loads((tmp_path / "r/plan.json").read_text())
    found = {f"plan.{key}" for key in plan.keys() - NOT_STATE}
    for key, value in counters.items():
        if key not in NOT_STATE:
            found |= {f"{key}.{inner}" for inner in value} if isinstance(value, dict) else {key}
    keys = {key.rpartition("/")[2] for key in load_file(tmp_path / "r/last" / OPTIMIZER)}
    found |= {"weights"} | {{"step": "AdamW's step"}.get(key, key) for key in keys}
    assert found - TOLD_BY_THE_LOG == set(ROWS)
    assert {field.name for field in fields(TrainState)} == (counters.keys() - NOT_STATE) | {"step", "counts"}
