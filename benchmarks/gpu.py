"""The same on a GPU: step times against the measured bf16 peak, and the ten-minute demo from raw text to a sample.

    make peers
    python benchmarks/gpu.py             # unattended, about half an hour; says so and ends where there is no GPU
    python benchmarks/gpu.py --no-demo   # the step times alone
    python benchmarks/gpu.py --device cpu --quick   # every line of it where no GPU is, on a tiny shape; nothing is kept

Shapes are those of GPT-2 (124 M parameters) and of founding document 002 (283 M). The fraction of the peak that a step
reaches, with its FLOPs counted as in `train.py`, is what is commonly called MFU. The demo is that of founding document
000, word for word but for its source (the built-in stories: a GPU machine may have no network); it promises less than
ten minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import keep, machine
from train import NAMES, compare

QUICK = "--hidden_size 64 --num_hidden_layers 2 --micro_batch_size 1 --grad_accum_steps 1 --sample_prompts []"
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "qwen3_demo.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["124M", "283M"])
    parser.add_argument("--only", nargs="+", default=[name for name in NAMES if "litgpt" not in name])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--demo", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="a tiny shape, a demo of a few steps, no result file")
    options = parser.parse_args()
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is for trying this script out: add --quick")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure")
        return
    if options.quick:
        options.shapes, options.rounds, options.steps = ["tiny"], 1, 1
    name = torch.cuda.get_device_name() if options.device == "cuda" else None
    results: dict[str, Any] = {"machine": machine(["torch", "transformers"], name)}
    flash = {name: flash_takes(name, options.device) for name in options.shapes}
    results["flash attention takes our shapes"] = flash
    results["shapes"] = {name: compare(name, options) for name in options.shapes}
    if options.demo:
        results["demo of document 000"] = demo(f"{QUICK} --device {options.device}" if options.quick else "")
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(f"kept in {keep('gpu', results)}")


def flash_takes(shape_name: str, device: str) -> bool:
    """Whether attention of this shape runs in FlashAttention's kernel, through PyTorch's own operator."""
    from peers import SHAPES
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from tiny_transformer.layers.attention import attend

    shape = SHAPES[shape_name]

    def heads(number: int) -> torch.Tensor:
        return torch.randn(2, number, shape.seq_len, shape.head_dim, device=device, dtype=torch.bfloat16)

    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            attend(query=heads(shape.heads), key=heads(shape.kv_heads), value=heads(shape.kv_heads), mask=None)
    except RuntimeError:
        return False
    return True


def demo(smaller: str) -> dict[str, Any]:
    """Seconds of the three commands of document 000, and what came out; `smaller`: options that follow the document's
    own and overrule them."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        data, out_dir = f"{scratch}/data", Path(scratch) / "runs_qwen3"
        most_bytes, steps, tokens = (200_000, 4, 8) if smaller else (100_000_000, 5000, 200)
        prepare = f"--source stories --out_dir {data} --seq_len 512 --max_bytes {most_bytes}"
        train = f"--config {CONFIG} --data_dir {data} --out_dir {out_dir} --steps {steps} --bf16 --eval_steps 500"
        train += f" --save_steps 500 --early_stopping_patience 2 --max_train_minutes 9.5 {smaller}"
        sample = f"--ckpt_dir {out_dir}/best --max_new_tokens {tokens} --prompt"
        seconds = {
            "prepare_dataset": run("prepare_dataset", prepare.split()),
            "train": run("train", train.split()),
            "sample": run("sample", [*sample.split(), "Once upon a time"]),
        }
        info = json.loads((out_dir / "best" / "run_info.json").read_text())
    kept = ("step", "num_tokens", "num_parameters", "val_loss", "val_bits_per_byte", "floor", "precision")
    total = sum(seconds.values())
    return {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "minutes in all": round(total / 60, 2),
        "under ten minutes": total < 600,
        **{name: info[name] for name in kept},
    }


def run(module: str, arguments: list[str]) -> float:
    """Seconds of one of the document's commands."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"tiny_transformer.{module}", *arguments], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
