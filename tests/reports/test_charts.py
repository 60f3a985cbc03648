"""The arithmetic behind the charts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny_transformer.reports.charts import (
    ZERO,
    by_part,
    charts,
    close_up,
    column,
    in_words,
    is_flat,
    numbers_of,
    smoothed,
    thinned,
)
from tiny_transformer.reports.comparable import entries_of
from tiny_transformer.reports.compare import overlay
from tiny_transformer.reports.diagnosis.evidence import Evidence
from tiny_transformer.reports.loss_svg import loss_svg
from tiny_transformer.reports.outcome import outcome_of
from tiny_transformer.reports.run_reader import RunFiles


def test_smoothed_equals_the_mean_of_the_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=203)
    reach = 4  # 4 % of 203 values, half to each side
    for i, found in enumerate(smoothed(values)):
        near = min(i, reach)
        assert found == pytest.approx(values[i - near : i + near + 1].mean(), abs=1e-12)


def test_smoothed_keeps_a_straight_line_straight_except_at_the_end() -> None:
    line = np.linspace(9.0, 1.0, 1000)
    np.testing.assert_allclose(smoothed(line)[:-20], line[:-20], atol=1e-10)


@pytest.mark.parametrize("num_values", [0, 1, 2, 5])
def test_smoothed_leaves_few_values_as_they_are(num_values: int) -> None:
    values = np.arange(num_values) ** 2.0
    np.testing.assert_array_equal(smoothed(values), values)


def test_thinned_keeps_both_ends_and_every_peak() -> None:
    values = np.random.default_rng(1).normal(size=50_000)
    values[[17, 31_234]] = 99.0, -99.0
    kept = thinned(values, 200)
    assert len(kept) <= 200
    assert {0, 17, 31_234, 49_999} <= set(kept.tolist())
    assert np.all(np.diff(kept) > 0)


def test_thinned_keeps_everything_that_fits() -> None:
    np.testing.assert_array_equal(thinned(np.zeros(200), 200), np.arange(200))


def test_column_takes_only_finite_numbers() -> None:
    values = [1, 2.5, None, "3", True, float("nan"), float("inf"), 10**400, [1]]
    steps, found = column([{"step": i, "x": value} for i, value in enumerate(values)], "x")
    assert (steps.tolist(), found.tolist()) == ([0, 1], [1, 2.5])


def test_only_what_was_logged_is_drawn_and_what_stays_the_same_is_not() -> None:
    assert charts([], 1.5) == []
    log = [{"step": step, "grad_norm": 2.0 + step, "learning_rate": 0.003} for step in (1, 2)]
    assert [chart.key for chart in charts(log, None)] == ["grad-norm"]
    assert is_flat(np.array([])) and is_flat(np.array([3.0])) and is_flat(np.array([3.0, 3.01]))
    assert not is_flat(np.array([3.0, 3.1]))


def test_the_loss_is_drawn_where_all_but_its_steep_beginning_can_be_seen() -> None:
    log = [{"step": step, "loss": 8.0 if step < 60 else 2.0} for step in range(1001)]
    (chart,) = charts(log, 1.5)
    low, high = chart.figure["view"]
    assert 1.2 < low < 1.5
    assert 2.0 < high < 2.2
    assert close_up([(np.arange(10.0), np.linspace(2, 1.9, 10))], []) is None  # nothing steep: it is all of it


def test_a_close_up_of_any_curve_contains_its_last_nine_tenths() -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=seed + 1).cumsum()
        steps = np.arange(len(values), dtype=float)
        view = close_up([(steps, values)], [-0.5])
        late = values[steps >= 0.1 * steps[-1]]
        assert view is None or (view[0] < min(late.min(), -0.5) and view[1] > late.max())


def test_each_optimizer_has_its_own_rate() -> None:
    log = [{"step": s, "learning_rate": 0.003 / s, "muon_learning_rate": 0.01 / s} for s in (1, 2)]
    (chart,) = charts(log, None)
    assert [(one["name"].split(":")[0], one["y"]) for one in chart.figure["series"]] == [
        ("AdamW", [0.003, 0.0015]),
        ("Muon", [0.01, 0.005]),
    ]


def test_update_ratios_become_a_row_a_part_and_a_column_a_stretch() -> None:
    log = [
        {
            "step": step,
            "update_ratios": {
                "embed_tokens": 1e-2,
                "layers.0": 10.0 ** -(1 + step % 2),
                "norm": 0.0,
                "odd": None if step < 200 else 1.0,
            },
        }
        for step in range(1, 321)
    ]
    (chart,) = charts(log, None)
    assert chart.key == "update-ratios"
    assert chart.figure["parts"] == ["embed_tokens", "layer 0", "norm", "odd"]
    assert chart.figure["steps"] == list(range(2, 321, 2))
    z = chart.figure["z"]
    # means of logarithms; nothing at all is told from a small number and from what was not logged
    assert z[:3] == [[-2.0] * 160, [-1.5] * 160, [ZERO] * 160]
    assert (z[3][0], z[3][-1]) == (None, 0.0)


def test_a_memory_that_goes_on_growing_is_drawn_in_megabytes() -> None:
    log = [{"step": s, "peak_memory_bytes": 5e8 + 1e7 * s, "peak_device_memory_bytes": 2e9} for s in range(1, 41)]
    (chart,) = charts(log, None)
    process, device = chart.figure["series"]
    assert process["y"] == [500 + 10 * s for s in range(1, 41)]
    assert device["y"] == [2000] * 40
    settled = [row | {"peak_memory_bytes": 5e8 + 1e7 * min(row["step"], 3)} for row in log]
    assert charts(settled, None) == []


def test_a_chart_in_words_and_in_numbers() -> None:
    log = [{"step": s, "loss": 8 / s, **({"val_loss": 3.0} if s == 4 else {})} for s in range(1, 5)]
    (chart,) = charts(log, 1.5)
    assert in_words(chart) == (
        "Loss: training, each logged step from 8.000 at step 1 to 2.000 at step 4; training, smoothed from 8.000 at "
        "step 1 to 2.000 at step 4; validation from 3.000 at step 4 to 3.000 at step 4; best loss possible 1.500."
    )
    assert numbers_of(chart) == (
        ["step", "training, each logged step", "training, smoothed", "validation"],
        [
            ["1", "8.000", "8.000", "–"],
            ["2", "4.000", "4.000", "–"],
            ["3", "2.667", "2.667", "–"],
            ["4", "2.000", "2.000", "3.000"],
        ],
    )
    heat = charts([{"step": s, "update_ratios": {"layers.0": 0.01 * s, "norm": 0.0}} for s in (1, 2)], None)[0]
    assert in_words(heat) == (
        "Update-to-weight ratio of 2 parts over 2 stretches of steps: at the end from 0 (norm) to 0.02 (layer 0)."
    )
    assert numbers_of(heat) == (["part", "step 1", "step 2"], [["layer 0", "0.01", "0.02"], ["norm", "0", "0"]])


def test_what_is_drawn_beside_the_validation_loss_is_that_of_next_tokens_alone() -> None:
    """Experts and an MTP head add to what is minimised."""
    log = [{"step": step, "loss": 9.0 + step, "next_token_loss": 7.0 - step / 10} for step in range(1, 11)]
    expected = [7.0 - step / 10 for step in range(1, 11)]
    (chart,) = charts(log, None)
    assert chart.figure["series"][0]["y"] == pytest.approx(expected)
    assert loss_svg(log, None) == loss_svg([{"step": row["step"], "loss": row["next_token_loss"]} for row in log], None)
    run = RunFiles(Path("run"), {}, [], log, [], [])
    assert outcome_of(run).train_loss == 6.0
    drawn = overlay(entries_of([run]))
    assert drawn is not None
    assert drawn.figure["series"][0]["y"] == pytest.approx(expected)
    assert Evidence(log, {}, {}).loss[1].tolist() == pytest.approx(expected)


def test_a_figure_by_part_is_one_table_for_chart_and_diagnosis() -> None:
    log = [
        {"step": 1, "update_ratios": {"embed": 0.1, "layers.0": None, "layers.1": 0.01}},
        {"step": 2, "loss": 1.0},
        {"step": 4, "update_ratios": {"embed": 0.0, "layers.0": 1.0, "layers.1": "x"}},
    ]
    steps, names, table = by_part(log, "update_ratios")
    assert (steps.tolist(), names) == ([1, 4], ["embed", "layers.0", "layers.1"])
    np.testing.assert_array_equal(table, [[0.1, np.nan, 0.01], [0.0, 1.0, np.nan]])
    drawn = next(chart.figure for chart in charts(log, None) if chart.key == "update-ratios")
    assert drawn["z"] == [[-1.0, ZERO], [None, 0.0], [-2.0, None]]
    of_blocks = Evidence(log, {}, {}).by_part("update_ratios", blocks_only=True)
    assert of_blocks[1] == ["layers.0", "layers.1"]
    np.testing.assert_array_equal(of_blocks[2], table[:, 1:])
    assert Evidence([], {}, {}).by_part("update_ratios", blocks_only=True)[2].shape == (0, 0)
