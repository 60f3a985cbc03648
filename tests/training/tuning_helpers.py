"""A tiny fine-tuning run for tests: conversations, a config, one start."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_helpers import TINY, fingerprint, log_without_clock

from tiny_transformer.config.load import load_run_config
from tiny_transformer.stages import run as engine
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request, RunResult
from tiny_transformer.stages.summary import finish
from tiny_transformer.tokenizers import make_tokenizer
from tiny_transformer.training import loop


def write_talks(path: Path, count: int = 40) -> Path:
    """Questions with answers that follow from them."""
    rows = [
        {"question": f"{word} {n}?", "answer": word * 2}
        for n in range(count // 4)
        for word in ("he", "eg", "fox", "no")
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def write_labels(path: Path, count: int = 40) -> Path:
    """Texts whose label is how they end."""
    rows = [{"text": f"hen {n} {'!?'[n % 2]}", "label": ("loud", "asks")[n % 2]} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def write_pairs(path: Path, count: int = 40) -> Path:
    """Questions with an answer that repeats and one that does not."""
    rows = [
        {"prompt": f"{word} {n}?", "chosen": word * 2, "rejected": word[::-1] + "."}
        for n in range(count // 4)
        for word in ("he", "eg", "fox", "no")
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def other_tokenizer(directory: Path) -> Path:
    """One that no run here was trained with."""
    directory.mkdir()
    make_tokenizer("char", texts=["hen"]).save(directory)
    return directory


def tuning_tree(base: Path, source: Path, out_dir: Path, **changes: Any) -> dict[str, Any]:
    """The config of the run; `training` and other sections are added to it."""
    training = {key: value for key, value in TINY["training"].items() if key != "dropout"}
    return {
        "stage": "finetune",
        "init_from": str(base),
        "out_dir": str(out_dir),
        **changes,
        "data": {"source": str(source), "seq_len": 64, "val_fraction": 0.2, **changes.get("data", {})},
        "training": {**training, "optimizer": "adamw", "sample_tokens": 12, "steps": 9, **changes.get("training", {})},
    }


def tune(tree: dict[str, Any], *, resume: bool = False, shows: bool = False) -> tuple[RunResult, str]:
    """One start, and what it told; `shows`: with the end of the run."""
    screen = io.StringIO()
    console = Console(file=screen, width=2000)
    result = launch(Request(load_run_config(tree), "tuned", resume=resume, command=["test"]), console)
    if shows:
        finish(result, console)
    return result, screen.getvalue()


def stop_after(tree: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One start that is asked to stop at a step, and does."""
    inner = loop.train
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train", lambda job, state, _: inner(job, state, lambda: state.step >= step))
        assert tune(tree)[0].status == "stopped"


def check_same_run(parts: Path, whole: Path) -> None:
    """Weights, optimizer and log of two runs are the same."""
    assert fingerprint(parts) == fingerprint(whole)
    assert log_without_clock(parts) == log_without_clock(whole)
