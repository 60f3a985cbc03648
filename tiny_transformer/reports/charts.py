"""The charts of a run report, as plotly figures in plain dictionaries.

A figure says what is drawn. Colours are named by role in `meta.role` and filled in by report.js, which knows whether
the page is light or dark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiny_transformer.reports.run_reader import number, section

MAX_COLUMNS = 200  # of a heat map: each is some pixels wide
MAX_PARTS = 200  # rows of it
MAX_POINTS = 2_000  # of one curve: more cannot be told apart on a screen, and the page has a size limit
SMOOTHING = 0.04  # the smoothed loss averages over this share of the run


@dataclass(frozen=True)
class Chart:
    """One chart: `key` becomes its id in the page, `note` says in plain words what it shows."""

    key: str
    title: str
    note: str
    figure: dict[str, Any]


def charts(log: list[dict[str, Any]], floor: float | None) -> list[Chart]:
    """The charts that the rows of a log have data for, the loss first.

    Args:
        log: rows with increasing `step`.
        floor: the best loss possible on this corpus, in nats per token, where it is known.
    """
    loss = _loss_chart(log, floor)
    others = [
        _line_chart(log, *words)
        for words in (
            ("learning_rate", "Learning rate", "how large a step the optimizer takes", ".3~e", False),
            ("tokens_per_second", "Throughput", "tokens per second", ",.0f", True),
            (
                "grad_norm",
                "Gradient norm",
                "before clipping; single peaks are normal, a lasting rise is not",
                ".3f",
                True,
            ),
        )
    ]
    memory = _memory_chart(log)
    maps = [
        _heat_chart(log, *words)
        for words in (
            (
                "update_ratios",
                "Update-to-weight ratio",
                "how far one update moves the weights of each part, as a share of their size: about a thousandth is "
                "usual, more at first; a row without colour learns nothing",
            ),
            (
                "part_grad_norms",
                "Gradient norm by part",
                "after clipping; a row without colour gets no gradient",
            ),
        )
    ]
    return [chart for chart in (loss, *others, memory, *maps) if chart is not None]


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over each point's neighbourhood, (N,) float64 like `values`.

    It shrinks towards the steep beginning, so that the curve does not lag; at the end it is cut on one side only, so
    that the last value is not left to a single step.
    """
    index = np.arange(len(values))
    reach = np.minimum(index, int(len(values) * SMOOTHING / 2))
    first, end = index - reach, np.minimum(index + reach + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[end] - sums[first]) / (end - first)


def thinned(values: np.ndarray, max_points: int = MAX_POINTS) -> np.ndarray:
    """Indices of at most `max_points` values that keep the shape: the smallest and the largest of each stretch."""
    if len(values) <= max_points:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(len(values)), (max_points - 2) // 2)
    kept = [index for s in stretches for index in (s[np.argmin(values[s])], s[np.argmax(values[s])])]
    return np.unique([0, *kept, len(values) - 1])


def column(log: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, both (N,) float64, of the rows where `key` is a finite number."""
    pairs = [(number(row, "step"), value) for row in log if (value := number(row, key)) is not None]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _loss_chart(log: list[dict[str, Any]], floor: float | None) -> Chart | None:
    steps, losses = column(log, "loss")
    val_steps, val_losses = column(log, "val_loss")
    if not len(steps) and not len(val_steps):
        return None
    traces = _noisy(steps, losses, "training", ".3f")
    if len(val_steps):
        kept = thinned(val_losses)
        above = "" if floor is None else " (%{customdata:+.3f} from the floor)"
        traces.append(_trace("val", "validation", val_steps[kept], val_losses[kept], hover="%{y:.3f}" + above))
        traces[-1] |= {"mode": "lines+markers"}
        if floor is not None:
            traces[-1]["customdata"] = compact(val_losses[kept] - floor)
    layout: dict[str, Any] = {"yaxis": {"title": {"text": "nats per token"}}}
    if floor is not None:
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": floor, "y1": floor}
        place = {"xref": "paper", "x": 1, "xanchor": "right", "yref": "y", "y": floor, "yanchor": "top"}
        label = {"text": f"best loss possible: {floor:.3f}", "showarrow": False}
        layout |= {"shapes": [line], "annotations": [place | label]}
    close_up = _close_up([(steps, smoothed(losses)), (val_steps, val_losses)], floor)
    note = "how surprised the model is by the next token, on average: lower is better"
    return Chart("loss", "Loss", note, {"data": traces, "layout": layout, "meta": {"close_up": close_up}})


def _close_up(curves: list[tuple[np.ndarray, np.ndarray]], floor: float | None) -> dict[str, list[float]]:
    """The ranges of both axes that show the last three quarters of the run, the floor included."""
    all_steps = np.concatenate([steps for steps, _ in curves])
    length = float(np.ptp(all_steps))
    start, end = float(all_steps.max()) - 0.75 * length, float(all_steps.max()) + 0.02 * length
    shown = [] if floor is None else [floor]
    for steps, values in curves:
        shown += values[steps >= start].tolist()
    low, high = min(shown), max(shown)
    margin = 0.1 * (high - low) or 0.1
    return {"x": [start, end], "y": [low - margin, high + margin]}


def _line_chart(
    log: list[dict[str, Any]], key: str, title: str, note: str, number_format: str, is_noisy: bool
) -> Chart | None:
    steps, values = column(log, key)
    if not len(steps):
        return None
    if is_noisy:
        traces = _noisy(steps, values, title.lower(), number_format)
    else:
        kept = thinned(values)
        traces = [_trace("train", title.lower(), steps[kept], values[kept], hover=f"%{{y:{number_format}}}")]
    axis = {"rangemode": "tozero", "exponentformat": "SI" if key == "tokens_per_second" else "e"}
    return Chart(key.replace("_", "-"), title, note, {"data": traces, "layout": {"yaxis": axis}})


def _memory_chart(log: list[dict[str, Any]]) -> Chart | None:
    """The most memory in use so far, in MB."""
    traces = []
    for role, name, key in (
        ("train", "this process", "peak_memory_bytes"),
        ("val", "tensors on the device", "peak_device_memory_bytes"),
    ):
        steps, values = column(log, key)
        if len(steps):
            kept = thinned(values)
            traces.append(_trace(role, name, steps[kept], values[kept] / 1e6, hover="%{y:,.0f} MB"))
    if not traces:
        return None
    note = "the most in use at one time so far, in MB: the process" + (" and the GPU" if len(traces) > 1 else "")
    layout = {"yaxis": {"rangemode": "tozero", "exponentformat": "none", "tickformat": ",d"}}
    return Chart("memory", "Memory", note, {"data": traces, "layout": layout})


def _heat_chart(log: list[dict[str, Any]], key: str, title: str, note: str) -> Chart | None:
    """A row a part of the model, a column a stretch of steps, and a figure as a colour on a logarithmic scale."""
    rows = [(number(row, "step"), section(row, key)) for row in log if section(row, key)]
    parts = [str(part) for part in (rows[-1][1] if rows else {})][:MAX_PARTS]
    if not parts:
        return None
    stretches = np.array_split(np.arange(len(rows)), min(MAX_COLUMNS, len(rows)))
    columns, steps = [], []
    for stretch in stretches:
        steps.append(number({"step": rows[stretch[-1]][0]}, "step") or 0.0)
        columns.append([_mean_log10([number(rows[i][1], part) for i in stretch]) for part in parts])
    known = [value for one in columns for value in one if value is not None]
    heat = {
        "type": "heatmap",
        "x": steps,
        "y": [part.replace("layers.", "layer ") for part in parts],
        "z": [list(row) for row in zip(*columns, strict=True)],
        "customdata": [[None if v is None else f"{10**v:.2g}" for v in row] for row in zip(*columns, strict=True)],
        "hovertemplate": "%{y}, step %{x:,d}: %{customdata}<extra></extra>",
        "zmin": max(-6.0, min(known)) if known else -4.0,
        "zmax": max(known) if known else -1.0,
        "meta": {"role": "heat"},
    }
    layout = {"yaxis": {"autorange": "reversed", "type": "category"}, "height": max(180, 60 + 18 * len(parts))}
    return Chart(key.replace("_", "-"), title, note, {"data": [heat], "layout": layout})


def _mean_log10(values: list[float | None]) -> float | None:
    """The mean of the logarithms of those above zero, to three digits."""
    logs = [math.log10(value) for value in values if value is not None and value > 0]
    return round(sum(logs) / len(logs), 3) if logs else None


def _noisy(steps: np.ndarray, values: np.ndarray, name: str, number_format: str) -> list[dict[str, Any]]:
    """The logged values, faint, under their smoothed curve."""
    kept = thinned(values)
    raw = _trace("train-raw", f"{name}, each logged step", steps[kept], values[kept])
    hover = f"%{{y:{number_format}}}"
    return [
        raw | {"hoverinfo": "skip"},
        _trace("train", f"{name}, smoothed", steps[kept], smoothed(values)[kept], hover),
    ]


def _trace(role: str, name: str, x: np.ndarray, y: np.ndarray, hover: str = "") -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": name,
        "x": compact(x),
        "y": compact(y),
        "hovertemplate": hover,
        "meta": {"role": role},
    }


def compact(values: np.ndarray) -> list[float]:
    """Numbers with six significant digits, whole ones without a decimal point: a smaller page, the same picture."""
    return [int(v) if v.is_integer() and abs(v) < 1e15 else float(f"{v:.6g}") for v in values.tolist()]
