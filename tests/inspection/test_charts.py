"""The arithmetic behind the charts."""

from __future__ import annotations

import numpy as np
import pytest

from tiny_transformer.inspection.charts import charts, column, smoothed, thinned


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
