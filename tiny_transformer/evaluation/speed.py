"""How large a model is on disk, and how many new tokens it computes a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tiny_transformer.generation.decoder import Decoder
from tiny_transformer.models.contract import CausalLM

TIMED_TOKENS, TIMED_TURNS = 32, 3


def weight_bytes(checkpoint: Path) -> int:
    """What the weight files of a checkpoint take on disk."""
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


def tokens_per_second(*readers: Callable[[], CausalLM]) -> list[float]:
    """New tokens a second of each model, one row, greedily; in turn, medians.

    Args:
        readers: each gives its model; asked once a turn, so that one that reads it from the disk keeps none in memory.
    """
    seconds: list[list[float]] = [[] for _ in readers]
    for turn in range(TIMED_TURNS + 1):
        for read, found in zip(readers, seconds, strict=True):
            taken = _seconds_per_token(read())
            if turn:  # the first is for warming up
                found.append(taken)
    return [1 / median(found) for found in seconds]


def _seconds_per_token(model: CausalLM) -> float:
    context = model.config.max_position_embeddings
    step, num_tokens = _greedy_step(Decoder(model, 1, context)), min(TIMED_TOKENS, context - 1)
    begun = time.monotonic()
    for _ in range(num_tokens):
        step()
    return (time.monotonic() - begun) / num_tokens


def _greedy_step(decoder: Decoder) -> Callable[[], None]:
    ids = decoder.feed_last([[0]]).argmax(-1, keepdim=True)

    def step() -> None:
        nonlocal ids
        ids = decoder.feed_last(ids).argmax(-1, keepdim=True)

    return step
