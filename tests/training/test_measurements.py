"""What a logged step tells besides its loss, and the texts written while a model learns."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import TINY, fingerprint, run_tiny, tiny_request

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.data.token_file import open_dataset, unigram_nats
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.skills import chances, measure_skills
from tiny_transformer.evaluation.stories import Reading, fresh_stories
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import build_model
from tiny_transformer.stages import pretrain as pretraining
from tiny_transformer.stages import run as pretrain
from tiny_transformer.stages import samples as through_time
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.summary import finish
from tiny_transformer.training import loop
from tiny_transformer.training.plan import SAMPLE_POINTS, Pace, make_plan, plan_for_minutes
from tiny_transformer.training.speed import Speed
from tiny_transformer.training.state import TrainState
from tiny_transformer.training.update_stats import UpdateStats, part_name, peak_memory


def log_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embed_tokens"),
        ("model.layers.3.mlp.up_proj.weight", "layers.3"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "lm_head"),
        ("mtp.layers.0.self_attn.q_proj.weight", "mtp.layers.0"),
    ],
)
def test_a_parameter_belongs_to_its_block(name: str, part: str) -> None:
    assert part_name(name) == part


def test_movement_equals_norms_taken_by_hand() -> None:
    model = build_model(load_run_config(TINY).model.model_copy(update={"vocab_size": 40}), seed=3)
    chance = torch.Generator().manual_seed(0)
    for parameter in list(model.parameters())[1:]:  # the first gets no gradient
        parameter.grad = torch.randn(parameter.shape, generator=chance)
    before = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
    update_stats = UpdateStats(model)
    update_stats.begin()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    update_stats.end()
    for part in ("embed_tokens", "layers.0", "layers.1", "norm"):
        names = [name for name, _ in model.named_parameters() if part_name(name) == part]
        weights = math.sqrt(sum(before[name].square().sum().item() for name in names))
        now = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
        moved = math.sqrt(sum((now[name] - before[name]).square().sum().item() for name in names))
        found = update_stats.figures["update_ratios"][part]
        assert found == pytest.approx(moved / weights, rel=2e-3)
        assert update_stats.figures["part_grad_norms"][part] == pytest.approx(moved / 0.01, rel=2e-3)
    assert update_stats.figures["update_ratios"]["embed_tokens"] == 0.0
    assert set(update_stats.figures["update_ratios"]) == {part_name(name) for name in before}


def test_each_line_tells_of_parts_time_and_memory(tiny_data: Path, tmp_path: Path) -> None:
    outcome = run_tiny(tiny_data, tmp_path / "r", log_steps=3)
    log = log_of(tmp_path / "r")
    assert [row["step"] for row in log] == [1, 2, 3, 5, 6, 9, 10, 12]
    for row in log:
        assert (
            set(row["update_ratios"]) == set(row["part_grad_norms"]) == {"embed_tokens", "layers.0", "layers.1", "norm"}
        )
        assert all(0 < ratio < 1 for ratio in row["update_ratios"].values())
        whole = math.sqrt(sum(norm**2 for norm in row["part_grad_norms"].values()))
        assert whole == pytest.approx(min(1.0, row["grad_norm"]), rel=1e-3)  # after clipping, all parts together
        assert 10_000_000 < row["peak_memory_bytes"] < 10**11
        assert row["muon_learning_rate"] == pytest.approx(10 * row["learning_rate"])  # 0.01 beside 0.001
    seconds = log[-1]["seconds"]
    assert set(seconds) == {"data", "forward_backward", "optimizer", "evaluations", "logging", "saves"}
    assert all(value >= 0 for value in seconds.values())
    spent = outcome.state.seconds
    assert sum(spent[kind] for kind in ("data", "forward_backward", "optimizer")) <= spent["steps"]
    assert sum(spent.values()) - spent["steps"] <= outcome.state.elapsed_seconds


@pytest.mark.clock
def test_a_steps_time_is_that_of_its_parts(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.time, "monotonic", time.process_time)
    spent = run_tiny(tiny_data, tmp_path / "r").state.seconds
    parts = sum(spent[kind] for kind in ("data", "forward_backward", "optimizer"))
    assert parts == pytest.approx(spent["steps"], rel=0.05)


def test_weights_are_only_copied_at_logged_steps(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(loop, "UpdateStats", lambda model, sharing: made.append(1) or UpdateStats(model))
    run_tiny(tiny_data, tmp_path / "r", log_steps=5, eval_steps=None)
    assert len(made) == 6  # of 12 steps: 1, 2, 4, 5, 10 and the last


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory(torch.device("cpu"))["peak_memory_bytes"]
    held = np.ones(200_000_000, dtype=np.uint8)
    assert peak_memory(torch.device("cpu"))["peak_memory_bytes"] >= max(before, held.nbytes)


def test_unigram_entropy_is_that_of_the_token_counts(tiny_data: Path) -> None:
    train = open_dataset(tiny_data).train
    tokens = train.read(0, 5000).tolist()
    shares = [tokens.count(token) / 5000 for token in set(tokens)]
    assert unigram_nats(train, 5000) == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-12)


# --- samples through time ---------------------------------------------------------------------------------------------


def test_sampling_leaves_training_as_it_is(tiny_data: Path, tmp_path: Path) -> None:
    run_tiny(tiny_data, tmp_path / "without")
    run_tiny(tiny_data, tmp_path / "with", sample_prompts=["Once", "The", "Once"])
    assert fingerprint(tmp_path / "without") == fingerprint(tmp_path / "with")
    samples = json.loads((tmp_path / "with/samples.json").read_text())
    assert [(s["step"], s["prompt"]) for s in samples[:4]] == [(1, "Once"), (1, "The"), (2, "Once"), (2, "The")]
    assert sorted({s["step"] for s in samples}) == [1, 2, 4, 8, 12]
    assert {json.dumps(s["settings"]) for s in samples} == {'{"temperature": 0.0}'}
    growth = json.loads((tmp_path / "with/growth.json").read_text())
    assert [(row["step"], row["num_tokens"]) for row in growth] == [(step, 128 * step) for step in (1, 2, 4, 8, 12)]
    assert all(0 < chance <= 1 for row in growth for chance in row["chances"].values())
    assert not (tmp_path / "without/growth.json").exists()


def test_skills_that_cannot_be_read_end_no_run_and_say_why(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise UserError("the tokenizer does not give back a story")

    monkeypatch.setattr(pretraining, "chances", broken)
    assert run_tiny(tiny_data, tmp_path / "r", steps=2, sample_prompts=["Once"]).status == "finished"
    rows = json.loads((tmp_path / "r/growth.json").read_text())
    assert [row["problem"] for row in rows] == ["the tokenizer does not give back a story"] * 2


def test_skills_are_the_chances_of_the_skill_report(tiny_data: Path) -> None:
    tokenizer = open_dataset(tiny_data).tokenizer
    model = build_model(load_run_config(TINY).model.model_copy(update={"vocab_size": 257}), seed=0).train()
    reading = Reading(tokenizer, 32, predicts_first=True, hardware=Hardware(torch.device("cpu"), None))
    told = fresh_stories(2)
    found = chances(model, told, reading)
    assert model.training
    rows = measure_skills(model.eval(), told, reading).skills
    assert found == {row.name: pytest.approx(math.exp(-row.lost / row.pieces)) for row in rows}


def test_a_resumed_run_writes_the_same_texts(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts, options = tmp_path / "whole", tmp_path / "parts", {"sample_prompts": ["Once", "The"]}
    run_tiny(tiny_data, whole, **options)
    inner = loop.train
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "train", lambda job, state, _: inner(job, state, lambda: state.step >= 5))
        run_tiny(tiny_data, parts, **options)
    run_tiny(tiny_data, parts, resume=True, **options)
    for name in ("samples.json", "growth.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_the_last_samples_stand_beside_those_of_the_way(tiny_data: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    finish(
        launch(tiny_request(tiny_data, tmp_path / "r", sample_prompts=["Once"], sample_tokens=9), console),
        console,
    )
    samples = json.loads((tmp_path / "r/samples.json").read_text())
    assert [s["settings"]["temperature"] for s in samples] == [0.0] * 5 + [0.8]


@pytest.mark.parametrize("total", [7, 100, 12_345])
def test_each_point_of_the_run_is_met_once_also_when_its_length_changes(total: int) -> None:
    plan = make_plan(TrainingConfig(), total, "")
    longer = plan.ending_at(2 * total, seen_from=total // 3, reason="", is_fixed=True)
    for made in (plan, longer):
        pace = Pace(made, TrainingConfig(), None, lambda plan: None)
        due = [step for step in range(1, made.total_steps + 1) if pace.samples_at(step)]
        assert due[-1] == made.total_steps
        assert len(due) <= len(SAMPLE_POINTS)
        assert sum(any(pace.progress(s - 1) < p <= pace.progress(s) for s in due) for p in SAMPLE_POINTS) == 6


def test_a_plan_for_minutes_leaves_time_for_samples() -> None:
    config = TrainingConfig(max_train_minutes=2, save_steps=None)
    assert plan_for_minutes(config, 64, TrainState(), Speed(1.0, 0.0, 0.0, 5.0)).total_steps == 120 - 6 * 5
    pace = Pace(
        plan_for_minutes(config, 64, TrainState(), Speed(1.0, 0.0, 0.0, 5.0)),
        config,
        Speed(1.0, 0.0, 0.0, 5.0),
        lambda plan: None,
    )
    state = TrainState()
    while state.step < pace.total_steps:
        pace.revise(state)
        state.step += 1
        state.spend("steps", 1.0)
        state.elapsed_seconds += 1.0
        if pace.samples_at(state.step):
            state.spend("samples", 8.0)  # slower than was thought
            state.elapsed_seconds += 8.0
    assert state.elapsed_seconds == pytest.approx(120, rel=0.03)


def test_texts_from_after_the_checkpoint_are_replaced_not_repeated(tiny_data: Path, tmp_path: Path) -> None:
    model = build_model(load_run_config(TINY).model.model_copy(update={"vocab_size": 257}), seed=3)
    sampler = through_time.Sampler(model, open_dataset(tiny_data).tokenizer, ("Once",), tmp_path)
    for step in (4, 8, 12, 8):  # killed after 12, taken up from before 8
        sampler(TrainState(step=step))
    assert [s["step"] for s in json.loads((tmp_path / "samples.json").read_text())] == [4, 8]
