"""Loss scale, gradient checkpointing, fading dropout, loggers: each seen from outside."""

from __future__ import annotations

import io
import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import TINY, fingerprint, log_without_clock, run_tiny, tiny_request
from torch import nn

from tiny_transformer.config.load import load_run_config
from tiny_transformer.data.batches import Batches, TokenBatch
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import Hardware, agrees_with_float64
from tiny_transformer.models import build_model
from tiny_transformer.stages import run as stage
from tiny_transformer.stages.launch import launch
from tiny_transformer.storage.runs import holds_a_run
from tiny_transformer.training import loss_scale, modifiers, muon
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.muon import orthogonalise
from tiny_transformer.training.state import TrainState


def test_checkpointed_gradients_train_the_same_weights(tiny_data: Path, tmp_path: Path) -> None:
    run_tiny(tiny_data, tmp_path / "plain", steps=6)
    run_tiny(tiny_data, tmp_path / "checkpointed", steps=6, gradient_checkpointing=True)
    assert fingerprint(tmp_path / "plain") == fingerprint(tmp_path / "checkpointed")


def numbers_kept(forward: Callable[[torch.Tensor], torch.Tensor]) -> int:
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(torch.ones(256, 64, requires_grad=True))
    return sum(sizes)


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    kept: dict[bool, int] = {}
    for on in (False, True):
        block = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        model = types.SimpleNamespace(model=types.SimpleNamespace(layers=[block]))
        if on:
            modifiers.checkpoint_gradients(model)
        kept[on] = numbers_kept(model.model.layers[0].forward)
    assert kept[True] < kept[False] / 3


def test_dropout_fades_in_a_straight_line(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def watched(model: nn.Module, batch: TokenBatch) -> tuple[torch.Tensor, dict[str, float]]:
        seen.extend({module.p for module in model.modules() if isinstance(module, nn.Dropout)})
        return language_modelling_loss(model, batch)

    monkeypatch.setattr("tiny_transformer.stages.pretrain.language_modelling_loss", watched)
    run_tiny(tiny_data, tmp_path / "r", steps=10, dropout=0.5, final_dropout=0.0)
    assert seen == pytest.approx([0.05 * (10 - step) for step in range(10)])


def test_the_loss_scale_halves_on_overflow_and_doubles_after_quiet_steps() -> None:
    state = TrainState(loss_scale=4.0)
    assert loss_scale.lower_loss_scale(state)
    assert state.loss_scale == 2.0
    for _ in range(loss_scale.STEPS_UNTIL_DOUBLED):
        loss_scale.count_step_at_loss_scale(state)
    assert state.loss_scale == 4.0
    loss_scale.count_step_at_loss_scale(state)
    assert [loss_scale.lower_loss_scale(state) for _ in range(3)] == [True, True, False]
    assert state.steps_at_loss_scale == 0  # quiet steps are counted anew
    assert state.loss_scale == 1.0


def test_a_gradient_that_overflows_is_computed_again_at_half_the_scale(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tiny_transformer.stages.launch.choose_hardware", lambda *asked: Hardware(torch.device("cpu"), torch.float16)
    )
    monkeypatch.setattr(stage, "first_loss_scale", lambda precision: 2.0**60)
    outcome = run_tiny(tiny_data, tmp_path / "half", steps=3, dropout=0.0)
    assert outcome.state.loss_scale < 2.0**60  # the first one overflows
    assert outcome.state.loss_scale >= 2.0**10  # and it is halved only until none does
    monkeypatch.undo()
    run_tiny(tiny_data, tmp_path / "full", steps=3, dropout=0.0)
    losses = [[line["loss"] for line in log_without_clock(tmp_path / name)] for name in ("half", "full")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != losses[1]  # it was fp16


def test_scaling_by_a_power_of_two_changes_no_bit_of_the_gradient(tiny_data: Path) -> None:
    config = load_run_config(TINY)
    batches = Batches(open_dataset(tiny_data).train, seq_len=32, global_batch_size=4, seed=0)
    gradients = []
    for scale in (1.0, 2.0**16):
        model = build_model(config.model.model_copy(update={"vocab_size": 257}), seed=1)
        cpu = Hardware(torch.device("cpu"), None)
        pieces = list(batches.micro_batches(0, config.training.micro_batch_size))
        compute_gradient(model, pieces, 0, config.training, cpu, language_modelling_loss, scale)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_this_machine_agree_with_float64(dtype: torch.dtype) -> None:
    assert agrees_with_float64(torch.device("cpu"), dtype)


@pytest.mark.parametrize(("switch", "taken"), [("hide", "fp32"), ("grant", "bf16")])
def test_auto_is_the_precision_that_the_machine_has(
    switch: str, taken: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole run: its forward and backward pass, and Muon's updates."""
    monkeypatch.setenv("TINY_TRANSFORMER_BF16", switch)
    for name, precision in (("auto", "auto"), ("named", taken), ("fp32", "fp32")):
        run_tiny(tiny_data, tmp_path / name, steps=2, precision=precision)
    assert json.loads((tmp_path / "auto/last/run_info.json").read_text())["precision"] == taken
    assert fingerprint(tmp_path / "auto") == fingerprint(tmp_path / "named")
    assert (fingerprint(tmp_path / "auto") == fingerprint(tmp_path / "fp32")) == (taken == "fp32")


def test_muon_multiplies_in_the_precision_of_the_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_TRANSFORMER_BF16", "grant")
    seen: dict[str, set[torch.dtype]] = {}
    for precision in ("fp32", "bf16"):
        used = seen.setdefault(precision, set())

        def listening(matrix: torch.Tensor, dtype: torch.dtype, used: set[torch.dtype] = used) -> torch.Tensor:
            used.add(dtype)
            return orthogonalise(matrix, dtype)

        monkeypatch.setattr(muon, "orthogonalise", listening)
        run_tiny(tiny_data, tmp_path / precision, steps=1, precision=precision)
    assert seen == {"fp32": {torch.float32}, "bf16": {torch.bfloat16}}


def test_loggers_get_the_numbers_of_every_logged_step(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, dict[str, Any]]] = []
    ended: list[str] = []
    fake = types.ModuleType("trackio")
    fake.__dict__.update(
        init=lambda **options: told.append((0, options)),
        log=lambda numbers, step: told.append((step, numbers)),
        finish=lambda: ended.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run_tiny(tiny_data, tmp_path / "r", steps=4, eval_steps=4, loggers=["trackio"])
    assert told[0][1]["config"]["training"]["steps"] == 4
    assert [step for step, _ in told[1:]] == [1, 2, 3, 4]
    assert all("step" not in numbers and "update_ratios" not in numbers for _, numbers in told[1:])
    assert math.isfinite(told[-1][1]["val_loss"])
    assert 0 < told[-1][1]["update_ratios/layers.1"] < 1  # groups arrive as single figures
    assert all(isinstance(value, (int, float)) for value in told[-1][1].values())
    assert ended == ["finish"]


def test_a_logger_that_fails_ends_no_run_and_is_told_once(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def log(numbers: dict[str, Any], step: int) -> None:
        told.append(step)
        if step == 2:
            raise ConnectionError("no route to host")

    def finish() -> None:
        raise ConnectionError("still none")

    fake = types.ModuleType("trackio")
    fake.__dict__.update(init=lambda **options: None, log=log, finish=finish)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    screen = io.StringIO()
    request = tiny_request(tiny_data, tmp_path / "r", steps=4, loggers=["trackio"])
    assert launch(request, Console(file=screen, width=200)).status == "finished"
    assert told == [1, 2]
    assert (
        "a logger failed at step 2 and receives no more figures: ConnectionError: no route to host" in screen.getvalue()
    )
    assert "a logger could not be closed: ConnectionError: still none" in screen.getvalue()


def test_tensorboard_gets_each_step_and_forgets_what_a_resumed_run_does_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []
    told: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, directory: str, purge_step: int | None) -> None:
            asked.append(purge_step)

        def add_scalar(self, key: str, value: float, step: int) -> None:
            told.append((key, value, step))

        def close(self) -> None:
            pass

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.__dict__["SummaryWriter"] = Writer
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run_tiny(tiny_data, tmp_path / "r", steps=4, loggers="tensorboard")
    run_tiny(tiny_data, tmp_path / "r", steps=6, loggers=["tensorboard"], resume=True)
    assert asked == [None, 5]
    losses = [(value, step) for key, value, step in told if key == "loss"]
    assert losses == [(line["loss"], line["step"]) for line in log_without_clock(tmp_path / "r")]
    assert len(losses) == 6


def test_wandb_gets_each_figure_with_its_step_and_goes_on_with_the_same_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    told: list[tuple[int, dict[str, float]]] = []
    ended: list[str] = []

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            told.append((step, numbers))

        def finish(self) -> None:
            ended.append("finish")

    def init(**options: Any) -> Run:
        opened.append(options)
        return Run()

    fake = types.ModuleType("wandb")
    fake.__dict__["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run_tiny(tiny_data, tmp_path / "r", steps=4, eval_steps=4, loggers=["wandb"])
    run_tiny(tiny_data, tmp_path / "r", steps=6, eval_steps=4, loggers=["wandb"], resume=True)
    assert opened[0]["id"] == opened[1]["id"] and {options["resume"] for options in opened} == {"allow"}
    lines = log_without_clock(tmp_path / "r")
    assert [(step, numbers["loss"]) for step, numbers in told] == [(line["step"], line["loss"]) for line in lines]
    assert told[3][1]["val_loss"] == lines[3]["val_loss"]
    assert ended == ["finish", "finish"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_logger_that_is_not_installed_is_named_before_training(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"asks for {name}") as caught:
        run_tiny(tiny_data, tmp_path / "r", loggers=[name])
    assert f"pip install {name}" in (caught.value.remedy or "")
    assert not holds_a_run(tmp_path / "r") and not list(tmp_path.rglob("*.jsonl"))
    if name == "wandb":  # the corrected command is a start like any other, and one that replaces a run removes nothing
        run_tiny(tiny_data, tmp_path / "r", steps=2)
        with pytest.raises(UserError, match="asks for wandb"):
            run_tiny(tiny_data, tmp_path / "r", loggers=[name], overwrite=True)
        assert len(log_without_clock(tmp_path / "r")) == 2


def test_the_gradient_at_half_the_scale_begins_from_nothing(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the overflow left in `grad` must not be added to."""
    monkeypatch.setattr(
        "tiny_transformer.stages.launch.choose_hardware", lambda *asked: Hardware(torch.device("cpu"), torch.float16)
    )
    for name, scale in (("one", 2.0**10), ("two", 2.0**30)):
        monkeypatch.setattr(stage, "first_loss_scale", lambda precision, scale=scale: scale)
        run_tiny(tiny_data, tmp_path / name, steps=2, dropout=0.0)
    norms = [[line["grad_norm"] for line in log_without_clock(tmp_path / name)] for name in ("one", "two")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)
