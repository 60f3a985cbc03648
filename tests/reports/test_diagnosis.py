"""Sixteen planted faults get the right words, eleven healthy runs get none."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up_run as made
import planted_runs as planted
import pytest
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import DataConfig
from tiny_transformer.reports.diagnosis import diagnose as diagnose_module
from tiny_transformer.reports.diagnosis.diagnose import CHECKS, diagnose, diagnose_run
from tiny_transformer.reports.diagnosis.evidence import Evidence, Finding
from tiny_transformer.reports.diagnosis.rates import always_clipped
from tiny_transformer.reports.page_findings import diagnosis_section
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request
from tiny_transformer.stages.summary import finish

# What the sentence about each planted fault must say.
WORDS = {
    "few texts by heart": "Overfitting since step ",
    "rate beyond all reason": "at the end, and untrained weights that guess blindly have 5.5",
    "rate that rises until it breaks": "One update changed a layer's weights by ",
    "rate of nearly nothing": "too low: all 120 updates together moved the layers' weights by at most 0.1%",
    "nine epochs": "The data was seen nine times",
    "shuffled labels": "The model learnt nothing from context",
    "labels not shifted": "Too good to be true: the validation loss of ",
    "frozen layer": "no gradient reaches layers.1; these weights do not learn.",
    "clipped to nothing": "The gradient was clipped in 100% of the steps",
    "busy machine": " tokens a second; before, it made 33,333.",
    "evaluates all the time": "Evaluation took ",
    "saves all the time": "Saving took ",
    "eight tokens a step": "The batch is too small: ",
    "no warm-up": "the first steps ran at 0.5, the full learning rate (and Muon at 0.02).",
    "tiny validation split": "The validation split is tiny: 2,6",
    "stopped half-way": "Stopped before the decay ended: at step 60 of 120 ",
}


# A log of each step tells what a coarser one cannot: at which step.
EXACT = {"busy machine": "Since step 51 the run makes 11,111 tokens a second; before, it made 33,333."}


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A planted run by name, made when it is first asked for."""
    directory = tmp_path_factory.mktemp("planted")
    data_dirs = planted.prepare_texts(directory / "data")
    recipes, made_runs = planted.FAULTS | planted.HEALTHY, dict[str, Path]()

    def run(name: str) -> Path:
        if name not in made_runs:
            made_runs[name] = planted.make(recipes[name], data_dirs, directory / name.replace(" ", "-"))
        return made_runs[name]

    return run


LOG_STEPS = range(1, 51)


@pytest.mark.slow
@pytest.mark.parametrize("name", planted.FAULTS)
def test_a_planted_fault_gets_the_right_words_however_coarse_the_log(name: str, run_of: Callable[[str], Path]) -> None:
    recipe, run = planted.FAULTS[name], read_run(run_of(name))
    for log_steps in LOG_STEPS:
        found = diagnose_run(replace(run, log=planted.thinned(run.log, log_steps)))
        keys = {finding.key for finding in found}
        assert recipe.finding in keys, log_steps
        assert keys <= {recipe.finding} | recipe.also, log_steps
        (what,) = (finding.what for finding in found if finding.key == recipe.finding)
        assert WORDS[name] in what, log_steps
        assert log_steps > 1 or EXACT.get(name, "") in what


@pytest.mark.slow
@pytest.mark.parametrize("name", planted.HEALTHY)
def test_a_healthy_run_gets_no_words_however_coarse_the_log(name: str, run_of: Callable[[str], Path]) -> None:
    run = read_run(run_of(name))
    for log_steps in LOG_STEPS:
        assert diagnose_run(replace(run, log=planted.thinned(run.log, log_steps))) == [], log_steps
    assert "Nothing unusual" in diagnosis_section([], len(run.log))


def test_a_thinned_log_has_the_first_steps_the_evaluations_and_the_mean_speed() -> None:
    log = [{"step": s, "num_tokens": 10 * s, "tokens_per_second": 10.0 if s < 6 else 5.0} for s in range(1, 13)]
    log[7]["val_loss"] = 2.0
    thin = planted.thinned(log, 5)
    assert [row["step"] for row in thin] == [1, 2, 4, 5, 8, 10, 12]
    assert [row["tokens_per_second"] for row in thin[3:]] == [10.0, 5.0, 5.0, 5.0]
    assert planted.thinned(log, 7)[3]["tokens_per_second"] == pytest.approx(30 / (1 + 2 + 2))  # steps 5, 6, 7


@pytest.mark.parametrize("num_rows", range(51))
def test_no_number_of_rows_breaks_a_check_or_makes_it_find_what_is_not_there(num_rows: int) -> None:
    made_up = evidence(num_rows)
    for check in CHECKS:  # not through `diagnose`, which would survive it
        assert check(made_up) is None, check


def test_a_check_that_fails_is_named_and_takes_nothing_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_check(e: Evidence) -> Finding | None:
        raise IndexError("row 10 of 10")

    monkeypatch.setattr(diagnose_module, "CHECKS", (broken_check, *CHECKS))
    failed, repeated = diagnose(evidence(epoch=lambda i: 9.02))
    assert failed.what == "The check “broken check” failed: IndexError: row 10 of 10."
    assert "report" in failed.remedy
    assert repeated.key == "data repeated"


def test_a_short_log_is_not_called_healthy() -> None:
    assert "too few steps to call this run healthy" in diagnosis_section([], 9)
    assert "Nothing unusual in the training: no check of loss" in diagnosis_section([], 10)
    assert diagnosis_section([], 0) == ""


def test_the_made_up_run_is_healthy(tmp_path: Path) -> None:
    assert diagnose_run(read_run(made.make_run(tmp_path, "demo"))) == []


# --- each check on rows made for it -----------------------------------------------------------------------------------


def evidence(num_rows: int = 100, *, state: str = "finished", **curves: Callable[[int], Any]) -> Evidence:
    """The made-up healthy run, with some figures replaced by functions of the row's index."""
    log = [made.log_row(20 * (i + 1), evaluated=i % 10 == 9) for i in range(num_rows)]
    for index, row in enumerate(log):
        row |= {key: value for key, curve in curves.items() if (value := curve(index)) is not None}
    return Evidence(log, made.CONFIG, made.run_info(2000), state)


def keys_of(found: Evidence) -> list[str]:
    return [finding.key for finding in diagnose(found)]


def test_fp16_whose_scale_collapses_is_told_from_one_whose_scale_settles() -> None:
    collapsed = diagnose(evidence(loss_scale=lambda i: 65536.0 / 2 ** min(i // 4, 16)))
    assert [finding.key for finding in collapsed] == ["loss scale collapsed"]
    assert "collapsed from 65536 to 1 (at 4 since step 1,140)" in collapsed[0].what
    assert keys_of(evidence(loss_scale=lambda i: 65536.0 / 2 ** min(i // 4, 6))) == []
    assert keys_of(evidence(loss_scale=lambda i: 1.0)) == []  # never had one


@pytest.mark.parametrize(("rise", "expected"), [(0.01, []), (0.04, ["overfitting"])])
def test_a_rise_of_the_validation_loss_by_two_per_cent_is_overfitting(rise: float, expected: list[str]) -> None:
    def val_loss(i: int) -> float | None:
        return (2.0 if i < 60 else 2.0 * (1 + rise)) if i % 10 == 9 else None

    assert keys_of(evidence(val_loss=val_loss)) == expected


def test_a_validation_loss_that_rises_with_the_training_loss_is_not_overfitting() -> None:
    both = evidence(val_loss=lambda i: 2 + 0.001 * i if i % 10 == 9 else None, loss=lambda i: 2 + 0.0005 * i)
    assert "overfitting" not in keys_of(both)


@pytest.mark.parametrize(("steps", "expected"), [(103, []), (200, ["stuck"])])
def test_a_short_run_at_the_default_rate_is_not_told_to_look_at_its_labels(steps: int, expected: list[str]) -> None:
    """A hundred steps of AdamW at 1e-3 end where the frequencies of the tokens are known and little else is."""
    log = [made.log_row(step, evaluated=False) for step in range(1, steps + 1)]
    for row in log:
        row["loss"] = 5.4 + 3.0 * math.exp(-row["step"] / 10)
    info = made.run_info(steps)
    info["data"] = {**info["data"], "unigram_nats": 5.4}
    assert [key for key in keys_of(Evidence(log, made.CONFIG, info, "finished")) if key == "stuck"] == expected


def test_speed_is_judged_by_what_lasts() -> None:
    assert keys_of(evidence(tokens_per_second=lambda i: 9000.0 if i < 70 else 4000.0)) == ["slowed down"]
    assert keys_of(evidence(tokens_per_second=lambda i: 9000.0 if i % 10 else 1000.0)) == []
    assert keys_of(evidence(tokens_per_second=lambda i: 9000.0 if i < 70 else 5000.0)) == []
    assert keys_of(evidence(tokens_per_second=lambda i: (9000.0, 3000.0)[i % 3 == 0] if i < 70 else 3900.0)) == []
    (finding,) = diagnose(evidence(tokens_per_second=lambda i: 9000.0 if i < 70 else 4000.0))
    assert finding.what == "Since step 1,420 the run makes 4,000 tokens a second; before, it made 9,000."


@pytest.mark.parametrize(
    ("epochs", "words"), [(3.9, None), (9.02, "nine times"), (6.5, "6.5 times"), (40.0, "40.0 times")]
)
def test_more_than_four_epochs_are_counted_in_words(epochs: float, words: str | None) -> None:
    found = diagnose(evidence(epoch=lambda i: epochs * (i + 1) / 100))
    assert [finding.what.split(":")[0] for finding in found] == ([f"The data was seen {words}"] if words else [])


def test_a_floor_is_only_beaten_by_more_than_luck() -> None:
    tokens, floor = 32_768, made.FLOOR["nats_per_token"]
    charge = math.log(2048)  # for the first token, which nothing predicts
    for gain, expected in ((5.0, []), (9.0, ["below the floor"])):
        loss = (floor * tokens - charge - gain) / (tokens - 1)
        assert keys_of(evidence(val_loss=lambda i, loss=loss: loss if i % 10 == 9 else None)) == expected


def test_a_dead_layer_is_told_from_one_that_starts_at_zero() -> None:
    def norms(i: int, until: int) -> dict[str, float]:
        return {"layers.0": 1.0, "layers.1": 0.0 if i < until else 0.5}

    assert keys_of(evidence(part_grad_norms=lambda i: norms(i, 10))) == []
    assert keys_of(evidence(part_grad_norms=lambda i: norms(i, 100))) == ["dead layers"]
    died = evidence(part_grad_norms=lambda i: {"layers.0": 1.0, "layers.1": 0.5 if i < 40 else 0.0})
    assert keys_of(died) == ["dead layers"]


@pytest.mark.parametrize("losses", [(6.95, 270.0, 7.93), (270.0, 7.93), (6.95, 7.93), (7.93,)])
def test_a_loss_that_ends_above_a_blind_guess_means_the_rate_whatever_was_logged(losses: tuple[float, ...]) -> None:
    log = [
        {"step": 50 * (i + 1), "num_tokens": 50_000 * (i + 1), "loss": value, "update_ratios": {"layers.0": 3.0}}
        for i, value in enumerate(losses)
    ]
    info = {"tokenizer": {"vocab_size": 1024}}
    (found,) = diagnose(Evidence(log, {"training": {"learning_rate": 3.0, "grad_clip": 1.0}}, info))
    assert found.key == "rate too high"
    assert "the loss is 7.930 at the end, and untrained weights that guess blindly have 6.931" in found.what
    assert found.remedy == "Try training.learning_rate 0.02; it was 3."


def test_a_loss_that_began_above_a_blind_guess_and_falls_is_no_fault_of_the_rate() -> None:
    log = [
        {"step": s, "num_tokens": 1000 * s, "loss": 20 - s, "update_ratios": {"layers.0": 0.01}} for s in range(1, 6)
    ]
    assert diagnose(Evidence(log, {}, {"tokenizer": {"vocab_size": 1024}})) == []


@pytest.mark.parametrize(("largest", "expected"), [(0.3, []), (0.7, ["rate too high"])])
def test_an_update_that_replaces_a_layer_is_too_much_whatever_became_of_the_loss(
    largest: float, expected: list[str]
) -> None:
    found = diagnose(evidence(update_ratios=lambda i: {"layers.0": largest if i == 3 else 0.01}))
    assert [finding.key for finding in found] == expected


def test_a_run_that_diverged_is_told_its_step_and_its_cause() -> None:
    ended = {"step": 12, "figure": "loss is nan"}
    log = [{"step": s, "loss": 7.0 * s, "update_ratios": {"layers.0": 40.0}} for s in (1, 2, 4, 8)]
    config = {"training": {"learning_rate": 1000.0}}
    (found,) = diagnose(Evidence(log, config, made.run_info(8), "diverged", ended))
    assert found.what == (
        "Not a number since step 12: loss is nan. The learning rate is too high: one update changed a layer's weights "
        "by 40 times their size (a tenth of a percent is usual)."
    )
    assert found.remedy == "Try training.learning_rate 0.5; it was 1000."
    calm = [{"step": s, "loss": 3.0, "update_ratios": {"layers.0": 0.01}} for s in (1, 2, 4, 8)]
    for rows in (calm, []):
        (found,) = diagnose(Evidence(rows, config, made.run_info(8), "diverged", ended))
        assert "Nothing was wrong in the steps that were logged before." in found.what
        assert "replay RUN --step 12" in found.remedy


@pytest.mark.parametrize(("last", "expected"), [(3, []), (20, []), (60, ["clipped every step"])])
def test_a_run_of_a_few_steps_is_not_said_to_be_clipped(last: int, expected: list[str]) -> None:
    """Three steps of a smoke run were told to raise grad_clip: the gradients of untrained weights are long."""
    log = [{"step": step, "loss": 5.0 - step / 100, "grad_norm": 2.2} for step in range(1, last + 1)]
    config = {"training": {"grad_clip": 1.0, "warmup_steps": 0}}
    assert keys_of(Evidence(log, config, {"total_steps": last}, "finished")) == expected


def test_what_follows_from_a_finding_is_not_told_beside_it() -> None:
    diverged = evidence(loss=lambda i: 3.0 if i < 30 else 7.6, grad_norm=lambda i: 50.0)
    clipped = replace(diverged, config={"training": made.CONFIG["training"] | {"grad_clip": 1.0}})
    assert always_clipped(clipped) is not None
    assert keys_of(clipped) == ["rate too high"]


@pytest.mark.parametrize(("tokens", "expected"), [(64, ["batch too small"]), (1024, [])])
def test_a_loss_that_jumps_is_only_the_batch_when_that_is_small(tokens: int, expected: list[str]) -> None:
    jumping = evidence(loss=lambda i: 2.0 + 0.5 * (-1) ** i, num_tokens=lambda i: 20 * tokens * (i + 1))
    assert keys_of(jumping) == expected


HOSTILE = [None, [], "x", {"a": 1}, True, 10**400, -5, 0, float("1e308"), "</script>"]


@pytest.mark.parametrize("value", HOSTILE)
def test_whatever_stands_in_a_run_each_check_survives_it(value: object) -> None:
    keys = list(made.log_row(20, evaluated=True))
    for key in keys:
        if key != "step":
            found = diagnose(evidence(40, **{key: lambda i: value}))
            assert all(isinstance(finding, Finding) for finding in found)
    log = [
        {"step": 7 * i, **dict.fromkeys(keys[1:], value), "update_ratios": {"layers.0": value}} for i in range(1, 30)
    ]
    info = dict.fromkeys(made.run_info(2000), value) | {
        "tokenizer": {"vocab_size": value},
        "data": {"val_tokens": value},
    }
    for rows in (log, log[:1], []):
        for config in (made.CONFIG, {"training": value}, {"training": {"grad_clip": value}, "data": value}):
            diagnose(Evidence(rows, config, info, "stopped"))


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ({"val_tokens": 900, "train_tokens": 90_000}, "Prepare the data again with a larger data.val_fraction."),
        ({"val_tokens": 900}, "Prepare the data again with a larger data.val_fraction."),
        ({"val_tokens": 900, "train_tokens": 8_000}, "More text would make it surer"),
    ],
)
def test_a_small_text_is_not_told_to_hold_back_more_of_it(data: dict[str, int], remedy: str) -> None:
    log = [{"step": step, "loss": 3.0, "val_loss": 3.0} for step in (10, 20, 30)]
    found = diagnose(Evidence(log, made.CONFIG, made.run_info(30) | {"data": data}, "finished"))
    assert next(one for one in found if one.key == "validation split tiny").remedy.startswith(remedy)


def test_the_diagnosis_is_printed_at_the_end_of_training(tmp_path: Path) -> None:
    planted.prepare(
        DataConfig(source="stories", tokenizer="byte", max_bytes=9_000, val_fraction=0.4, seq_len=64), tmp_path / "data"
    )
    tree = {
        "model": planted.MODEL,
        "data": {"seq_len": 32, "data_dir": str(tmp_path / "data")},
        "training": planted.TRAINING | {"steps": 60, "eval_steps": 30, "micro_batch_size": 8},
        "out_dir": str(tmp_path / "r"),
    }
    screen = io.StringIO()
    console = Console(file=screen, width=500)
    finish(launch(Request(load_run_config(tree), "r", command=["test"]), console), console)
    assert "The validation split is tiny" in screen.getvalue()
    assert "More text would make it surer" in screen.getvalue()  # validation has nearly half of it
    page = (tmp_path / "r/report.html").read_text(encoding="utf-8")
    assert "The validation split is tiny" in page
    assert (tmp_path / "r/loss.svg").read_text().startswith("<svg")
