"""How a run ends: what only shows a run cannot take it along, a diverged one says why, an early end is announced."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import planted_runs as planted
import pytest
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import DataConfig
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.loss import SplitLoss, perplexity_in_words
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.reports.runs_table import list_runs
from tiny_transformer.stages import pretrain, samples, summary
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request
from tiny_transformer.storage import read_log
from tiny_transformer.training.loop import is_log_step
from tiny_transformer.training.nonfinite import NotFiniteError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ends") / "data"
    data = DataConfig(tokenizer="byte", max_bytes=9_000, val_fraction=0.4, seq_len=32)
    planted.prepare(data, directory)
    return directory


def run(
    data_dir: Path,
    run_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    screen: io.StringIO | None = None,
    **training: Any,
) -> tuple[str, str]:
    """Train and show: how it ended, and what was on the screen."""
    tree = {
        "model": planted.MODEL,
        "data": {"seq_len": 32, "data_dir": str(data_dir)},
        "training": planted.TRAINING
        | {"steps": 10, "eval_steps": None, "log_steps": 1, "save_steps": 500, "optimizer": "adamw"}
        | training,
        "out_dir": str(run_dir),
    }
    screen = screen or io.StringIO()
    console, config = Console(file=screen, width=500), load_run_config(tree)
    outcome = launch(Request(config, "r", resume=resume, overwrite=overwrite, command=["test"]), console)
    summary.finish(outcome, console)
    return outcome.status, screen.getvalue()


def test_steps_that_are_logged_for_their_number_alone() -> None:
    assert [step for step in range(1, 41) if is_log_step(step, 10)] == [1, 2, 4, 8, 10, 20, 30, 40]
    assert [step for step in range(1, 9) if is_log_step(step, 1)] == list(range(1, 9))
    assert [step for step in range(1, 151) if is_log_step(step, 50)] == [1, 2, 4, 8, 16, 32, 50, 100, 150]


@pytest.mark.parametrize("part", ["show_figures", "write_samples", "write_stories", "diagnose_run", "write_report"])
def test_what_fails_while_showing_a_run_is_told_and_the_rest_goes_on(
    part: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise IndexError("argmax of an empty sequence")

    monkeypatch.setattr(*((pretrain, "show_losses") if part == "show_figures" else (summary, part)), broken)
    status, shown = run(data_dir, tmp_path / "r", sample_prompts=["Once"], sample_tokens=4)
    assert status == "finished"
    assert "IndexError: argmax of an empty sequence. The run is not harmed; please report this line." in shown
    assert f"model   {tmp_path / 'r'}/last" in shown
    assert (tmp_path / "r/report.html").exists() == (part != "write_report")
    assert ("finished: training loss" in shown) == (part != "show_figures")


def test_what_it_knows_is_told_and_stands_on_the_page(data_dir: Path, tmp_path: Path) -> None:
    _, shown = run(data_dir, tmp_path / "r", sample_prompts=["Once"], sample_tokens=4)
    written = json.loads((tmp_path / "r/written.json").read_text())
    assert written["num_stories"] == 30 and written["in_words"] in shown
    assert "As it grew" in (tmp_path / "r/report.html").read_text()


def test_a_sample_that_fails_ends_no_run_and_says_why(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise UserError("the model computed not-a-number after 0 new tokens")

    monkeypatch.setattr(samples, "complete", broken)
    status, _ = run(data_dir, tmp_path / "r", sample_prompts=["Once"], sample_tokens=4)
    assert status == "finished"
    on_the_way = [
        s for s in json.loads((tmp_path / "r/samples.json").read_text()) if s["settings"] == {"temperature": 0.0}
    ]
    assert on_the_way[0] == {
        "prompt": "Once",
        "text": "",
        "problem": "the model computed not-a-number after 0 new tokens",
        "step": 1,
        "settings": {"temperature": 0.0},
    }
    assert "the model computed not-a-number after 0 new tokens" in (tmp_path / "r/report.html").read_text()


@pytest.mark.parametrize("log_steps", [1, 10, 50])
def test_a_run_whose_rate_is_beyond_all_reason_ends_with_step_cause_and_report(
    log_steps: int, data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFiniteError) as caught:
        run(data_dir, tmp_path / "r", steps=60, learning_rate=1e30, log_steps=log_steps, sample_prompts=["Once"])
    step = caught.value.step
    assert f"at step {step}; the step was not saved" in caught.value.what
    page = (tmp_path / "r/report.html").read_text(encoding="utf-8")
    for words in (f"Not a number since step {step}: ", "The learning rate is too high: one update", "it was 1e+30."):
        assert words in page.replace("&#x27;", "'")
    assert read_log(tmp_path / "r/log.jsonl")[0]["step"] == 1
    assert list_runs(tmp_path / "r")[0].state == "diverged"


def test_a_diverged_run_that_is_resumed_with_a_lower_rate_is_a_run_like_any_other(
    data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFiniteError):
        run(data_dir, tmp_path / "r", learning_rate=1e30)
    assert run(data_dir, tmp_path / "r", resume=True)[0] == "finished"
    assert read_run(tmp_path / "r").not_finite == {}
    assert list_runs(tmp_path / "r")[0].state == "finished"


def test_a_diverged_run_that_saved_nothing_leaves_the_run_that_it_was_to_replace(
    data_dir: Path, tmp_path: Path
) -> None:
    def contents() -> dict[Path, bytes]:
        files = (path for path in (tmp_path / "r").rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.read_bytes() for path in files}

    run(data_dir, tmp_path / "r")
    before, screen = contents(), io.StringIO()
    with pytest.raises(NotFiniteError) as caught:
        run(data_dir, tmp_path / "r", overwrite=True, screen=screen, learning_rate=1e30, steps=60)
    assert contents() == before
    assert list_runs(tmp_path / "r")[0].state == "finished"
    assert "nothing was saved before the run diverged, so the previous run is put back" in screen.getvalue()
    assert "replay" not in (caught.value.remedy or "")  # that would replay the old run


def test_a_diverged_run_that_saved_before_replaces_the_old_one_and_says_why(data_dir: Path, tmp_path: Path) -> None:
    run(data_dir, tmp_path / "r")
    with pytest.raises(NotFiniteError) as caught:
        run(data_dir, tmp_path / "r", overwrite=True, learning_rate=1e8, steps=60, save_steps=1)
    assert list_runs(tmp_path / "r")[0].state == "diverged"
    assert f"Not a number since step {caught.value.step}: " in (tmp_path / "r/report.html").read_text(encoding="utf-8")
    assert f"replay {tmp_path / 'r'} --step {caught.value.step}" in (caught.value.remedy or "")


def test_a_validation_loss_that_is_no_number_ends_the_run(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "validation_loss", lambda *_: SplitLoss(float("nan"), 10, 10))
    with pytest.raises(NotFiniteError, match="val_loss is nan at step 4; the step was not saved"):
        run(data_dir, tmp_path / "r", eval_steps=4)


def test_an_early_end_is_announced_with_the_best_loss(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.5, 2.75, 2.6, 2.8])
    monkeypatch.setattr(
        "tiny_transformer.stages.pretrain.validation_loss", lambda *_: SplitLoss(next(losses) * 1000, 1000, 4000)
    )
    status, shown = run(data_dir, tmp_path / "r", eval_steps=2, early_stopping_patience=2)
    assert status == "stopped_early"
    assert "stopped early at step 8: no lower validation loss in 2 evaluations in a row" in shown
    assert "validation; best at step 4, the last is 2.600" in shown
    assert " ".join(next(line for line in shown.splitlines() if "this model" in line).split()).startswith(
        "this model 2.500 0.902 12.182"
    )


@pytest.mark.parametrize(
    ("nats", "words"), [(0.0, "1.000"), (2.5, "12.182"), (8.0, "2,981"), (270.0, "1.8e+117"), (1e9, "1e+304")]
)
def test_a_perplexity_can_be_read(nats: float, words: str) -> None:
    assert perplexity_in_words(nats) == words
