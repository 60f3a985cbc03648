"""Makes golden runs: small runs that every later version must load and continue with the same losses (row D28).

    python tests/golden/make_golden.py SUFFIX     # for example 0.2: tests/golden/llama-0.2, qwen3-0.2, qwen3_next-0.2

A golden run is never made again: that would only show that a version reads what it has written itself. Each release
adds its own. Those without a suffix are of commit 079fec9, before 0.1.0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tiny_transformer.models import load_model

GOLDEN = Path(__file__).resolve().parent
TOTAL_STEPS, SAVED_STEP, MAX_BYTES = 16, 12, 200_000
PROMPT = list(b"Once upon a time there was")  # tokens of the byte tokenizer, more than the window and the convolution
NUM_GREEDY = 12
CONTINUED = ("step", "num_tokens", "learning_rate", "loss", "val_loss")  # what is compared of the log
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,  # weights so large that each part of the model matters to the logits
}
NEXT: dict[str, Any] = {
    "hidden_size": 8,
    "head_dim": 8,
    "partial_rotary_factor": 0.5,
    "full_attention_interval": 2,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "num_experts": 3,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_nextn_predict_layers": 1,
}
# No dropout, since a processor without MKL draws other random numbers.
TRAINING: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "steps": TOTAL_STEPS,
    "micro_batch_size": 4,
    "learning_rate": 0.01,
    "muon_learning_rate": 0.002,  # Muon makes much of the last digits, in which processors differ
    "eval_steps": 4,
    "save_steps": SAVED_STEP,
    "keep_checkpoints": 9,
    "log_steps": 1,
    "sample_prompts": [],
}
RUNS: dict[str, dict[str, Any]] = {
    "llama": {"model": {**SHAPE, "sliding_window": 20}, "data": {"packing": "documents"}, "training": {}},
    "qwen3": {"model": SHAPE, "data": {}, "training": {"optimizer": "muon", "grad_accum_steps": 2}},
    # Not with Muon: its losses differed by 3e-5 on another processor, probably by tokens that changed their experts.
    "qwen3_next": {"model": {**SHAPE, **NEXT}, "data": {"packing": "documents"}, "training": {}},
}


def make(family: str, directory: Path) -> None:
    """One golden run: what is left when a run is killed after its last but one checkpoint, and how it went on."""
    directory.mkdir()
    given = RUNS[family]
    config = {
        "model": {"model_type": family, **given["model"]},
        "data": {"seq_len": 32, "data_dir": "data", **given["data"]},
        "training": {**TRAINING, **given["training"]},
        "out_dir": "run",
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = "prepare --source stories --tokenizer byte --max_bytes 7000 --val_fraction 0.1 --seq_len 32 --out_dir data"
    tiny_transformer(directory, *words.split())
    tiny_transformer(directory, "train", "--config", "config.json")
    run = directory / "run"
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    continued = [compared(json.loads(line)) for line in lines[SAVED_STEP:]]
    (run / "log.jsonl").write_text("".join(lines[:SAVED_STEP]), encoding="utf-8")
    keep_what_a_killed_run_leaves(directory)
    checkpoint = run / f"step-{SAVED_STEP:08d}"
    tokens, margin = greedy(checkpoint)
    expected = {"logits": logits_of(checkpoint, PROMPT).tolist(), "greedy": tokens, "continued": continued}
    (directory / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"{directory}: {size:,} bytes; each greedy token leads by {margin:.4f} or more")
    if size > MAX_BYTES or margin < 1e-3:
        raise SystemExit("too large, or too undecided for other processors")


def logits_of(checkpoint: Path, tokens: list[int]) -> torch.Tensor:
    """(V,) logits in fp32 for the token after `tokens`."""
    with torch.no_grad():
        return load_model(checkpoint)(torch.tensor([tokens]))[0, -1]


def greedy(checkpoint: Path) -> tuple[list[int], float]:
    """The likeliest continuation of the prompt, and the least lead of a token over the second likeliest."""
    tokens, leads = [], []
    for _ in range(NUM_GREEDY):
        best = logits_of(checkpoint, [*PROMPT, *tokens]).topk(2)
        leads.append(float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
    return tokens, min(leads)


def compared(record: dict[str, Any]) -> dict[str, float]:
    """What is compared of a line of log.jsonl; not every one has a validation loss."""
    return {key: record[key] for key in CONTINUED if key in record}


def tiny_transformer(directory: Path, *arguments: str) -> None:
    """The command line, with a name for itself that holds no path of this machine."""
    code = "import sys; sys.argv[0] = 'tiny-transformer'; from tiny_transformer.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(GOLDEN.parents[1])}
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=directory, env=environment, check=True)


def keep_what_a_killed_run_leaves(directory: Path) -> None:
    """One checkpoint, and no links, which a resumed run makes anew and archives may spoil."""
    run = directory / "run"
    for path in run.glob("step-*"):
        if path.name != f"step-{SAVED_STEP:08d}":
            shutil.rmtree(path)
    for path in (run / "last", run / "best", run / "report.html", run / "loss.svg", directory / "config.json"):
        path.unlink()
    for path in directory.rglob(".lock"):
        path.unlink()


if __name__ == "__main__":
    suffix = f"-{sys.argv[1]}" if len(sys.argv) > 1 else ""
    for family in RUNS:
        make(family, GOLDEN / (family + suffix))
