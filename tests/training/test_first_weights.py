"""The weights that a run begins with are those its config asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_helpers import TINY, run_tiny
from safetensors.torch import load_file

from tiny_transformer.config.load import load_run_config
from tiny_transformer.models import build_model


@pytest.mark.parametrize("key", ["zero_residual", "previous_token_init"])
def test_a_run_that_learns_nothing_saves_the_start_that_was_asked_for(
    key: str, tiny_data: Path, tmp_path: Path
) -> None:
    still = {"learning_rate": 1e-30, "muon_learning_rate": 1e-30, "weight_decay": 0.0, "steps": 1, "eval_steps": None}
    run_tiny(tiny_data, tmp_path / "r", **still, **{key: True})
    saved = load_file(tmp_path / "r/last/model.safetensors")

    def is_start(**options: bool) -> bool:
        shape = load_run_config(TINY).model.model_copy(update={"vocab_size": 257})
        start = build_model(shape, seed=load_run_config(TINY).training.seed, **options).state_dict()
        return all(torch.allclose(weight, start[name], rtol=0, atol=1e-20) for name, weight in saved.items())

    assert is_start(**{key: True}) and not is_start()
