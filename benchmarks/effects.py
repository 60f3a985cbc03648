"""What each key of a config changes: a small run with one key set otherwise, beside the same run without.

    python benchmarks/effects.py                           # docs/CONFIG_REFERENCE.md; half an hour on one core
    python benchmarks/effects.py --only training.dropout   # one key, printed

Losses are equal seeds after equal steps, and do not depend on what else the machine does; neither do bytes. Memory is
that of a step's tensors, counted (`tiny_transformer.costs.accounting`, equal to PyTorch's allocator). Processor time is
that of a step, the two taken in turn, the median of the ratios. One seed each: the rows of `training.seed` say how much
chance alone moves the loss.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from machine import keep, machine
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.costs import accounting
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.stages.command import run_training

BASE: dict[str, Any] = {
    "model.hidden_size": 64,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 2,
    "model.intermediate_size": 192,
    "model.max_position_embeddings": 256,
    "data.max_bytes": 2_000_000,
    "data.val_fraction": 0.05,
    "data.vocab_size": 512,
    "data.seq_len": 128,
    "training.steps": 200,
    "training.micro_batch_size": 8,
    "training.precision": "fp32",
    "training.attention": "sdpa",
    "training.eval_steps": 200,
    "training.eval_tokens": 16_384,
    "training.sample_prompts": [],
}
TIMED_STEPS, TURNS = 15, 3
COUNTED = {
    "micro_batch_size",
    "grad_accum_steps",
    "optimizer",
    "gradient_checkpointing",
    "precision",
    "dropout",
    "attention",
}
TIMED_PARTS = ("data", "forward_backward", "optimizer", "logging", "evaluations", "saves")
ADAPTERS = {"init_from": "runs/base", "lora.enabled": True, "training.steps": 100}


class Effect(NamedTuple):
    """A key, another value for it, and what is set beside it in both runs."""

    key: str
    value: Any
    beside: Mapping[str, Any] = {}
    timed: bool = False


MUON = {"training.optimizer": "muon"}
EFFECTS = (
    Effect("training.seed", 1),
    Effect("training.seed", 2),
    Effect("training.learning_rate", 1e-4),
    Effect("training.learning_rate", 1e-2),
    Effect("training.learning_rate", 0.3),
    Effect("training.optimizer", "muon", timed=True),
    Effect("training.micro_batch_size", 2, timed=True),
    Effect("training.micro_batch_size", 32),
    Effect("training.gradient_checkpointing", True, timed=True),
    Effect("training.precision", "bf16", timed=True),
    Effect("training.attention", "blocks", timed=True),
    Effect("training.dropout", 0.1, timed=True),
    Effect("training.steps", 400),
    Effect("training.schedule", "constant"),
    Effect("training.schedule", "linear"),
    Effect("training.warmup_fraction", 0.0, {"training.learning_rate": 3e-2}),
    Effect("training.grad_clip", None, {"training.learning_rate": 3e-2}),
    Effect("training.grad_accum_steps", 4, {"training.steps": 50}),
    Effect("training.weight_decay", 1.0),
    Effect("training.beta2", 0.999),
    Effect("training.final_rate_fraction", 0.0),
    Effect("training.zero_residual", True),
    Effect("training.log_steps", 1, timed=True),
    Effect("training.keep_checkpoints", 4, {"training.save_steps": 50}),
    Effect("training.quantize", "int8"),
    Effect("training.quantize", "int4"),
    Effect("data.tokenizer", "byte", {"data.vocab_size": None}),
    Effect("data.vocab_size", 2_048, timed=True),
    Effect("data.packing", "documents", timed=True),
    Effect("data.seq_len", 256, {"training.micro_batch_size": 4}, timed=True),
    Effect("model.hidden_size", 128, timed=True),
    Effect("model.intermediate_size", 384, timed=True),
    Effect("model.num_hidden_layers", 4, timed=True),
    Effect("model.num_hidden_layers", 1),
    Effect("model.num_key_value_heads", 1),
    Effect("model.num_attention_heads", 8, {"model.head_dim": 16}),
    Effect("model.rope_theta", 100.0),
    Effect("model.max_position_embeddings", 8_192),
    Effect("model.initializer_range", 0.2),
    Effect("model.tie_word_embeddings", False),
    Effect("model.model_type", "llama", timed=True),
    Effect("training.muon_learning_rate", 0.03, MUON),
    Effect("lora.rank", 32, ADAPTERS),
    Effect("lora.targets", "q_proj", ADAPTERS),
    Effect("lora.quantize", "int4", ADAPTERS),
    Effect("training.beta1", 0.5),
    Effect("training.decay_fraction", 0.3),
    Effect("training.final_dropout", 0.0, {"training.dropout": 0.3}),
    Effect("training.deterministic", True, timed=True),
    Effect("training.eval_tokens", 4_096, timed=True),
    Effect("model.head_dim", 32),
    Effect("model.rms_norm_eps", 1e-2),
    Effect("model.attention_bias", True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="keys; the result is printed and not kept")
    parser.add_argument("--steps", type=int, default=BASE["training.steps"])
    parser.add_argument("--turns", type=int, default=TURNS, help="of a timed key")
    options = parser.parse_args()
    known = {effect.key for effect in EFFECTS}
    if wrong := set(options.only or ()) - known:
        parser.error(f"no effect of {', '.join(sorted(wrong))} is measured; of these: {', '.join(sorted(known))}")
    torch.set_num_threads(1)
    chosen = [effect for effect in EFFECTS if not options.only or effect.key in options.only]
    results: dict[str, Any] = {"machine": machine(["torch"]), "base": {**BASE, "training.steps": options.steps}}
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="effects-") as scratch:
        os.chdir(scratch)
        measured = Measurements(options.steps)
        if any("init_from" in effect.beside for effect in chosen):
            measured.run({"out_dir": "runs/base"})
        results["effects"] = []
        for effect in chosen:
            results["effects"].append(measured.effect(effect, options.turns))
            if not options.only:
                keep("effects", results)  # an hour is long: what is there is kept
        os.chdir(before)
    print(json.dumps(results, indent=1))


class Measurements:
    """Runs, each made once."""

    def __init__(self, steps: int) -> None:
        self.base = {**BASE, "training.steps": steps}
        self.made: dict[str, dict[str, Any]] = {}
        self.memory: dict[str, int] = {}

    def effect(self, effect: Effect, turns: int) -> dict[str, Any]:
        """Both runs of an effect, and the ratio of their processor times where it is timed."""
        plain, changed = dict(effect.beside), {**effect.beside, effect.key: effect.value}
        row = {
            "key": effect.key,
            "from": self.value(effect.key, plain),
            "to": effect.value,
            "beside": plain,
            "without": self.run(plain),
            "with": self.run(changed),
        }
        if effect.timed:
            row["processor_time"] = self.time_ratio(plain, changed, turns)
        print(effect.key, effect.value, row["with"]["val_loss"], file=sys.stderr, flush=True)
        return row

    def value(self, key: str, plain: Mapping[str, Any]) -> Any:
        """What a key is without being changed."""
        node: Any = load_run_config(None, words({**self.base, **plain})).model_dump(mode="json")
        for part in key.split("."):
            node = node[part]
        return node

    def run(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of a run of the base with changes."""
        name = json.dumps(changes, sort_keys=True)
        if name not in self.made:
            settings = {**self.base, "out_dir": f"runs/{len(self.made)}", **changes}
            train(settings)
            self.made[name] = figures(Path(settings["out_dir"]), settings)
            self.made[name]["step_memory"] = self.step_memory(Path(settings["out_dir"]))
        return self.made[name]

    def step_memory(self, run: Path) -> int | None:
        """Bytes of a step's tensors; counting takes a second, so each kind of step is counted once."""
        config = load_run_config(run / "config.yaml")
        if config.lora.enabled:
            return None
        kind = config.model_dump_json(include={"model": True, "data": {"seq_len", "packing"}, "training": COUNTED})
        if kind not in self.memory:
            cost = accounting.count_step(config, choose_hardware("cpu", config.training.precision))
            self.memory[kind] = sum(cost.memory.values())
        return self.memory[kind]

    def time_ratio(self, plain: Mapping[str, Any], changed: Mapping[str, Any], turns: int) -> float:
        """The median over turns of the changed run's processor time by the plain one's."""
        short = {**self.base, "training.steps": TIMED_STEPS}
        if not any("eval" in key for key in changed):  # the steps alone
            short |= {"training.eval_steps": TIMED_STEPS, "training.eval_tokens": 1_024}
        ratios = []
        for _ in range(turns):
            seconds = [step_seconds({**short, **changes}) for changes in (plain, changed)]
            ratios.append(seconds[1] / seconds[0])
        return round(statistics.median(ratios), 3)


def train(settings: Mapping[str, Any]) -> None:
    """Train without a word."""
    silent = Console(file=io.StringIO(), force_terminal=False)
    run_training(None, words(settings), resume=False, overwrite=False, console=silent)


def step_seconds(settings: Mapping[str, Any]) -> float:
    """What a run says of its steps, with the processor's clock in the place of the wall's."""
    with tempfile.TemporaryDirectory(dir=".") as scratch, mock.patch("time.monotonic", time.process_time):
        train({**settings, "out_dir": f"{scratch}/run"})
        info = json.loads(Path(scratch, "run/last/run_info.json").read_text(encoding="utf-8"))
        return sum(info["seconds"].get(part, 0.0) for part in TIMED_PARTS)


def figures(run: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Loss, size, memory and bytes on disk of a finished run."""
    info = json.loads((run / "last/run_info.json").read_text(encoding="utf-8"))
    config = load_run_config(run / "config.yaml")
    files = [
        path for path in run.rglob("*") if path.is_file() and "last" not in path.parts and "best" not in path.parts
    ]
    last = [path for path in (run / "last").iterdir() if path.is_file()]
    quantized = run / str(settings.get("training.quantize"))
    return {
        "val_loss": info["val_loss"],
        "train_loss": info["train_loss"],
        "bits_per_byte": info["val_bits_per_byte"],
        "best_val_loss": info["best_val_loss"],
        "steps": info["step"],
        "tokens": info["num_tokens"],
        "parameters": info["num_parameters"],
        "cache_per_token": accounting.cache_bytes_per_token(config.model),
        "model_bytes": sum(path.stat().st_size for path in last if path.suffix == ".safetensors"),
        "quantized_bytes": sum(f.stat().st_size for f in quantized.glob("*.safetensors"))
        if quantized.is_dir()
        else None,
        "log_bytes": (run / "log.jsonl").stat().st_size,
        "run_bytes": sum(path.stat().st_size for path in files),
    }


def words(settings: Mapping[str, Any]) -> Sequence[str]:
    """Overrides, as on the command line."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


if __name__ == "__main__":
    main()
