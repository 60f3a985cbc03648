"""A number that is none, planted somewhere in a step: row D19 of the reliability table.

The fault belongs to one example of the data, so that the same step, made again by `replay`, meets it again.
"""

from __future__ import annotations

import io
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import TINY, run_tiny
from torch import Tensor, nn

from tiny_transformer.data.batches import Batches, TokenBatch
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models import load_model
from tiny_transformer.stages.replay import replay
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training.gradient import _clip
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.nonfinite import all_finite, first_bad_tensor, named_tensors
from tiny_transformer.training.optimizers import Optimizers

NUM_PLACES = int(os.environ.get("NOT_FINITE_PLACES", "40"))
SEED = int(os.environ.get("NOT_FINITE_SEED", "20261121"))
WHERE = ("loss", "gradient", "weight", "optimizer")
OPTIONS: dict[str, Any] = {"steps": 5, "save_steps": 1, "eval_steps": None, "dropout": 0.0}


class BadGradient(torch.autograd.Function):
    """Adds nothing to the loss, and a bad element to one gradient."""

    @staticmethod
    def forward(context: Any, parameter: Tensor, element: int, bad: float) -> Tensor:
        context.shape, context.element, context.bad = parameter.shape, element, bad
        return parameter.new_zeros(())

    @staticmethod
    def backward(context: Any, *_: Tensor) -> tuple[Tensor, None, None]:
        gradient = torch.zeros(context.shape)
        gradient.view(-1)[context.element] = context.bad
        return gradient, None, None


class Fault:
    """One bad element in one tensor, in each step whose batch has one example.

    Attributes:
        name: of the tensor, as the report must give it; None where every gradient is bad at once.
    """

    def __init__(self, where: str, example: int, bad: float, rng: random.Random) -> None:
        self.where, self.example, self.bad, self.rng = where, example, bad, rng
        self.name: str | None = None
        self.is_due = False
        self.choice = rng.random()  # of tensor and element, the same in each process that meets the fault

    def pick(self, tensors: dict[str, Tensor]) -> tuple[str, Tensor, int]:
        """A tensor and an element."""
        rng = random.Random(self.choice)
        name = rng.choice(sorted(tensors))
        return name, tensors[name], rng.randrange(tensors[name].numel())

    def loss(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss function with the fault."""
        self.is_due = self.example in batch.sample_ids
        if not self.is_due:
            return language_modelling_loss(model, batch)
        name, parameter, element = self.pick(dict(model.named_parameters()))
        if self.where == "weight":
            self.name = f"the weight {name}"
            with torch.no_grad():
                parameter.view(-1)[element] = self.bad
        loss_sum, figures = language_modelling_loss(model, batch)
        if self.where == "loss":
            return loss_sum * self.bad, figures
        if self.where == "gradient":
            self.name = f"the gradient of {name}"
            loss_sum = loss_sum + BadGradient.apply(parameter, element, self.bad)
        return loss_sum, figures

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on the fault is there."""
        step = Optimizers.step

        def spoiled(optimizers: Optimizers, factor: float) -> None:
            if self.is_due and self.where == "optimizer":
                name, tensor, element = self.pick(optimizers.state())
                self.name = f"the optimizer's {name.rpartition('/')[0]}/"
                tensor.view(-1)[element] = self.bad
            step(optimizers, factor)

        monkeypatch.setattr(Optimizers, "step", spoiled)
        monkeypatch.setattr("tiny_transformer.stages.pretrain.language_modelling_loss", self.loss)


@pytest.mark.slow
def test_what_is_not_finite_is_found_in_its_step_named_and_seen_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty places in loss, gradients, weights and the optimizers' memory; NOT_FINITE_PLACES=1000 for the full
    number."""
    monkeypatch.setitem(TINY, "model", {**TINY["model"], "tie_word_embeddings": False, "num_hidden_layers": 1})
    rng = random.Random(SEED)
    batches = Batches(open_dataset(tiny_data).train, seq_len=32, global_batch_size=4, seed=0)
    for place in range(NUM_PLACES):
        step, bad = rng.randint(2, 5), rng.choice([math.nan, math.inf, -math.inf])
        examples = [int(i) for batch in batches.micro_batches(step - 1, 4) for i in batch.sample_ids]
        fault, run_dir = Fault(WHERE[place % 4], rng.choice(examples), bad, rng), tmp_path / str(place)
        about = f"{fault.where} {bad} at step {step}, place {place} of seed {SEED}"
        with monkeypatch.context() as patch:
            fault.plant(patch)
            with pytest.raises(UserError) as caught:
                run_tiny(tiny_data, run_dir, **OPTIONS)
            assert f" at step {step}; the step was not saved" in caught.value.what, about
            assert f"first bad tensor: {fault.name or ''}" in caught.value.what, about
            assert caught.value.where == f"the batch of step {step}, examples {', '.join(map(str, examples))}"
            assert f"replay {run_dir} --step {step}" in (caught.value.remedy or "")
            assert caught.value.exit_code == ExitCode.BAD_DATA
            checkpoints = RunDirectory(run_dir).checkpoints()
            assert max(checkpoint.step for checkpoint in checkpoints) == step - 1, about
            for checkpoint in checkpoints:
                model = load_model(checkpoint.path)
                assert all_finite(model.parameters())
            screen = io.StringIO()
            replay(run_dir, step, Console(file=screen, width=300))
        shown = screen.getvalue()
        assert f"first bad tensor {fault.name or ''}" in shown, (about, shown)
        assert all(f"{example:,}" in shown for example in examples)
        if fault.where == "loss":
            assert "loss nan" in shown or "loss inf" in shown or "loss -inf" in shown


def test_an_infinite_memory_that_leaves_the_weights_finite_is_found(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Optimizers.step

    def spoiled(optimizers: Optimizers, factor: float) -> None:
        for name, tensor in optimizers.state().items():
            if name == "model.norm.weight/exp_avg_sq":
                tensor[0] = math.inf
        step(optimizers, factor)

    monkeypatch.setattr(Optimizers, "step", spoiled)
    with pytest.raises(UserError, match=r"the optimizer's model\.norm\.weight/exp_avg_sq"):
        run_tiny(tiny_data, tmp_path / "r", **OPTIONS)


def test_large_finite_numbers_are_finite() -> None:
    assert all_finite([torch.full((4,), 3e38), torch.zeros(0)])
    assert not all_finite([torch.ones(3), torch.tensor([1.0, -math.inf])])
    assert not all_finite([torch.full((4,), 3e38), torch.tensor([math.nan])])


def test_a_gradient_that_is_not_finite_is_not_spread_by_clipping() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    bad = model[1].weight.grad
    assert bad is not None
    bad[0, 1] = math.nan
    assert math.isnan(_clip(model, 0.5))
    assert first_bad_tensor(named_tensors(model)) == "the gradient of 1.weight"
    bad[0, 1] = 1.0
    assert _clip(model, 0.5) == pytest.approx(3.0)  # nine ones
    assert bad[0, 0] == pytest.approx(0.5 / 3)
