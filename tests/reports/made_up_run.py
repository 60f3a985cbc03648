"""A made-up run directory, written as training writes it: a finished run of 2,000 steps with two checkpoints."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from tiny_transformer.storage import RunDirectory

FLOOR = {"nats_per_token": 1.5, "bits_per_byte": 0.69}
PARTS = ["embed_tokens", *(f"layers.{i}" for i in range(6)), "norm"]
CONFIG = {
    "model": {"model_type": "qwen3", "hidden_size": 192, "num_hidden_layers": 6, "rope_scaling": None},
    "data": {"source": "stories", "seq_len": 256},
    "training": {"steps": 2000, "learning_rate": 0.0012, "sample_prompts": ["Once upon a time", "Mia and Tom"]},
    "out_dir": "runs/demo",
}
SAMPLES = [
    {
        "prompt": "Once upon a time",
        "text": ", there was a little fox named Pip.\n\nPip liked to look at the stars.",
        "step": 2000,
        "settings": {"temperature": 0.8, "top_k": 40},
    },
    *(
        {"prompt": "Mia and Tom", "text": text, "step": step, "settings": {"temperature": 0.0}}
        for step, text in ((20, " the the the"), (600, " went to the sea."), (2000, " found a small blue shell."))
    ),
]


def log_row(step: int, *, evaluated: bool) -> dict[str, Any]:
    """One line of log.jsonl; the validation loss falls to 1.62 at step 2,000."""
    value = 1.5 + 6.9 * math.exp(-step / 90) + 0.1 * math.exp((2000 - step) / 900)
    row: dict[str, Any] = {
        "step": step,
        "epoch": step / 800,
        "num_tokens": step * 4096,
        "loss": value + random.Random(step).gauss(0, 0.05),
        "learning_rate": 0.0012 * min(1, step / 100) * (0.55 + 0.45 * math.cos(math.pi * step / 2000)),
        "grad_norm": 0.4 + random.Random(-step).expovariate(6),
        "elapsed_seconds": step * 0.288,
        "tokens_per_second": 14222.0 + random.Random(step + 7).gauss(0, 300),
        "update_ratios": {part: 2e-3 * (1 + place) for place, part in enumerate(PARTS)},
        "part_grad_norms": {part: 0.1 + 0.05 * place for place, part in enumerate(PARTS)},
        "seconds": {
            "data": step * 0.001,
            "forward_backward": step * 0.2,
            "optimizer": step * 0.05,
            "evaluations": step * 0.02,
            "saves": step * 0.01,
            "samples": step * 0.003,
            "logging": step * 0.002,
        },
        "peak_memory_bytes": 900_000_000 + step * 1000,
    }
    if evaluated:
        row |= {"val_loss": value + 0.02, "val_perplexity": math.exp(value + 0.02), "val_bits_per_byte": value * 0.46}
    return row


def run_info(step: int, **changes: Any) -> dict[str, Any]:
    """The run_info.json of a checkpoint."""
    row = log_row(step, evaluated=True)
    return {
        "run": "demo",
        "step": step,
        "total_steps": 2000,
        "epoch": row["epoch"],
        "num_tokens": row["num_tokens"],
        "train_loss": row["loss"],
        "val_loss": row["val_loss"],
        "eval_loss": row["val_loss"],
        "val_perplexity": row["val_perplexity"],
        "val_bits_per_byte": row["val_bits_per_byte"],
        "floor": FLOOR,
        "num_parameters": 3_456_000,
        "elapsed_seconds": row["elapsed_seconds"],
        "status": "finished" if step == 2000 else "running",
        "saved_at": "2026-11-21T10:30:00+00:00",
        "versions": {"tiny_transformer": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "device": "cpu",
        "num_threads": 2,
        "precision": "fp32",
        "command": ["tiny-transformer", "train", "--config", "configs/demo.yaml"],
        "tokenizer": {"name": "bpe-2048", "vocab_size": 2048, "fingerprint": "9f2c7a1b"},
        "data": {
            "source": "stories",
            "train_tokens": 1_638_400,
            "val_tokens": 32_768,
            "val_documents": 130,
            "unigram_nats": 5.4,
        },
    } | changes


def write_log(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    (run_dir / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_checkpoint(run_dir: Path, step: int, info: dict[str, Any], *marks: str) -> Path:
    """A whole checkpoint with 5,000 bytes of weights, and the links that lead to it."""
    run = RunDirectory(run_dir)
    with run.lock():
        with run.publish_step(step) as staging:
            staging.write("model.safetensors", b"\0" * 5000)
            staging.write("run_info.json", json.dumps(info))
        for mark in marks:
            run.point(mark, step)
    return run.step_path(step)


def make_run(runs_dir: Path, name: str, *, config: Any = CONFIG, samples: Any = SAMPLES, **info: Any) -> Path:
    """Makes `runs_dir/NAME`; `info` changes every run_info.json."""
    run_dir = runs_dir / name
    run_dir.mkdir(parents=True)
    header = "# tiny-transformer train --config configs/demo.yaml\n# tiny-transformer 0.1.0\n"
    (run_dir / "config.yaml").write_text(header + yaml.safe_dump(config, sort_keys=False))
    write_log(run_dir, [log_row(step, evaluated=step % 200 == 0) for step in range(10, 2001, 10)])
    save_checkpoint(run_dir, 1000, run_info(1000, **info))
    save_checkpoint(run_dir, 2000, run_info(2000, **info), "last", "best")
    (run_dir / "samples.json").write_text(json.dumps(samples))
    return run_dir
