"""The page "Beyond one machine" of docs/DESIGN.md: each figure of its table is computed again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_transformer.config.load import load_run_config
from tiny_transformer.costs.scale import ModelCost, count_model, gpu_memory, sent_bytes
from tiny_transformer.hardware import Hardware

BATCH, SEQ_LEN, GPUS, FLOPS = 2048, 2048, (8, 64, 1024), 4e14
GPT2 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12}
DOCUMENT = {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1}
MIDDLE = {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
LARGE = {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "124M": {**GPT2, "model_type": "llama", "intermediate_size": 2048, "vocab_size": 50_257},
    "283M": {
        **DOCUMENT,
        "head_dim": 160,
        "intermediate_size": 2048,
        "vocab_size": 151_646,
        "tie_word_embeddings": False,
    },
    "1.7B": {**MIDDLE, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151_936},
    "8B": {**LARGE, "head_dim": 128, "intermediate_size": 12_288, "vocab_size": 151_936, "tie_word_embeddings": False},
}


def row_of(name: str, cost: ModelCost) -> list[str]:
    """The cells of one model: gigabytes and seconds."""

    def three(values: list[float]) -> str:
        return " / ".join(short(value) for value in values)

    micro_batches = {gpus: BATCH // gpus for gpus in GPUS}
    return [
        name,
        f"{cost.num_parameters / 1e6:,.1f} M",
        short(cost.state_bytes / 1e9),
        short(cost.work_bytes / 1e9),
        short(gpu_memory(cost, 8, "ddp") / 1e9),
        three([gpu_memory(cost, gpus, "fsdp") / 1e9 for gpus in GPUS]),
        three([sent_bytes(cost, gpus, n, "ddp") / 1e9 for gpus, n in micro_batches.items()]),
        three([sent_bytes(cost, gpus, n, "fsdp") / 1e9 for gpus, n in micro_batches.items()]),
        three([n * cost.micro_batch_flops / FLOPS for n in micro_batches.values()]),
    ]


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_page_says_what_the_profile_counts(repository: Path, name: str) -> None:
    config = load_run_config(
        {
            "model": {**SHAPES[name], "max_position_embeddings": SEQ_LEN},
            "data": {"seq_len": SEQ_LEN},
            "training": {"micro_batch_size": 1},
        }
    )
    row = row_of(name, count_model(config, Hardware(torch.device("cpu"), torch.bfloat16)))
    page = (repository / "docs/DESIGN.md").read_text(encoding="utf-8").partition("Beyond one machine")[2]
    match = re.search(rf"^\| {re.escape(name)} \|.*$", page, re.MULTILINE)
    assert match, f"not on the page: | {' | '.join(row)} |"
    assert [cell.strip() for cell in match[0].strip("|").split("|")] == row


def test_sharing_by_hand() -> None:
    """Two blocks of 10, a root of 5: 25 parameters."""
    cost = ModelCost(25, 10, 5, state_bytes=400, work_bytes=7, micro_batch_flops=1)
    assert gpu_memory(cost, 4, "ddp") == gpu_memory(cost, 1, "fsdp") == 407
    assert gpu_memory(cost, 4, "fsdp") == 100 + 4 * (5 + 5 + 10 + 10 + 10) + 7
    assert sent_bytes(cost, 4, 6, "ddp") == 0.75 * 2 * 100
    assert sent_bytes(cost, 4, 6, "fsdp") == 0.75 * 6 * (80 + 80 + 80 + 20 + 20)
    assert sent_bytes(cost, 1, 6, "ddp") == sent_bytes(cost, 1, 6, "fsdp") == 0
