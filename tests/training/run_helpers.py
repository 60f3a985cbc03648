"""A tiny run for the tests of training: prepared data, a config, and how two runs are compared."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request, RunResult
from tiny_transformer.training.contract import Evaluation

CLOCK_KEYS = {"elapsed_seconds", "tokens_per_second", "seconds", "peak_memory_bytes", "peak_device_memory_bytes"}
TINY: dict[str, Any] = {
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    "data": {"seq_len": 32},
    "training": {
        "device": "cpu",
        "precision": "fp32",
        "steps": 12,
        "micro_batch_size": 4,
        "dropout": 0.1,
        "optimizer": "muon",
        "eval_steps": 5,
        "save_steps": 4,
        "log_steps": 1,
        "sample_prompts": [],
        "lost_rank_seconds": 1000,
    },
}


def prepare_tiny(data_dir: Path) -> Path:
    """A few stories in bytes."""
    prepare(DataConfig(source="stories", tokenizer="byte", max_bytes=60_000, val_fraction=0.05, seq_len=32), data_dir)
    return data_dir


def tiny_request(
    data_dir: Path, out_dir: Path, *, resume: bool = False, overwrite: bool = False, **training: Any
) -> Request:
    """A request for the tiny run, with some settings of training changed."""
    tree = {
        **TINY,
        "data": {**TINY["data"], "data_dir": str(data_dir)},
        "training": {**TINY["training"], **training},
        "out_dir": str(out_dir),
    }
    return Request(load_run_config(tree), "tiny", resume=resume, overwrite=overwrite, command=["test"])


def run_tiny(data_dir: Path, out_dir: Path, **options: Any) -> RunResult:
    """Run it, silently."""
    return launch(tiny_request(data_dir, out_dir, **options), Console(file=io.StringIO()))


def evaluation(loss: float) -> Evaluation:
    """What an evaluation of pretraining gives, made up."""
    return Evaluation(loss, {"val_loss": loss, "val_perplexity": math.exp(loss), "val_bits_per_byte": loss})


def fingerprint(run_dir: Path, name: str = "last") -> dict[str, bytes]:
    """The bytes of everything in a checkpoint that training computes."""
    checkpoint = run_dir / name
    weights = ("model.safetensors", "adapter_model.safetensors")
    files = [file for file in (*weights, "trainer_state/optimizer.safetensors") if (checkpoint / file).is_file()]
    return {file: (checkpoint / file).read_bytes() for file in files}


def log_without_clock(run_dir: Path) -> list[dict[str, Any]]:
    """log.jsonl without its clock readings."""
    lines = (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK_KEYS} for line in lines]
