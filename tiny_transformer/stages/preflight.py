"""Before the first step: is there room on the disk for what the run will write, and in memory for a step?

Both are asked for what is known exactly, the tensors; so a run that cannot end well is refused at its start and not
hours later.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.replaced import REPLACED
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.training.optimizers import Optimizers

SPARE = 1.05  # of the disk: a file system needs some room of its own
NEARLY_ALL = 0.9  # of the memory: more than this is worth a warning
OTHER_BYTES = 3_000  # run_info.json, manifest.json, the counters of state.json
REPORT_BYTES = 1_000_000  # the page is kept below; log.jsonl, samples.json


def check_disk(
    run: RunDirectory,
    config: RunConfig,
    model: CausalLM,
    optimizers: Optimizers,
    identity: dict[str, Any],
    tokenizer: Tokenizer,
) -> None:
    """Compare the free space with what the run is going to write: the checkpoints that stay, one in the making, the
    report. What `--overwrite` replaces gives its room after the first save.

    Raises:
        UserError: there is less than that and 5 %.
    """
    save = checkpoint_bytes(model, optimizers, identity, tokenizer)
    needed, free = _needed_bytes(run, config, save), shutil.disk_usage(run.path).free
    freed = sum(path.lstat().st_size for path in (run.path / REPLACED).rglob("*"))
    if free + freed < needed or free < SPARE * save:
        one = config.training.model_copy(update={"keep_checkpoints": 1})
        least = max(_needed_bytes(run, config.model_copy(update={"training": one}), save) - freed, int(SPARE * save))
        fewer = "use --keep_checkpoints 1, " if least <= free else ""
        raise UserError(
            f"the run needs {_megabytes(needed)} of disk space ({_megabytes(save)} per checkpoint), and only "
            f"{_megabytes(free)} is free",
            where=str(run.path),
            remedy=f"free some space, {fewer}or choose another --out_dir",
            exit_code=ExitCode.IO,
        )


def _needed_bytes(run: RunDirectory, config: RunConfig, save: int) -> int:
    return int(SPARE * (missing_saves(run, config) * save + REPORT_BYTES))


def missing_saves(run: RunDirectory, config: RunConfig) -> int:
    """How many checkpoints more there will be at one time, at most: those that stay, `best`, and one in the making."""
    training = config.training
    has_many = training.save_steps is not None or training.eval_steps is not None
    most = (training.keep_checkpoints if has_many else 1) + (training.eval_steps is not None) + 1
    return max(1, most - len(run.checkpoints()))


def checkpoint_bytes(model: CausalLM, optimizers: Optimizers, identity: dict[str, Any], tokenizer: Tokenizer) -> int:
    """The size of one checkpoint, before it is made."""
    weights = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    memory = {name: list(shape) for name, shape in optimizers.shapes().items()}
    texts = (model.config.to_hf(), {"identity": identity})
    return (
        _safetensors_bytes(weights)
        + _safetensors_bytes(memory)
        + sum(len(json.dumps(text, indent=2)) for text in texts)
        + sum(len(text.encode()) for text in tokenizer.files(model.config.max_position_embeddings).values())
        + OTHER_BYTES
    )


def _safetensors_bytes(shapes: Mapping[str, list[int]]) -> int:
    """The size of a file of float32 tensors: its header as text, and four bytes a number."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    return 8 + len(json.dumps(header, separators=(",", ":"))) + end


def check_memory(config: RunConfig, hardware: Hardware, console: Console, rows_per_example: int = 1) -> None:
    """Compare the memory that is left with what one step will need at its highest point; `rows_per_example`: see
    `Stage`.

    A step that is small by any measure is not counted: counting takes seconds, and such a run should just start.

    Raises:
        UserError: a step cannot fit.
    """
    training, available = config.training, available_bytes(hardware.device)
    rows = {"micro_batch_size": rows_per_example * training.micro_batch_size}
    config = config.model_copy(update={"training": training.model_copy(update=rows)})
    if available is None or _at_most(config) < available / 2:
        return
    from tiny_transformer.costs.accounting import count_step

    needed = count_step(config, hardware).memory.total()
    say = f"a step needs {_megabytes(needed)} of memory, and {_megabytes(available)} is available"
    ways_out = "a smaller training.micro_batch_size (with more grad_accum_steps), --gradient_checkpointing true, or a "
    ways_out += "smaller model"
    if needed > available:
        raise UserError(say, where=hardware.describe(), remedy=ways_out, exit_code=ExitCode.IO)
    if needed > NEARLY_ALL * available:
        console.print(f"[bold yellow]warning[/]: {say}; if it fails: {ways_out}", highlight=False)


def _at_most(config: RunConfig) -> float:
    """More bytes than one step can need, from a model without weights."""
    from tiny_transformer.models import empty_model

    model, training = config.model, config.training
    model_on_paper = empty_model(model, device="meta")
    tokens = training.micro_batch_size * config.data.seq_len
    widest = max(parameter.shape[0] for parameter in model_on_paper.parameters())
    per_layer = 64 * (model.hidden_size + model.intermediate_size + model.num_attention_heads * model.head_dim)
    scores = 4 * model.num_attention_heads * config.data.seq_len
    return 24.0 * sum(p.numel() for p in model_on_paper.parameters()) + 4.0 * tokens * (
        4 * widest + model.num_hidden_layers * (per_layer + scores)
    )


def available_bytes(device: torch.device) -> int | None:
    """What new tensors on a device may take; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    return min([*_system_bytes(), *_group_bytes(), *_process_bytes()], default=None)


def _system_bytes() -> list[int]:
    """What the kernel could hand out now."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return [1024 * int(line.split()[1])]
    return []


def _group_bytes(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a container's limit leaves (control groups 2, then 1). Its files in memory can be given up and count as
    free."""
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            total, now = (int((root / name).read_text(encoding="utf-8")) for name in (limit, used))
            lines = ((root / used).parent / "memory.stat").read_text(encoding="utf-8").splitlines()
            return [total - now + sum(int(line.split()[1]) for line in lines if line.split()[0] == files)]
    return []


def _process_bytes() -> list[int]:
    """What the limit of this process's address space leaves (`ulimit -v`)."""
    with suppress(ImportError, OSError):
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

        limit = getrlimit(RLIMIT_AS)[0]
        if limit != RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
            return [limit - pages * os.sysconf("SC_PAGE_SIZE")]
    return []


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.1f} MB"
