"""The same loss, how much sooner: nanoGPT's recipe against ours, on the same text, at the same size, in the same run.

    python benchmarks/race.py --text TEXT --minutes 8     # any source `prepare` knows, about ten minutes
    python benchmarks/race.py --quick                     # a smoke test on the built-in stories

nanoGPT's recipe (commit 3adf61e: its model, AdamW 1e-3 with betas 0.9 and 0.99, 100 steps of warm-up, cosine to a
tenth, 16 x 256 tokens a step) trains for so many minutes; its steps are planned from its measured speed, so that its
rate has decayed by then. Ours is `tiny-transformer train --config benchmarks/race.yaml`, a Qwen3 of as many parameters
(its embedding and head are two matrices, so that fewer of them cost arithmetic), in a fraction of the time. Both read
the same token files, made from the raw text by `prepare`, whose time counts for both; both end with a checkpoint on
disk. The loss is that of the whole validation split, taken afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import keep, machine
from peers import NanoGPT, Shape, nanogpt_optimizer
from safetensors.torch import save_file
from torch import nn

from tiny_transformer.data.batches import Batches, evaluation_batches
from tiny_transformer.data.token_file import Dataset, open_dataset
from tiny_transformer.evaluation.loss import evaluate_split
from tiny_transformer.hardware import Hardware, choose_hardware, keep_freed_memory
from tiny_transformer.models import load_model

HERE = Path(__file__).resolve().parent
WARMUP, PEAK, FLOOR = 100, 1e-3, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="stories", help="what `prepare --source` takes")
    parser.add_argument("--minutes", type=float, default=8.0, help="of nanoGPT's recipe")
    parser.add_argument("--speedups", type=float, nargs="+", default=[5.0, 3.0], help="ours gets a part of that time")
    parser.add_argument("--steps", type=int, help="of nanoGPT's recipe, instead of minutes")
    parser.add_argument("--quick", action="store_true", help="a few steps of both, no result file")
    options = parser.parse_args()
    if options.quick:
        options.steps = 12
    about = machine(["torch", "tokenizers"])
    keep_freed_memory()  # for the peer too
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        results = {"machine": about, "threads": torch.get_num_threads(), **race(options, Path(scratch))}
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(f"kept in {keep('race', results)}")


def race(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One after the other; the seconds of each count `prepare`, the start of Python, training and saving."""
    data, cli = scratch / "data", [sys.executable, "-m", "tiny_transformer"]
    limit = ["--max_bytes", "400000"] if options.quick else []
    tokens = ["--vocab_size", "4096", "--seq_len", "256", "--val_fraction", "0.01", *limit]
    preparing = run([*cli, "prepare", "--source", options.text, "--out_dir", str(data), *tokens])
    dataset = open_dataset(data)
    theirs = nanogpt(dataset, options, scratch / "nanogpt.safetensors")
    theirs["seconds, raw text to checkpoint"] = round(theirs["seconds"] + preparing, 1)
    attempts, sooner = [], []
    for speedup in [1.0] if options.quick else options.speedups:
        minutes = 0.1 if options.quick else ((theirs["seconds"] + preparing) / speedup - preparing) / 60
        ours = train_ours(cli, dataset, data, minutes, scratch / f"run-{speedup:g}")
        ours["seconds, raw text to checkpoint"] = round(ours["seconds"] + preparing, 1)
        if ours["val_loss"] <= theirs["val_loss"]:
            sooner.append((theirs["seconds"] + preparing) / (ours["seconds"] + preparing))
        attempts.append(ours)
    return {
        "text": Path(options.text).name,
        "train_tokens": dataset.meta.train.num_tokens,
        "prepare_seconds": round(preparing, 1),
        "nanoGPT": theirs,
        "ours": attempts,
        "at least as good, sooner by": round(max(sooner), 2) if sooner else None,
    }


def run(command: list[str]) -> float:
    """Seconds of a command from start to end."""
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def train_ours(cli: list[str], dataset: Dataset, data: Path, minutes: float, out_dir: Path) -> dict[str, Any]:
    """The product as a user runs it; its validation is not counted either."""
    config = ["--config", str(HERE / "race.yaml"), "--data_dir", str(data), "--out_dir", str(out_dir)]
    seconds = run([*cli, "train", *config, "--max_train_minutes", f"{minutes:.3f}"])
    info = json.loads((out_dir / "last" / "run_info.json").read_text())
    return {
        "seconds": seconds,
        "training_seconds": info["elapsed_seconds"],
        "parameters": info["num_parameters"],
        "steps": info["step"],
        "tokens": info["num_tokens"],
        **validation(load_model(out_dir / "last"), dataset, choose_hardware()),
    }


def nanogpt(dataset: Dataset, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """nanoGPT's recipe; its validation is not counted, its steps are planned from the first ten."""
    shape = Shape(256, 6, 8, 8, 1024, dataset.tokenizer.vocab_size, 256, 16)
    hardware = choose_hardware()
    started = time.perf_counter()
    torch.manual_seed(1337)
    model = NanoGPT(shape).to(hardware.device)
    optimizer = nanogpt_optimizer(model, PEAK)
    batches = Batches(dataset.train, seq_len=256, global_batch_size=16, seed=1337)
    total, step = options.steps, 0
    while total is None or step < total:
        if total is None and step == 10:
            total = max(20, int(options.minutes * 60 / ((time.perf_counter() - started) / step)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK * factor(step, total or 1000)
        batch = batches.batch(step).to(hardware.device)
        with hardware.autocast():
            loss = model(batch.input_ids, batch.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0:
            print(f"nanoGPT: step {step} of {total}, loss {loss.item():.3f}", flush=True)
    save_file({name: p.detach() for name, p in model.named_parameters()}, path)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "tokens": step * shape.tokens,
        **validation(Logits(model), dataset, hardware),
    }


def factor(step: int, total: int) -> float:
    """nanoGPT's schedule: linear warm-up, then a cosine down to a tenth."""
    if step < WARMUP:
        return (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / max(1, total - WARMUP)
    return FLOOR + 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) * (1 - FLOOR)


class Logits(nn.Module):
    """nanoGPT behind our models' call."""

    def __init__(self, model: NanoGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, positions: None, doc_ids: None) -> torch.Tensor:
        return self.model.logits(ids)


def validation(model: nn.Module, dataset: Dataset, hardware: Hardware) -> dict[str, float]:
    """The loss on the whole split."""
    batches = evaluation_batches(dataset.val, seq_len=256, batch_size=16)
    loss = evaluate_split(model, batches, num_bytes=dataset.meta.val.num_bytes, hardware=hardware)
    return {"val_loss": loss.nats_per_token, "val_bits_per_byte": loss.bits_per_byte}


if __name__ == "__main__":
    main()
