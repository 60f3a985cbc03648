"""The alarms of alignment: each rings for its own cause and no other, in the log as in the diagnosis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import planted_runs as planted
import pytest

from tiny_transformer.evaluation.alarms import alarms, rings
from tiny_transformer.reports.compare import comparison_html
from tiny_transformer.reports.diagnosis.diagnose import diagnose
from tiny_transformer.reports.diagnosis.evidence import Evidence
from tiny_transformer.reports.outcome import outcome_of
from tiny_transformer.reports.preference_charts import preference_charts
from tiny_transformer.reports.report import report_html
from tiny_transformer.reports.run_reader import RunFiles, StepDirectory, target_of
from tiny_transformer.stages.align import Aligning

SOUND = {
    "val_loss": 0.6,
    "val_chosen_logp": -50.0,
    "val_rejected_logp": -60.0,
    "val_chosen_shift": 1.0,
    "val_rejected_shift": -2.0,
    "val_kl": 0.05,
    "val_length_ratio": 1.1,
}
PLANTED: dict[str, tuple[dict[str, float], str | None]] = {
    "sound": ({}, None),
    "chosen alone falls": ({"val_chosen_shift": -9.0, "val_rejected_shift": 1.0}, None),
    "both fall a little": ({"val_chosen_shift": -1.0, "val_rejected_shift": -4.0}, None),
    "both fall and the margin shrinks": ({"val_chosen_shift": -9.0, "val_rejected_shift": -8.0}, None),
    "both fall": ({"val_chosen_shift": -9.0, "val_rejected_shift": -20.0}, "both likelihoods fall"),
    "far": ({"val_kl": 0.8}, "far from the reference"),
    "long": ({"val_length_ratio": 2.5}, "answers grow"),
}


def log_of(changes: dict[str, float]) -> list[dict[str, Any]]:
    """Sixty steps, evaluated every ten; what is wrong is wrong from step 30 on."""
    rows = []
    for step in range(1, 61):
        row: dict[str, Any] = {"step": step, "num_tokens": 8 * step, "loss": 0.69 - 0.001 * step, "learning_rate": 1e-4}
        row["tokens_per_second"] = 100.0 + step % 7
        if step % 10 == 0:
            figures = SOUND | (changes if step >= 30 else {})
            row |= figures | alarms(figures)
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("log_steps", [1, 7, 50])
def test_each_alarm_rings_for_its_own_cause(name: str, log_steps: int) -> None:
    changes, expected = PLANTED[name]
    log = planted.thinned(log_of(changes), log_steps)
    found = diagnose(Evidence(log, {}, {"checks": list(Aligning.checks)}))
    assert [finding.key for finding in found] == ([] if expected is None else [expected])
    if name == "both fall":
        assert "by step 60 the chosen answers have lost 9.0 nats and the rejected ones 20.0" in found[0].what


def test_the_report_counts_pairs_and_draws_what_the_loss_does_not_show(tmp_path: Path) -> None:
    run = RunFiles(tmp_path, {}, [], log_of(PLANTED["far"][0]), [], [])
    outcome = replace(outcome_of(run), target="pair")
    told = report_html(run, outcome)
    assert "nats per pair" in told and "pairs seen" in told and "nats per token</th>" not in told
    assert "by pairs</button>" in told and 'data-counted="pairs"' in told and "pairs per second" in told
    assert "by tokens" not in told and "tokens per second" not in told
    assert [chart.key for chart in preference_charts(run.log)] == ["order", "shift", "distance"]
    assert preference_charts([{"step": 1, "accuracy": 0.5}]) == []
    assert target_of({"target": "pair"}) == "pair" and target_of({"target": "<b>"}) == target_of({}) == "token"


def test_compare_says_pairs_and_ranks_losses_of_one_kind_alone(tmp_path: Path) -> None:
    info = {"target": "pair", "data": {"source": "p.jsonl", "val_text": "ab"}, "tokenizer": {"fingerprint": "cd"}}

    def runs(*sections: dict[str, Any]) -> list[RunFiles]:
        log = [{"step": s, "num_tokens": 8 * s, "loss": 0.6, "tokens_per_second": 90.0} for s in (1, 2)]
        log[-1] |= {"val_loss": 0.5}
        checkpoint = StepDirectory(tmp_path, 2, None, 9, None, info, True, True)
        return [
            RunFiles(tmp_path / str(place), {"init_from": "base", "align": one}, [], log, [checkpoint], [])
            for place, one in enumerate(sections)
        ]

    dpo, orpo = {"method": "dpo", "beta": 0.1}, {"method": "orpo", "beta": 0.1}
    told = comparison_html(runs(dpo, dpo))
    assert "with 0.500 nats per pair." in told and "pairs seen" in told and "pairs a second (median)" in told
    assert "nats per token" not in told and 'data-counted="pairs"' in told and "tokens seen" not in told
    told = comparison_html(runs(dpo, orpo))
    assert "No ranking. Their losses are not of one kind: nats per pair, align.method dpo, align.beta 0.1" in told
    assert "No ranking." in comparison_html(runs(dpo, dpo | {"beta": 0.3}))


@pytest.mark.parametrize(
    ("chosen", "rejected", "rings"), [(-9.0, -20.0, True), (-9.0, -8.0, False), (1.0, -9.0, False)]
)
def test_without_evaluations_the_training_pairs_tell_what_is_forgotten(
    chosen: float, rejected: float, *, rings: bool
) -> None:
    log = [{key: value for key, value in row.items() if not key.startswith(("val_", "alarm_"))} for row in log_of({})]
    for row in log:
        late = row["step"] > 40  # noise of single batches does not matter, nor how it began
        row |= {"chosen_logp": -50.0, "rejected_logp": -60.0}
        row["chosen_shift"] = chosen + row["step"] % 3 - 1 if late else 1.0
        row["rejected_shift"] = rejected if late else -1.0
    found = diagnose(Evidence(log, {}, {"checks": list(Aligning.checks)}))
    assert [finding.key for finding in found] == ["both likelihoods fall"] * rings
    if rings:
        assert "by step 60 the chosen answers have lost 9.0 nats and the rejected ones 20.0" in found[0].what


def test_a_run_of_another_stage_is_not_asked() -> None:
    found = {finding.key for finding in diagnose(Evidence(log_of(PLANTED["far"][0]), {}, {}))}
    assert "far from the reference" not in found


def test_an_alarm_is_told_once() -> None:
    figures = SOUND | {"val_kl": 0.8}
    figures |= alarms(figures)
    assert rings(figures, set()) == ["alarm_kl"] and rings(figures, {"alarm_kl"}) == []


def test_without_a_reference_answer_to_look_at_only_likelihoods_can_ring() -> None:
    figures = {key: value for key, value in SOUND.items() if key not in ("val_kl", "val_length_ratio")}
    assert not any(alarms(figures).values())
