"""The arithmetic behind the charts."""

from __future__ import annotations

import numpy as np
import pytest

from tiny_transformer.reports.charts import charts, column, smoothed, thinned


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


def test_only_what_was_logged_is_drawn() -> None:
    assert charts([], 1.5) == []
    assert [chart.key for chart in charts([{"step": 1, "grad_norm": 2.0}], None)] == ["grad-norm"]


def test_close_up_shows_the_late_values_and_the_floor() -> None:
    log = [{"step": step, "loss": 8.0 if step < 250 else 2.0} for step in range(1001)]
    (chart,) = charts(log, 1.5)
    close_up = chart.figure["meta"]["close_up"]
    assert close_up["x"][0] == 250
    low, high = close_up["y"]
    assert low < 1.5
    assert 2.0 < high < 8.0


def test_update_ratios_become_a_row_a_part_and_a_column_a_stretch() -> None:
    log = [
        {"step": step, "update_ratios": {"embed_tokens": 1e-2, "layers.0": 10.0 ** -(1 + step % 2), "norm": 0.0}}
        for step in range(1, 401)
    ]
    (chart,) = charts(log, None)
    (heat,) = chart.figure["data"]
    assert chart.key == "update-ratios"
    assert heat["y"] == ["embed_tokens", "layer 0", "norm"]
    assert heat["x"] == list(range(2, 401, 2))
    assert heat["z"] == [[-2.0] * 200, [-1.5] * 200, [None] * 200]  # means of logarithms; zero has none
    assert heat["customdata"][0][0] == "0.01"
    assert (heat["zmin"], heat["zmax"]) == (-2.0, -1.5)


def test_many_layers_stay_readable() -> None:
    log = [{"step": 1, "update_ratios": {f"layers.{i}": 1e-3 for i in range(24)}}]
    (chart,) = charts(log, None)
    assert chart.figure["layout"]["height"] >= 24 * 18


def test_memory_is_drawn_in_megabytes_of_process_and_device() -> None:
    log = [{"step": s, "peak_memory_bytes": 5e8 + s, "peak_device_memory_bytes": 2e9} for s in (1, 2, 3)]
    (chart,) = charts(log, None)
    process, device = chart.figure["data"]
    assert process["y"] == [500, 500, 500]
    assert device["y"] == [2000, 2000, 2000]
    assert "the process and the GPU" in chart.note
