"""Which form of attention a run trains with: timed on the machine it runs on, at its own shape, once, and written down.

The two forms agree up to rounding, so the choice moves the last bits of the weights. It is made when a run starts and
stands in its config.yaml and in its checkpoints; a resumed run takes it from there, and never times anything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.layers.attention import attend, attention_mask
from tiny_transformer.layers.blocked_attention import attend_in_blocks
from tiny_transformer.models.building import has_exchangeable_attention
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.runs import CONFIG_FILE, load_identity
from tiny_transformer.training.modifiers import KEY, no_blocks

SHORTEST = 128  # tokens; of shorter sequences attention is too small a part of a step to be worth a choice
MOST_TOKENS = 4096  # that are timed
GAIN = 1.1  # by which blocks must be faster, so that a tie falls the same way each time
ROUNDS, MOST_SECONDS = 9, 0.5


class AttentionShape(NamedTuple):
    """What the time of attention depends on."""

    rows: int
    heads: int
    groups: int
    head_dim: int
    num_tokens: int
    window: int
    has_documents: bool
    dropout: float
    dtype: torch.dtype
    num_threads: int

    @classmethod
    def of(cls, config: RunConfig, dtype: torch.dtype) -> AttentionShape:
        """A micro-batch of a run; of a long or large one a part, for both forms take as many times as long."""
        model, training = config.model, config.training
        num_tokens = min(config.data.seq_len, MOST_TOKENS)
        windows = [window or num_tokens for _, window in model.attention_lengths(num_tokens) or []]
        return cls(
            min(training.micro_batch_size, MOST_TOKENS // num_tokens),
            model.num_attention_heads,
            model.num_key_value_heads,
            model.head_dim,
            num_tokens,
            max(windows, default=num_tokens),
            config.data.packing == "documents",
            training.dropout,
            dtype,
            torch.get_num_threads(),
        )


def settle_attention(
    config: RunConfig, run_dir: Path, hardware: Hardware, processes: Processes, console: Console, *, resume: bool
) -> RunConfig:
    """The config with `sdpa` or `blocks` in place of `auto`; every process gets the first one's answer.

    A run that was started before there was a choice keeps `auto`, which is computed as `sdpa`.

    Raises:
        UserError: blocks are asked for where they are not used.
    """
    asked = config.training.attention
    if asked == "blocks" and (refusal := _why_no_blocks(config, hardware)):
        if not resume:
            raise refusal
        asked = "sdpa"
    elif asked == "auto" and resume:
        asked = processes.broadcast(_choice_of(run_dir) if processes.is_first else None)
    elif asked == "auto":
        gain = processes.broadcast(gain_of_blocks(config, hardware) if processes.is_first else 0.0)
        asked = "blocks" if gain >= GAIN else "sdpa"
        if asked == "blocks":
            console.print(f"[dim]attention in blocks of queries: {gain:.1f} times as fast here[/]", highlight=False)
    training = config.training.model_copy(update={"attention": asked})
    return config.model_copy(update={"training": training})


def _why_no_blocks(config: RunConfig, hardware: Hardware) -> UserError | None:
    """Why blocks cannot be had here, or None."""
    device, family = hardware.device.type, config.model.model_type
    if device != "cpu":
        what = f"blocked attention is for a CPU, and this run computes on {device}"
        return UserError(what, where=KEY, remedy="leave it out, or device=cpu")
    return None if has_exchangeable_attention(family) else no_blocks(family)


def _choice_of(run_dir: Path) -> str:
    """What a run was started with, as its newest checkpoint that can be read says, or its config.yaml."""
    for checkpoint in reversed(RunDirectory(run_dir).checkpoints()):
        with suppress(UserError):  # a damaged one is told of where it is passed over
            return load_identity(checkpoint.path).get(KEY, "auto")
    path = run_dir / CONFIG_FILE
    return load_run_config(str(path)).training.attention if path.is_file() else "auto"


def uses_blocks(config: RunConfig, hardware: Hardware) -> bool:
    """Whether a run that starts here and now trains with blocks; for those who time models before there is a run."""
    asked = config.training.attention
    return asked == "blocks" or (asked == "auto" and gain_of_blocks(config, hardware) >= GAIN)


def gain_of_blocks(config: RunConfig, hardware: Hardware) -> float:
    """How many times as fast as the fused operator a run's attention and its gradient are in blocks; 0 where there is
    no choice: on other devices, in `deterministic` runs, at short lengths, in a family that has one form alone."""
    is_open = (
        _why_no_blocks(config, hardware) is None
        and config.model.attention_lengths(config.data.seq_len) != []  # a hybrid may have no attention at all
        and not config.training.deterministic
        and config.data.seq_len >= SHORTEST
    )
    return _time(AttentionShape.of(config, hardware.autocast_dtype or torch.float32)) if is_open else 0.0


@cache
def _time(shape: AttentionShape) -> float:
    """Seconds of the fused operator over seconds of blocks: medians, the two in turn."""
    one, other = (_work(form, shape) for form in (attend, attend_in_blocks))
    seconds: list[tuple[float, float]] = []
    for work in (one, other):
        work()
    begun = time.perf_counter()
    while len(seconds) < 3 or (len(seconds) < ROUNDS and time.perf_counter() - begun < MOST_SECONDS):
        marks = [time.perf_counter()]
        for work in (one, other):
            work()
            marks.append(time.perf_counter())
        seconds.append((marks[1] - marks[0], marks[2] - marks[1]))
    return statistics.median(s[0] for s in seconds) / max(statistics.median(s[1] for s in seconds), 1e-9)


def _work(form: Callable[..., torch.Tensor], shape: AttentionShape) -> Callable[[], Any]:
    """Attention and its gradient on made-up heads; no random number is taken from the run's generator."""
    generator = torch.Generator().manual_seed(0)

    def heads(number: int) -> torch.Tensor:
        size = (shape.rows, shape.num_tokens, number, shape.head_dim)
        return torch.randn(size, generator=generator).to(shape.dtype).transpose(1, 2)

    tensors = [heads(number).requires_grad_() for number in (shape.heads, shape.groups, shape.groups)]
    grad = heads(shape.heads)
    doc_ids = None
    if shape.has_documents:  # four to a row
        doc_ids = (4 * torch.arange(shape.num_tokens) // shape.num_tokens).expand(shape.rows, -1)
    num_tokens, device = shape.num_tokens, torch.device("cpu")
    mask = attention_mask(num_tokens, num_tokens, window=shape.window, doc_ids=doc_ids, device=device)
    query, key, value = tensors

    def work() -> None:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            mixed = form(query=query, key=key, value=value, mask=mask, dropout=shape.dropout)
            torch.autograd.grad(mixed, tensors, grad)

    return work
