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


def tokens_per_second(*models: CausalLM) -> list[float]:
    """New tokens a second of each model, one row, greedily; in turn, medians."""
    most = min(model.config.max_position_embeddings for model in models) - 1
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(TIMED_TURNS + 1):
        for model, found in zip(models, seconds, strict=True):
            decoder = Decoder(model, 1, most + 1)
            step = _greedy_step(decoder)
            begun = time.monotonic()
            for _ in range(min(TIMED_TOKENS, most)):
                step()
            if turn:  # the first is for warming up
                found.append((time.monotonic() - begun) / min(TIMED_TOKENS, most))
    return [1 / median(found) for found in seconds]


def _greedy_step(decoder: Decoder) -> Callable[[], None]:
    ids = decoder.feed_last([[0]]).argmax(-1, keepdim=True)

    def step() -> None:
        nonlocal ids
        ids = decoder.feed_last(ids).argmax(-1, keepdim=True)

    return step
