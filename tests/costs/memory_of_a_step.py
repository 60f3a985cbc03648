"""Measures what training steps take: `python memory_of_a_step.py CONFIGS.json` prints one JSON object per config.

Each config is measured in a process of its own (a fork of this one, so that PyTorch is imported once), as the system
sees it and as PyTorch's allocator does. The same steps are taken once before: what the libraries keep from then on
(their code, and kernels and buffers that oneDNN makes for each shape it meets: 73 MB for a hybrid in bf16 whose tensors
take 13) is there when the measurement begins.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.batches import TokenBatch
from tiny_transformer.hardware import choose_hardware, keep_freed_memory
from tiny_transformer.models import build_model
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.modifiers import checkpoint_gradients
from tiny_transformer.training.optimizers import Optimizers

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
STEPS = 2


class RandomTokens:
    """Batches of random tokens, the size the config asks for."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def micro_batches(self, step: int, micro_batch_size: int) -> list[TokenBatch]:
        shape = (micro_batch_size, self.config.data.seq_len)
        made = []
        for _ in range(self.config.training.grad_accum_steps):
            ids = torch.randint(0, self.config.model.vocab_size or 1, shape)
            packed = {}
            if self.config.data.packing == "documents":
                place = torch.arange(shape[1]).expand(shape)
                packed = {"doc_ids": place // 50, "positions": place % 50}
            made.append(TokenBatch(ids, ids.roll(-1, 1), ids.numel(), ids[:, 0].clone(), **packed))
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
    torch.manual_seed(0)  # the same tokens each time: experts meet the same numbers of them
    model = build_model(config.model, seed=0, dropout=config.training.dropout).train()
    if config.training.gradient_checkpointing:
        checkpoint_gradients(model)
    optimizers, batches = Optimizers(model, config.training, hardware.update_dtype), RandomTokens(config)

    def step() -> None:
        compute_gradient(
            model,
            batches.micro_batches(0, config.training.micro_batch_size),
            0,
            config.training,
            hardware,
            language_modelling_loss,
        )
        optimizers.step(0.01)

    def kept() -> int:
        tensors = [*model.parameters(), *optimizers.state().values()]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    return step, kept


def warm_up(config: RunConfig) -> None:
    """Take the steps once, and give all memory of their tensors back to the system."""
    libc = ctypes.CDLL(None)
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        libc.mallopt(threshold, 2**16)  # blocks beyond this size go back as soon as they are freed
    step, _ = prepare(config)
    for _ in range(STEPS):
        step()
    del step, _
    gc.collect()
    libc.malloc_trim(0)


def measure(config: RunConfig) -> dict[str, int]:
    """Bytes at the highest point of the second and later steps: `allocated` by tensors, and, since before the model was
    built, `resident` of the process."""
    before = status("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts here
    step, kept = prepare(config)
    for _ in range(STEPS):
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
    for overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        config = load_run_config(None, overrides)
        sys.stdout.flush()
        if os.fork() == 0:
            warm_up(config)
            keep_freed_memory()
            print(json.dumps(measure(config)), flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
