"""A step is made again with the settings it was made with, whatever a resumption changed since."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from rich.console import Console
from run_helpers import log_without_clock, run_tiny

from tiny_transformer.stages.replay import replay


def test_a_step_from_before_a_changed_resumption(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    options = {"schedule": "constant", "warmup_steps": 2, "eval_steps": None, "keep_checkpoints": 9, "save_steps": 4}
    run_tiny(tiny_data, run, steps=8, **options)
    run_tiny(tiny_data, run, steps=12, learning_rate=5e-2, resume=True, **options)
    logged = {record["step"]: record for record in log_without_clock(run)}
    for step in (3, 6, 8, 11):
        screen = io.StringIO()
        gradient = replay(run, step, Console(file=screen, width=300))
        assert (gradient.loss, gradient.norm) == (logged[step]["loss"], logged[step]["grad_norm"]), step
        assert f"learning rate {logged[step]['learning_rate']:.3g}" in screen.getvalue()
        assert "not the same step" not in screen.getvalue()
    for step in (4, 8):
        shutil.rmtree(run / f"step-{step:08d}" if (run / f"step-{step:08d}").exists() else run / f"step-{step}")
    screen = io.StringIO()
    replay(run, 6, Console(file=screen, width=300))
    assert "there is no checkpoint to resume from: starting from the beginning" in screen.getvalue()
    assert "not the same step: its learning_rate was 0.001 in the log and is 0.05 now" in screen.getvalue()
