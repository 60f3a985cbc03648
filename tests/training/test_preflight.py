"""Room on the disk and in memory is compared with what a run needs before its first step: row D6."""

from __future__ import annotations

import io
import resource
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import TINY, run_tiny, tiny_request
from test_hybrid import SHAPE as HYBRID

from tiny_transformer.config.load import load_run_config
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import build_model
from tiny_transformer.stages import preflight
from tiny_transformer.stages.pretrain import Pretraining
from tiny_transformer.stages.resume_check import identity_of
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training.optimizers import Optimizers

CPU = Hardware(torch.device("cpu"), None)
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "biases": {"attention_bias": True},
    "llama": {"model_type": "llama", "norm_type": "layernorm"},
    "mistral": {"model_type": "llama", "sliding_window": 8},
    "qwen3_next": HYBRID,
    "qwen3_5": {**{k: v for k, v in HYBRID.items() if "moe" not in k and "expert" not in k}, "num_experts": 0},
}
SIZES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": False},
    {"num_hidden_layers": 6},
    {"hidden_size": 64, "intermediate_size": 160, "head_dim": 32},
    {"hidden_size": 16, "num_hidden_layers": 1, "head_dim": 8},
]
ROWS = [(family, size) for family in FAMILIES for size in range(len(SIZES))]


def tree_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "size"), ROWS)
def test_a_checkpoint_is_as_large_as_was_said(
    family: str, size: int, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {**TINY["model"], **FAMILIES[family], **SIZES[size]}
    if family == "llama":
        shape.pop("head_dim", None)
    monkeypatch.setitem(TINY, "model", shape)
    options = {"optimizer": "muon" if size % 2 else "adamw", "steps": 1, "eval_steps": None}
    run_tiny(tiny_data, tmp_path / "r", **options)
    config = tiny_request(tiny_data, tmp_path / "r", **options).config
    model = build_model(config.model.model_copy(update={"vocab_size": 257}), seed=0)
    dataset = open_dataset(tiny_data)
    identity = identity_of(config, Pretraining(config, dataset).fingerprints())
    said = preflight.checkpoint_bytes(model, Optimizers(model, config.training), identity, dataset.tokenizer)
    assert said == pytest.approx(tree_bytes((tmp_path / "r/last").resolve()), rel=0.02)


def with_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=num_bytes))


def test_a_disk_that_is_too_full_is_told_before_the_first_step(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny(tiny_data, tmp_path / "whole")
    save = tree_bytes((tmp_path / "whole/last").resolve())
    needed = 1.05 * (4 * save + preflight.REPORT_BYTES)  # two that stay, the best, one in the making
    with_free(monkeypatch, int(needed - 0.1 * save))
    with pytest.raises(UserError, match=r"the run needs 2\.\d MB of disk space") as caught:
        run_tiny(tiny_data, tmp_path / "r")
    assert caught.value.exit_code == ExitCode.IO
    assert "use --keep_checkpoints 1, or choose another --out_dir" in (caught.value.remedy or "")
    with_free(monkeypatch, int(1.05 * save))  # where keeping one would not do either, it is not advised
    with pytest.raises(UserError) as caught:
        run_tiny(tiny_data, tmp_path / "r")
    assert caught.value.remedy == "free some space, or choose another --out_dir"
    assert not list((tmp_path / "r").glob("step-*")) and not (tmp_path / "r/log.jsonl").exists()
    with_free(monkeypatch, int(needed + 0.1 * save))
    assert run_tiny(tiny_data, tmp_path / "r").status == "finished"


def test_a_resumed_run_needs_room_for_what_is_not_there_yet(tiny_data: Path, tmp_path: Path) -> None:
    def missing(**training: Any) -> int:
        return preflight.missing_saves(
            RunDirectory(tmp_path / "r"),
            load_run_config({"training": {"save_steps": None, "eval_steps": None, **training}}),
        )

    (tmp_path / "r").mkdir()
    assert missing() == 2
    assert missing(save_steps=5) == 3
    assert missing(save_steps=5, eval_steps=5, keep_checkpoints=4) == 6
    run_tiny(tiny_data, tmp_path / "r")
    assert len(RunDirectory(tmp_path / "r").checkpoints()) == 2
    assert missing(save_steps=5, eval_steps=5) == 2
    assert missing() == 1


BIG = {"model": {"vocab_size": 2048, "num_hidden_layers": 2, "hidden_size": 64}, "training": {"micro_batch_size": 8}}


def test_a_step_that_cannot_fit_is_refused_and_one_that_hardly_fits_is_warned_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tiny_transformer.costs.accounting import count_step

    config = load_run_config(BIG)
    needed = count_step(config, CPU).memory.total()
    screen = io.StringIO()
    for available in (1.2 * needed, 1.05 * needed):
        monkeypatch.setattr(preflight, "available_bytes", lambda device, value=available: int(value))
        preflight.check_memory(config, CPU, Console(file=screen, width=400))
    assert screen.getvalue().count("warning: a step needs") == 1
    monkeypatch.setattr(preflight, "available_bytes", lambda device: int(0.99 * needed))
    with pytest.raises(UserError, match="a step needs") as caught:
        preflight.check_memory(config, CPU, Console())
    for way_out in ("micro_batch_size", "gradient_checkpointing", "smaller model"):
        assert way_out in (caught.value.remedy or "")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [{"micro_batch_size": 1}, {"micro_batch_size": 16, "optimizer": "muon"}])
def test_what_is_not_counted_is_never_less_than_what_is(family: str, batch: dict[str, Any]) -> None:
    from tiny_transformer.costs.accounting import count_step

    model = {**TINY["model"], **FAMILIES[family], "vocab_size": 257}
    config = load_run_config({**TINY, "model": model, "training": batch})
    assert preflight._at_most(config) >= count_step(config, CPU).memory.total()


@pytest.mark.clock
def test_a_small_run_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_transformer.costs.accounting.count_step", lambda *_: 1 / 0)
    config = load_run_config("configs/demo.yaml", ["model.vocab_size=4096"])
    monkeypatch.setattr(preflight, "available_bytes", lambda device: 8 * 2**30)
    begun = time.process_time()
    preflight.check_memory(config, CPU, Console())
    assert time.process_time() - begun < 0.5


def test_the_smallest_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    assert preflight._group_bytes(tmp_path) == [500_000]
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight._group_bytes(tmp_path) == []
    assert preflight._group_bytes(tmp_path / "none") == []
    whole = preflight.available_bytes(torch.device("cpu"))
    assert whole is not None and 2**20 < whole < 2**50
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**50, -1))
    assert 2**49 < preflight._process_bytes()[0] < 2**50
    monkeypatch.setattr(preflight, "_process_bytes", lambda: [123])
    assert preflight.available_bytes(torch.device("cpu")) == 123
