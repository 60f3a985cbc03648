"""Measures what training steps take: `python memory_of_a_step.py CONFIGS.json` prints one JSON object per config.

Each config is measured in a process of its own (a fork of this one, so that PyTorch is imported once), as the system
sees it and as PyTorch's allocator does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.batches import Batch
from tiny_transformer.hardware import choose_hardware, keep_freed_memory
from tiny_transformer.models import build_model
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.optimizers import Optimizers

TINY = ["vocab_size=64", "hidden_size=64", "num_hidden_layers=1", "data.seq_len=16", "micro_batch_size=2"]


class RandomTokens:
    """Batches of random tokens, the size the config asks for."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def micro_batches(self, step: int, micro_batch_size: int) -> list[Batch]:
        shape = (micro_batch_size, self.config.data.seq_len)
        made = []
        for _ in range(self.config.training.grad_accum_steps):
            ids = torch.randint(0, self.config.model.vocab_size or 1, shape)
            packed = {}
            if self.config.data.packing == "documents":
                place = torch.arange(shape[1]).expand(shape)
                packed = {"doc_ids": place // 50, "positions": place % 50}
            made.append(Batch(ids, ids.roll(-1, 1), ids.numel(), ids[:, 0].clone(), **packed))
        return made

    def epoch(self, step: int) -> float:
        return 0.0


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def prepare(config: RunConfig) -> tuple[Callable[[], None], Callable[[], int]]:
    """Something that takes one training step, and something that tells the bytes kept between steps."""
    hardware = choose_hardware(config.training.device, config.training.precision)
    model = build_model(config.model, seed=0, dropout=config.training.dropout).train()
    optimizers, batches = Optimizers(model, config.training), RandomTokens(config)

    def step() -> None:
        compute_gradient(model, batches, 0, config.training, hardware, language_modelling_loss)
        optimizers.step(0.01)

    def kept() -> int:
        tensors = [*model.parameters(), *optimizers.state().values()]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    return step, kept


def measure(config: RunConfig) -> dict[str, int]:
    """Bytes at the highest point of the second and later steps: `allocated` by tensors, and, since before the model was
    built, `resident` of the process."""
    before = status("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts here
    step, kept = prepare(config)
    for _ in range(2):
        step()
    resident, now, highest = status("VmHWM:") - before, kept(), 0
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    results = profiler.profiler.kineto_results  # ty: ignore[unresolved-attribute]
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return {"resident": resident, "allocated": highest}


def main() -> None:
    keep_freed_memory()
    for overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        config = load_run_config(None, overrides)
        sys.stdout.flush()
        if os.fork() == 0:
            prepare(load_run_config(None, TINY))[0]()  # loads the program's own pages
            print(json.dumps(measure(config)), flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
