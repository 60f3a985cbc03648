"""The loop: what a step computes, when it evaluates, saves and stops."""

from __future__ import annotations

import io
import math
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import TINY, evaluation, log_without_clock, run_tiny, tiny_request

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import DataConfig, TrainingConfig
from tiny_transformer.data.batches import IGNORE_INDEX, Batches, TokenBatch, evaluation_batches
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.evaluation.loss import evaluate_split
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import build_model
from tiny_transformer.models.contract import BackboneOutput
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.parallel.stop import StopSignals
from tiny_transformer.stages import run as stage
from tiny_transformer.stages.launch import choose_run_dir, launch
from tiny_transformer.stages.replay import replay
from tiny_transformer.stages.samples import Sampler
from tiny_transformer.stages.stage import Request
from tiny_transformer.stages.summary import finish
from tiny_transformer.storage import RunDirectory, StepLog
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.speed import Speed

CPU = Hardware(torch.device("cpu"), None)


def small_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = load_run_config(TINY).model.model_copy(update={"vocab_size": 257})
    return build_model(config, seed=1, dtype=dtype)


class Ragged:
    """One batch of 8 rows of which the k-th has k + 2 targets."""

    def micro_batches(self, step: int, micro_batch_size: int) -> list[TokenBatch]:
        ids = torch.randint(0, 257, (8, 16), generator=torch.Generator().manual_seed(step))
        labels = torch.where(torch.arange(16) < torch.arange(2, 10)[:, None], ids.roll(-1, 1), IGNORE_INDEX)
        pieces = zip(ids.split(micro_batch_size), labels.split(micro_batch_size), strict=True)
        return [
            TokenBatch(i, labels, int((labels != IGNORE_INDEX).sum()), torch.arange(len(i))) for i, labels in pieces
        ]

    def epoch(self, step: int) -> float:
        return 0.0


def test_gradient_does_not_depend_on_how_the_batch_is_cut() -> None:
    gradients = []
    for micro_batch_size in (8, 4, 1):
        model = small_model(torch.float64)
        config = TrainingConfig(micro_batch_size=micro_batch_size, grad_clip=None)
        pieces = Ragged().micro_batches(0, config.micro_batch_size)
        found = compute_gradient(model, pieces, 0, config, CPU, language_modelling_loss)
        gradients.append((found.loss, found.norm, [parameter.grad.clone() for parameter in model.parameters()]))
        assert found.num_targets == sum(range(2, 10))
    for loss, norm, other in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-6)
        assert norm == pytest.approx(gradients[0][1], rel=1e-6)
        for one, two in zip(gradients[0][2], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_the_loss_is_the_mean_over_targets() -> None:
    model, batch = small_model(), Ragged().micro_batches(0, 8)[0]
    loss_sum, _ = language_modelling_loss(model, batch)
    log_probabilities = model(batch.input_ids).log_softmax(-1)
    by_hand = -sum(
        log_probabilities[row, t, batch.labels[row, t]].item()
        for row in range(8)
        for t in range(16)
        if batch.labels[row, t] != IGNORE_INDEX
    )
    assert loss_sum.item() == pytest.approx(by_hand, rel=1e-5)


def test_clipping_shortens_the_gradient_to_its_limit() -> None:
    model = small_model()
    norm = compute_gradient(
        model, Ragged().micro_batches(0, 8), 0, TrainingConfig(grad_clip=0.01), CPU, language_modelling_loss
    ).norm
    clipped = math.sqrt(sum(parameter.grad.square().sum().item() for parameter in model.parameters()))
    assert norm > 0.01
    assert clipped == pytest.approx(0.01, rel=1e-3)


def test_one_batch_can_be_learned_by_heart() -> None:
    model = small_model()
    config = TrainingConfig(learning_rate=3e-3, optimizer="muon", muon_learning_rate=0.02, micro_batch_size=8)
    optimizers = Optimizers(model, config)
    losses = []
    pieces = Ragged().micro_batches(0, config.micro_batch_size)
    for _ in range(120):
        losses.append(compute_gradient(model, pieces, 0, config, CPU, language_modelling_loss).loss)
        optimizers.step(1.0)
    assert losses[0] > 5
    assert losses[-1] < 0.05


def test_evaluation_equals_the_loss_of_the_whole_text_in_order(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data)
    model = small_model().eval()
    result = evaluate_split(
        model,
        evaluation_batches(dataset.val, seq_len=32, batch_size=3),
        num_bytes=dataset.meta.val.num_bytes,
        hardware=CPU,
    )
    tokens = torch.from_numpy(dataset.val.read(0, len(dataset.val)).astype("int64"))
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, 32):
        window = tokens[start : start + 33]
        with torch.inference_mode():
            logits = model(window[None, :-1])[0]
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        count += len(window) - 1
    assert result.num_tokens == count == len(tokens) - 1
    assert result.loss_sum == pytest.approx(total, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / dataset.meta.val.num_bytes, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_before_the_update(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    calls = []

    def poisoned(model: torch.nn.Module, batch: TokenBatch) -> tuple[torch.Tensor, int, dict[str, float]]:
        calls.append(1)
        loss_sum, metrics = language_modelling_loss(model, batch)
        return loss_sum * (bad if len(calls) == 6 else 1.0), metrics

    monkeypatch.setattr("tiny_transformer.stages.pretrain.language_modelling_loss", poisoned)
    with pytest.raises(UserError) as caught:
        run_tiny(tiny_data, tmp_path / "r")
    assert f"loss is {bad} at step 6" in caught.value.what
    assert "first bad tensor: the gradient of model.embed_tokens.weight" in caught.value.what
    batch = Batches(open_dataset(tiny_data).train, seq_len=32, global_batch_size=4, seed=0).micro_batches(5, 4)
    examples = ", ".join(str(example) for piece in batch for example in piece.sample_ids.tolist())
    assert caught.value.where == f"the batch of step 6, examples {examples}"
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert [checkpoint.step for checkpoint in RunDirectory(tmp_path / "r").checkpoints()] == [4, 5]


@pytest.mark.parametrize("spoil", ["momentum_buffer", "exp_avg_sq"])
def test_an_update_that_is_no_number_is_never_saved(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    steps, step = [], Optimizers.step

    def spoiling(optimizers: Optimizers, factor: float) -> None:
        steps.append(1)
        if len(steps) == 6:
            state = optimizers.state()
            next(tensor for name, tensor in state.items() if name.endswith(spoil)).view(-1)[0] = math.nan
        step(optimizers, factor)

    monkeypatch.setattr(Optimizers, "step", spoiling)
    with pytest.raises(UserError) as caught:
        run_tiny(tiny_data, tmp_path / "r")
    assert "the update is not finite at step 6" in caught.value.what
    assert f"/{spoil}" in caught.value.what
    assert [checkpoint.step for checkpoint in RunDirectory(tmp_path / "r").checkpoints()] == [4, 5]


def test_replay_makes_the_same_step_again(tiny_data: Path, tmp_path: Path) -> None:
    run_tiny(tiny_data, tmp_path / "r", dropout=0.5, final_dropout=0.0, sample_prompts=["Once"])
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "r").rglob("*"))
    logged = {record["step"]: record for record in log_without_clock(tmp_path / "r")}
    for number in (1, 5, 6, 12):  # without a checkpoint before it, right after one, later, the last
        screen = io.StringIO()
        gradient = replay(tmp_path / "r", number, Console(file=screen, width=120))
        assert (gradient.loss, gradient.norm) == (logged[number]["loss"], logged[number]["grad_norm"])
        assert f"step {number}: loss" in screen.getvalue()
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "r").rglob("*")) == before
    with pytest.raises(UserError, match=r"step 13 is not one of the run's steps[^$]*from 1 to 12"):
        replay(tmp_path / "r", 13, Console(file=io.StringIO()))
    with pytest.raises(UserError, match="not a training run"):
        replay(tmp_path, 1, Console(file=io.StringIO()))


def test_saves_evaluations_and_links_follow_the_config(tiny_data: Path, tmp_path: Path) -> None:
    outcome = run_tiny(tiny_data, tmp_path / "r", keep_checkpoints=9)
    run = RunDirectory(tmp_path / "r")
    assert outcome.status == "finished"
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [4, 5, 8, 10, 12]
    last, best = run.resolve("last"), run.resolve("best")
    assert last is not None and last.step == 12
    records = log_without_clock(tmp_path / "r")
    evaluated = {record["step"]: record["val_loss"] for record in records if "val_loss" in record}
    assert sorted(evaluated) == [5, 10, 12]
    assert best is not None and best.step == min(evaluated, key=lambda step: evaluated[step])


def test_without_evaluation_there_is_a_last_and_no_best(tiny_data: Path, tmp_path: Path) -> None:
    run_tiny(tiny_data, tmp_path / "r", eval_steps=None)
    assert (tmp_path / "r/last").is_symlink()
    assert not (tmp_path / "r/best").exists()


def test_patience_ends_the_run_after_so_many_evaluations_without_gain(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(stage.Run, "evaluate", lambda run: evaluation(next(losses)))
    outcome = run_tiny(tiny_data, tmp_path / "r", eval_steps=2, early_stopping_patience=2)
    assert (outcome.status, outcome.state.step) == ("stopped_early", 8)
    best = RunDirectory(tmp_path / "r").resolve("best")
    assert best is not None and best.step == 4


def test_a_signal_saves_and_stops_after_the_step(tiny_data: Path, tmp_path: Path) -> None:
    request = tiny_request(tiny_data, tmp_path / "r", steps=100_000, eval_steps=None, save_steps=None)

    def interrupt() -> None:
        while not (tmp_path / "r/log.jsonl").exists() or not (tmp_path / "r/log.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome = launch(request, Console(file=io.StringIO()))
    thread.join()
    last = RunDirectory(tmp_path / "r").resolve("last")
    assert outcome.status == "stopped"
    assert last is not None and last.step == outcome.state.step > 0


def test_the_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not stop()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_is_there_is_not_touched(tiny_data: Path, tmp_path: Path) -> None:
    run_tiny(tiny_data, tmp_path / "r", steps=4)
    with pytest.raises(UserError, match="already holds a run"):
        run_tiny(tiny_data, tmp_path / "r", steps=4)
    assert run_tiny(tiny_data, tmp_path / "r", steps=5, overwrite=True).state.step == 5
    assert [record["step"] for record in log_without_clock(tmp_path / "r")] == [1, 2, 3, 4, 5]


def test_a_budget_becomes_steps_that_end_fully_decayed(tiny_data: Path, tmp_path: Path) -> None:
    outcome = run_tiny(tiny_data, tmp_path / "r", steps=None, max_train_minutes=0.06, final_rate_fraction=0.0)
    last = log_without_clock(tmp_path / "r")[-1]
    assert outcome.status == "finished"
    assert last["learning_rate"] == pytest.approx(0.0, abs=1e-9)
    assert (tmp_path / "r/plan.json").exists()


def test_measuring_the_speed_does_not_change_the_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_tiny(tiny_data, tmp_path / "plain", steps=6)
    measured = run_tiny(tiny_data, tmp_path / "measured", steps=6, max_train_minutes=60)
    assert plain.state.metrics == measured.state.metrics


def test_batches_of_the_tiny_data_cover_an_epoch(tiny_data: Path) -> None:
    batches = Batches(open_dataset(tiny_data).train, seq_len=32, global_batch_size=4, seed=0)
    assert batches.epoch(round(batches.steps_per_epoch)) == pytest.approx(1.0, abs=0.01)


def test_the_saved_config_leads_back_to_the_data(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_data, tmp_path / "data/tiny")
    request = tiny_request(Path("unused"), Path("r"), steps=4)
    made_with = {"tokenizer": "byte", "max_bytes": 60_000, "val_fraction": 0.05}
    data = request.config.data.model_copy(update={"data_dir": None, **made_with})
    launch(replace(request, config=request.config.model_copy(update={"data": data})), Console(file=io.StringIO()))
    assert load_run_config("r/config.yaml").data.data_dir == Path("data/tiny")


def test_a_named_directory_without_data_is_not_filled_with_stories(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="holds no prepared data"):
        launch(tiny_request(tmp_path / "pictures", tmp_path / "r"), Console(file=io.StringIO()))
    assert not list((tmp_path / "pictures").iterdir())
    assert not (tmp_path / "r").exists()


def test_a_sample_prompt_that_cannot_be_written_costs_no_report(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "hen {i} and egg"}}\n' for i in range(300)))
    data = DataConfig(source=str(tmp_path / "a.jsonl"), tokenizer="char", val_fraction=0.2, seq_len=32)
    prepare(data, tmp_path / "data")
    request = tiny_request(tmp_path / "data", tmp_path / "r", steps=2, sample_prompts=["Once"])
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    finish(launch(request, console), console)
    assert "no samples: the character 'O'" in screen.getvalue()
    assert (tmp_path / "r/report.html").is_file()


def test_another_run_of_a_name_gets_the_next_free_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/tiny", "runs/tiny-2", "runs/tiny-3"):
        chosen = choose_run_dir(Request(load_run_config(TINY), "tiny"))
        assert chosen == Path(expected)
        chosen.mkdir(parents=True)
        (chosen / "config.yaml").write_text("")


def test_what_the_first_process_alone_does_is_announced_by_all(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for a disk meanwhile; the others, in their next step, have more marks and must not find it lost."""
    marks: list[str] = []
    unannounced: list[str] = []

    def watched(owner: type, name: str) -> None:
        inner = getattr(owner, name)

        def call(*given: object, **more: object) -> object:
            if marks[-1] != "records":
                unannounced.append(f"{name} in {marks[-1]}")
            return inner(*given, **more)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(Processes, "mark", lambda self, activity, step=None: marks.append(activity))
    watched(Sampler, "__call__")
    watched(StepLog, "append")
    watched(stage, "atomic_write")
    options = {"sample_prompts": ["Once"], "log_steps": 5, "steps": 6, "eval_steps": 3, "max_train_minutes": 1.0}
    monkeypatch.setattr(stage.Run, "measure_speed", lambda self: Speed(0.001, 0.001, 0.001, 0.001))
    run_tiny(tiny_data, tmp_path / "first", **options)
    assert unannounced == [] and marks.count("records") >= 6
    as_first = marks[:]
    marks.clear()
    monkeypatch.setattr(stage.Run, "sampler", lambda self: None)  # as in the other processes
    run_tiny(tiny_data, tmp_path / "other", **options)
    assert marks == as_first


def test_the_loss_of_a_model_in_double_precision_is_not_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (2, 5), generator=generator)
    model: Any = SimpleNamespace(
        backbone=lambda *a, **k: BackboneOutput(logits, torch.zeros(())),
        lm_head=torch.nn.Identity(),
        config=SimpleNamespace(num_mtp_layers=0),
    )
    batch = TokenBatch(labels, labels, 10, torch.arange(2))
    loss, _ = language_modelling_loss(model, batch)
    expected = -logits.log_softmax(-1).gather(-1, labels[..., None]).sum()
    assert loss.dtype == torch.float64 and abs((loss - expected) / expected) < 1e-14
