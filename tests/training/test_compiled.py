"""`compile: true` traces every family and trains it to the same weights; and the words of Lightning choose a device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import TINY, log_without_clock, run_tiny
from safetensors.torch import load_file

from tiny_transformer import hardware
from tiny_transformer.config.load import load_run_config
from tiny_transformer.hardware import choose_hardware

SHAPE = TINY["model"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama with LayerNorm": {**SHAPE, "model_type": "llama", "norm_type": "layernorm"},
    "llama with a window": {**SHAPE, "model_type": "llama", "sliding_window": 8},
    "qwen3": {**SHAPE, "model_type": "qwen3"},
    "qwen3_next": {
        **SHAPE,
        "model_type": "qwen3_next",
        "full_attention_interval": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "num_experts": 0,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiling_changes_no_result(
    family: str, precision: str, rounding: float, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by the compiler's front end; its code generator, which takes 40 s, is left out.

    Losses and gradients differ by the rounding of a few operators. Of the weights the way they went is compared: both
    optimizers make the small components of a gradient as large as the others, and its rounding with them.
    """
    monkeypatch.setitem(TINY, "model", FAMILIES[family])
    short: dict[str, Any] = {"eval_steps": None, "save_steps": None, "dropout": 0.0, "precision": precision}
    still = {"learning_rate": 1e-30, "muon_learning_rate": 1e-30}
    run_tiny(tiny_data, tmp_path / "first", steps=1, **short, **still)
    run_tiny(tiny_data, tmp_path / "plain", steps=2, **short)
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    run_tiny(tiny_data, tmp_path / "compiled", steps=2, compile=True, **short)
    names = ("first", "plain", "compiled")
    for one, other in zip(*(log_without_clock(tmp_path / name) for name in names[1:]), strict=True):
        for key in ("loss", "grad_norm", "part_grad_norms"):
            assert other[key] == pytest.approx(one[key], rel=4 * rounding), (one["step"], key)
    first, plain, compiled = (load_file(tmp_path / name / "last/model.safetensors") for name in names)
    assert first.keys() == plain.keys() == compiled.keys()
    moved = sum(float((plain[name] - weight).square().sum()) for name, weight in first.items())
    apart = sum(float((plain[name] - weight).square().sum()) for name, weight in compiled.items())
    assert apart**0.5 < 64 * rounding * moved**0.5


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (True, False, "cuda"), (False, False, "cpu")],
)
def test_the_best_device_is_found(cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(hardware, "has_fast_bf16", lambda device: False)
    assert choose_hardware("auto", "fp32").device.type == expected


@pytest.mark.parametrize(("word", "device"), [("gpu", "cuda"), ("cuda", "cuda"), ("mps", "mps"), ("cpu", "cpu")])
def test_accelerators_are_devices(word: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hardware.accelerator: gpu` with `precision: 16-mixed`, on a machine that has everything."""
    config = load_run_config({"hardware": {"accelerator": word, "precision": "16-mixed"}})
    assert (config.training.device, config.training.precision) == (device, "fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "has_fast_fp16", lambda device: device.type != "cpu")
    chosen = choose_hardware(config.training.device, config.training.precision)
    assert (chosen.device.type, chosen.precision) == (device, "fp32" if device == "cpu" else "fp16")
    assert (chosen.note is None) == (device != "cpu")  # said when it is not what was asked for
