"""Which form of attention a run trains with: chosen once, by time, and kept; a resumed run never chooses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from run_helpers import fingerprint, log_without_clock, run_tiny, tiny_request
from safetensors.torch import load_file
from test_resume import interrupted, stop_after

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.layers.blocked_attention import attend_in_blocks
from tiny_transformer.models.building import empty_model, has_exchangeable_attention
from tiny_transformer.models.qwen3.model import Qwen3Attention
from tiny_transformer.parallel.processes import ALONE
from tiny_transformer.stages import attention
from tiny_transformer.stages import run as stage
from tiny_transformer.stages.launch import launch
from tiny_transformer.storage.runs import load_identity
from tiny_transformer.training.modifiers import use_blocked_attention

CPU = Hardware(torch.device("cpu"), None)


def gains(monkeypatch: pytest.MonkeyPatch, gain: float | None) -> None:
    """Blocks are so many times as fast; None: nobody may ask."""

    def time(shape: attention.AttentionShape) -> float:
        assert gain is not None, "timed without need"
        return gain

    monkeypatch.setattr(attention, "SHORTEST", 32)
    monkeypatch.setattr(attention, "_time", time)


def settled(config: RunConfig, hardware: Hardware = CPU, *, resume: bool = False, run_dir: Path = Path("none")) -> str:
    console = Console(file=io.StringIO())
    return attention.settle_attention(config, run_dir, hardware, ALONE, console, resume=resume).training.attention


def chosen(run_dir: Path) -> tuple[str, str]:
    """What config.yaml and the last checkpoint say."""
    said = load_run_config(str(run_dir / "config.yaml")).training.attention
    return said, load_identity(run_dir / "last")["training.attention"]


@pytest.mark.parametrize(("gain", "form"), [(1.3, "blocks"), (1.05, "sdpa")])
def test_the_faster_form_is_used_and_written_down(tiny_data, tmp_path, monkeypatch, gain, form):
    gains(monkeypatch, gain)
    run_tiny(tiny_data, tmp_path / "run", steps=2)
    assert chosen(tmp_path / "run") == (form, form)


def test_both_forms_train_the_same_weights_up_to_rounding(tiny_data, tmp_path, monkeypatch):
    used: list[int] = []

    def noting(**arguments):
        used.append(arguments["query"].shape[2])
        return attend_in_blocks(**arguments)

    monkeypatch.setattr("tiny_transformer.training.modifiers.attend_in_blocks", noting)
    plain = {"steps": 3, "dropout": 0.0, "optimizer": "adamw"}
    for form in ("sdpa", "blocks"):
        run_tiny(tiny_data, tmp_path / form, attention=form, **plain)
        assert bool(used) == (form == "blocks")
    one, other = (load_file(tmp_path / form / "last/model.safetensors") for form in ("sdpa", "blocks"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("resumed_with", ["auto", "own"])
def test_a_resumed_run_keeps_the_choice_and_its_bits(tiny_data, tmp_path, monkeypatch, resumed_with):
    gains(monkeypatch, 2.0)
    run_tiny(tiny_data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        run_tiny(tiny_data, tmp_path / "parts")
    gains(monkeypatch, None)
    if resumed_with == "auto":
        run_tiny(tiny_data, tmp_path / "parts", resume=True)
    else:
        run_tiny(tiny_data, tmp_path / "parts", resume=True, attention="blocks")
    assert chosen(tmp_path / "parts") == ("blocks", "blocks")
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "parts")
    assert log_without_clock(tmp_path / "whole") == log_without_clock(tmp_path / "parts")


def test_a_run_killed_before_its_first_checkpoint_keeps_the_choice(tiny_data, tmp_path, monkeypatch):
    gains(monkeypatch, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "train", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_tiny(tiny_data, tmp_path / "run")
    gains(monkeypatch, None)
    run_tiny(tiny_data, tmp_path / "run", resume=True)
    assert chosen(tmp_path / "run") == ("blocks", "blocks")


def test_a_run_from_before_there_was_a_choice_stays_as_it_is(tiny_data, tmp_path, monkeypatch):
    gains(monkeypatch, None)
    monkeypatch.setattr(attention, "load_identity", lambda path: {})
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        run_tiny(tiny_data, tmp_path / "run", attention="sdpa")
    state = tmp_path / "run/last/trainer_state/state.json"
    assert "training.attention" in json.loads(state.read_text(encoding="utf-8"))["identity"]
    request = tiny_request(tiny_data, tmp_path / "run")
    assert settled(request.config, resume=True, run_dir=tmp_path / "run") == "auto"


def test_another_choice_on_resume_is_told(tiny_data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        run_tiny(tiny_data, tmp_path / "run", attention="sdpa")
    said = Console(file=io.StringIO(), width=200)
    launch(tiny_request(tiny_data, tmp_path / "run", resume=True, attention="blocks"), said)
    assert "training.attention was 'sdpa' and is now 'blocks'" in said.file.getvalue()


def test_stops_and_resumes_with_blocks_and_dropout_leave_no_trace(tiny_data, tmp_path, monkeypatch):
    run_tiny(tiny_data, tmp_path / "whole", attention="blocks")
    parts = interrupted(tiny_data, tmp_path / "parts", monkeypatch, [3, 7], attention="blocks")
    assert fingerprint(tmp_path / "whole") == fingerprint(parts)


def test_nothing_is_timed_where_there_is_no_choice(tiny_data, tmp_path, monkeypatch):
    config = tiny_request(tiny_data, tmp_path / "run").config
    gains(monkeypatch, None)
    gpu = Hardware(torch.device("cuda"), None)
    assert settled(config, gpu) == "sdpa"
    deterministic = config.training.model_copy(update={"deterministic": True})
    assert settled(config.model_copy(update={"training": deterministic})) == "sdpa"
    monkeypatch.setattr(attention, "SHORTEST", 33)
    assert settled(config) == "sdpa"
    blocks = config.model_copy(update={"training": config.training.model_copy(update={"attention": "blocks"})})
    assert settled(blocks) == "blocks"
    assert settled(blocks, gpu, resume=True) == "sdpa"
    with pytest.raises(UserError, match="for a CPU, and this run computes on cuda"):
        settled(blocks, gpu)


def test_a_family_without_attend_trains_with_sdpa_and_blocks_are_refused_by_name(tiny_data, tmp_path, monkeypatch):
    config = tiny_request(tiny_data, tmp_path / "run", attention="blocks").config
    model = empty_model(config.model.model_copy(update={"vocab_size": 9}))
    monkeypatch.delattr(Qwen3Attention, "attend")
    gains(monkeypatch, None)
    assert settled(tiny_request(tiny_data, tmp_path / "run").config) == "sdpa"
    with pytest.raises(UserError, match="the attention of qwen3 cannot be computed in blocks"):
        settled(config)
    with pytest.raises(UserError, match="the attention of qwen3 cannot be computed in blocks"):
        use_blocked_attention(model)
    assert settled(config, resume=True) == "sdpa"


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_next", "olmo2"])
def test_every_family_here_has_both_forms(family):
    assert has_exchangeable_attention(family)


@pytest.mark.parametrize("shape", [{}, {"window": 20, "has_documents": True, "dropout": 0.1}])
def test_timing_takes_no_random_number_and_gives_a_ratio(shape):
    asked = attention.AttentionShape(2, 2, 1, 8, 64, 64, False, 0.0, torch.float32, 1)._replace(**shape)
    before = torch.get_rng_state()
    gain = attention._time(asked)
    assert gain > 0
    assert torch.equal(before, torch.get_rng_state())
    assert attention._time(asked) == gain  # once in a process


def test_the_shape_that_is_timed_is_the_run_s(tiny_data, tmp_path):
    config = load_run_config(
        {
            "model": {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2, "sliding_window": 100},
            "data": {"seq_len": 1024, "packing": "documents"},
            "training": {"micro_batch_size": 16, "dropout": 0.1},
        }
    )
    assert attention.AttentionShape.of(config, torch.bfloat16) == (
        4, 8, 2, config.model.head_dim, 1024, 100, True, 0.1, torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
