"""`init_from`: any stage starts from a checkpoint; shape and tokenizer are its own, or the run is refused."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import TINY, fingerprint, log_without_clock, run_tiny, tiny_request
from safetensors.torch import load_file

from tiny_transformer.cli import run
from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import UserError
from tiny_transformer.stages.first_weights import take_over
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request, RunResult

WITHOUT_SHAPE = {key: value for key, value in TINY.items() if key != "model"}


@pytest.fixture(scope="module")
def base(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    run_dir = tmp_path_factory.mktemp("base") / "base"
    run_tiny(tiny_data, run_dir)
    return run_dir


def onward(data_dir: Path | None, out_dir: Path, init_from: Path, **changes: Any) -> tuple[RunResult, str]:
    """A run that starts from `init_from`, and what it told."""
    data = {**TINY["data"], **({} if data_dir is None else {"data_dir": str(data_dir)}), **changes.pop("data", {})}
    tree = {
        **WITHOUT_SHAPE,
        "data": data,
        "training": {**TINY["training"], **changes.pop("training", {})},
        "init_from": str(init_from),
        "out_dir": str(out_dir),
        **changes,
    }
    screen = io.StringIO()
    result = launch(Request(load_run_config(tree), "onward", command=["test"]), Console(file=screen, width=300))
    return result, screen.getvalue()


def test_the_first_step_starts_from_the_checkpoint_and_nothing_else_is_taken_over(
    base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    last = log_without_clock(base)[-1]
    result, told = onward(tiny_data, tmp_path / "r", base / "last", training={"dropout": 0.0})
    assert "weights, shape (qwen3, 2 layers of 32) and tokenizer are taken from it" in told
    first = log_without_clock(tmp_path / "r")[0]
    assert (first["step"], result.state.step) == (1, 12)
    assert abs(first["loss"] - last["loss"]) < 0.3 < log_without_clock(base)[0]["loss"] - first["loss"]
    frozen, _ = onward(tiny_data, tmp_path / "still", base / "last", training={"steps": 1, "warmup_steps": 100_000})
    rate = {"learning_rate": 1e-12, "muon_learning_rate": 1e-12, "weight_decay": 0.0, "steps": 1, "eval_steps": None}
    onward(tiny_data, tmp_path / "same", base / "last", training=rate)
    there, here = (load_file(path / "last/model.safetensors") for path in (base, tmp_path / "same"))
    assert all(torch.allclose(there[name], here[name], rtol=0, atol=1e-9) for name in there)
    assert frozen.status == "finished"


def test_a_run_directory_stands_for_its_best_checkpoint(base: Path, tiny_data: Path, tmp_path: Path) -> None:
    onward(tiny_data, tmp_path / "r", base)
    saved = load_run_config(tmp_path / "r/config.yaml")
    assert saved.init_from == (base / "best").resolve() and saved.model.hidden_size == 32


def test_it_resumes_bit_for_bit_even_when_the_checkpoint_is_gone(
    base: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start"
    shutil.copytree((base / "last").resolve(), start)
    onward(tiny_data, tmp_path / "whole", start)
    onward(tiny_data, tmp_path / "parts", start, training={"steps": 12, "save_steps": 4})
    for path in sorted((tmp_path / "parts").glob("step-*"))[1:]:
        shutil.rmtree(path)
    shutil.rmtree(start)
    request = tiny_request(tiny_data, tmp_path / "parts", resume=True)
    config = load_run_config(tmp_path / "parts/config.yaml")
    launch(replace(request, config=config), Console(file=io.StringIO()))
    assert fingerprint(tmp_path / "parts") == fingerprint(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"hidden_size": 64}}, r"model\.hidden_size = 64, but the model in .* has 32"),
        ({"model": {"model_type": "llama"}}, r"model\.model_type = 'llama', but the model in .* has 'qwen3'"),
        (
            {"model": {"model_type": "llama", "hidden_size": 32}},
            r"model\.model_type = 'llama', but the model in .* has 'q",
        ),
        ({"data": {"tokenizer": "char"}}, r"data\.tokenizer = 'char', but the model in .* has a tokenizer of its own"),
        ({"data": {"seq_len": 2000}}, r"data\.seq_len 2000 is longer than the context of the model"),
    ],
)
def test_a_wish_that_the_checkpoint_cannot_grant_is_refused(
    changes: dict[str, Any], message: str, base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        onward(tiny_data, tmp_path / "r", base / "last", **changes)
    assert not (tmp_path / "r/config.yaml").exists()


def test_data_of_another_tokenizer_is_refused_with_the_command_that_makes_it_right(base: Path, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("a few words of my own. " * 2000, encoding="utf-8")
    assert run(["prepare", "--source", str(tmp_path / "my.txt"), "--out_dir", str(tmp_path / "other")]) == 0
    with pytest.raises(UserError) as refusal:
        onward(tmp_path / "other", tmp_path / "r", base / "last")
    assert "tokenizer" in refusal.value.what and "--tokenizer" in str(refusal.value.remedy)


def test_on_the_command_line_with_a_text_of_ones_own(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text("The sea was calm that night, and nobody slept. " * 800, encoding="utf-8")
    words = ["--source", "my.txt", "--init_from", str(base), "--steps", "4", "--eval_steps", "2", "--device", "cpu"]
    assert run(["train", *words]) == 0
    told = capsys.readouterr().out
    assert "tokenizer are taken from it" in told and "training" in told
    assert load_run_config("runs/my/config.yaml").data.tokenizer == str((base / "best").resolve())
    assert run(["train", "--resume", "--out_dir", "runs/my", "--init_from", str(base)]) == 2
    assert "--resume and --init_from cannot be combined" in capsys.readouterr().err


def test_an_explicit_model_type_is_never_overruled(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though any other key of a model makes its config one of the default type."""
    llama = tmp_path / "llama"
    monkeypatch.setitem(TINY, "model", TINY["model"] | {"model_type": "llama"})
    run_tiny(tiny_data, llama, steps=2)
    with pytest.raises(UserError, match=r"model\.model_type = 'qwen3', but the model in .* has 'llama'"):
        onward(tiny_data, tmp_path / "r", llama / "last", model={"model_type": "qwen3", "hidden_size": 32})
    result, _ = onward(tiny_data, tmp_path / "s", llama / "last", model={"hidden_size": 32, "vocab_size": None})
    assert result.stage.config.model.model_type == "llama"


def test_a_config_that_names_init_from_and_no_shape_is_resumed_with_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text("The sea was calm that night, and nobody slept. " * 800, encoding="utf-8")
    lines = [f"init_from: {base}", "out_dir: r", "data: {source: my.txt}", "training: {steps: 4, device: cpu}"]
    Path("c.yaml").write_text("\n".join(lines) + "\n")
    assert run(["train", "--config", "c.yaml"]) == 0
    assert run(["train", "--config", "c.yaml", "--resume", "--steps", "6"]) == 0, capsys.readouterr().err
    assert log_without_clock(Path("r"))[-1]["step"] == 6
    assert run(["train", "--config", "c.yaml", "--overwrite", "--init_from", "r"]) == 2
    assert "belongs to the run that --overwrite would replace" in capsys.readouterr().err
    assert log_without_clock(Path("r"))[-1]["step"] == 6


def test_a_start_that_is_gone_is_told_where_no_checkpoint_is_left(base: Path, tiny_data: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree((base / "last").resolve(), start)
    onward(tiny_data, tmp_path / "r", start)
    for path in [*(tmp_path / "r").glob("step-*"), start]:
        shutil.rmtree(path)
    config = load_run_config(tmp_path / "r/config.yaml")
    with pytest.raises(UserError, match="start, which this run starts from, no longer exists"):
        launch(Request(config, "r", resume=True, command=["test"]), Console(file=io.StringIO()))


def test_what_says_how_random_weights_begin_is_said_to_do_nothing(base: Path, tiny_data: Path, tmp_path: Path) -> None:
    told = ""
    for asked in ({}, {"zero_residual": True, "previous_token_init": False}):
        config = load_run_config({"init_from": str(base), "data": {"data_dir": str(tiny_data)}, "training": asked})
        console = Console(file=io.StringIO(), width=1000)
        take_over(Request(config, "mine"), tmp_path / "r", console)
        assert "starting from" in (told := console.file.getvalue())  # ty: ignore[unresolved-attribute]
        assert ("zero_residual says how random weights begin, and nothing about these" in told) == bool(asked)
    assert "previous_token_init" not in told
