"""The charts of a run report, as plain dictionaries that report.js draws.

A figure says what is drawn; colours are named by role and come from report.css, which knows light from dark. `kind` is
`lines` or `heat`:

- lines: `unit`, `form` (how a value is written), `series` (`name`, `role`, `xs` by axis, `y`; `xs` of null: as the
  series before; `quiet`: not in the legend; `marks`: its points are drawn; `group`), `levels` (`name`, `role`, `y`) and
  `view`, the range of values that matters, or null where that is all of them.
- heat: `parts`, `steps` and `z`, a row a part: logarithms to base ten, null where nothing was logged, `ZERO` for zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tiny_transformer.reports.formats import NOTHING, count, figure
from tiny_transformer.reports.run_reader import next_token_key, number, section

MAX_COLUMNS = 160  # of a heat map: each is some pixels wide
MAX_PARTS = 100  # rows of it
MAX_POINTS = 800  # of one curve: more cannot be told apart on a screen, and the page has a size limit
SMOOTHING = 0.04  # the smoothed loss averages over this share of the run
EARLY = 0.1  # share of a run whose steep beginning is left out of the close-up
FLAT = 0.01  # a curve that moves by less than this share of itself tells nothing
ZERO = -99.0
TABLE_ROWS = 9  # of the numbers that stand below a chart
AXES = (("step", "step"), ("tokens", "num_tokens"), ("time", "elapsed_seconds"))


@dataclass(frozen=True)
class Chart:
    """One chart: `key` becomes its id in the page, `note` says in plain words what it shows."""

    key: str
    title: str
    note: str
    figure: dict[str, Any]


def charts(log: list[dict[str, Any]], floor: float | None, target: str = "token") -> list[Chart]:
    """The charts that the rows of a log have data for, the loss first. What cannot change, or did not, is not drawn.

    Args:
        log: rows with increasing `step`.
        floor: the best loss possible on this corpus, in nats per token, where it is known.
        target: what the loss is a mean over.
    """
    grad_norm = "before clipping; single peaks are normal, a lasting rise is not"
    ratios = (
        "how far one update moves the weights of each part, as a share of their size: about a thousandth is usual, "
        "more at first; hatched: not at all"
    )
    found = (
        _loss_chart(log, floor, target),
        _rate_chart(log),
        _noisy_chart(log, "tokens_per_second", "Throughput", f"{target}s per second", "count"),
        _noisy_chart(log, "grad_norm", "Gradient norm", grad_norm, "norm"),
        _memory_chart(log),
        _heat_chart(log, "update_ratios", "Update-to-weight ratio", ratios),
        _heat_chart(log, "part_grad_norms", "Gradient norm by part", "after clipping; hatched: no gradient at all"),
    )
    return [chart for chart in found if chart is not None]


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


def close_up(curves: list[tuple[np.ndarray, np.ndarray]], levels: list[float]) -> list[float] | None:
    """The range of values in which all but the steep beginning of some curves (steps, values) can be seen, levels
    included; None where that is nearly everything."""
    curves = [(steps, values) for steps, values in curves if len(steps)]
    if not curves:
        return None
    first, last = min(steps[0] for steps, _ in curves), max(steps[-1] for steps, _ in curves)
    begin = first + EARLY * (last - first)
    late = [values[(steps >= begin) | (steps == steps[-1])] for steps, values in curves]
    low, high = min([*(v.min() for v in late), *levels]), max([*(v.max() for v in late), *levels])
    lowest, highest = (min(v.min() for _, v in curves), max(v.max() for _, v in curves))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.1
    if high + 3 * margin >= highest and low - 3 * margin <= lowest:
        return None
    below = 2 * margin if levels and low == min(levels) else margin  # room for the words below the line
    return [float(f"{low - below:.6g}"), float(f"{high + margin:.6g}")]


def line(
    log: list[dict[str, Any]], name: str, *, role: str, curve: tuple[np.ndarray, np.ndarray], **more: Any
) -> dict[str, Any]:
    """One series, over each axis that the log knows."""
    steps, values = curve
    kept = thinned(values)
    xs = {axis: compact(at) for axis, field in AXES if (at := _along(log, field, steps[kept])) is not None}
    return {"name": name, "role": role, "xs": xs, "y": compact(values[kept]), **more}


def _along(log: list[dict[str, Any]], field: str, steps: np.ndarray) -> np.ndarray | None:
    """What another figure of the log was at some steps, in between by a straight line; None where it is not logged."""
    if field == "step":
        return steps
    at, values = column(log, field)
    return np.interp(steps, at, values) if len(at) else None


def lines(unit: str, form: str, series: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The figure of a chart of curves."""
    return {"kind": "lines", "unit": unit, "form": form, "series": series, "levels": [], "view": None, **more}


def loss_levels(floor: float | None) -> list[dict[str, Any]]:
    """The line of the best loss possible, where it is known."""
    return [] if floor is None else [{"name": "best loss possible", "role": "floor", "y": floor}]


def _loss_chart(log: list[dict[str, Any]], floor: float | None, target: str) -> Chart | None:
    training, validation = column(log, next_token_key(log)), column(log, "val_loss")
    if not len(training[0]) and not len(validation[0]):
        return None
    series = _noisy(log, training, "training")
    if len(validation[0]):
        series.append(line(log, "validation", role="val", curve=validation, marks=True, group=1))
    smooth = (training[0], smoothed(training[1]))
    view = close_up([smooth, validation], [] if floor is None else [floor])
    note = "how surprised the model is by the next token, on average: lower is better"
    if target != "token":
        note = f"what training makes small, on average over {target}s: lower is better"
    return Chart(
        "loss", "Loss", note, lines(f"nats per {target}", "loss", series, levels=loss_levels(floor), view=view)
    )


def _rate_chart(log: list[dict[str, Any]]) -> Chart | None:
    """The rates that were used: each optimizer's own."""
    muon = column(log, "muon_learning_rate")
    adamw = column(log, "learning_rate")
    if is_flat(adamw[1]) and is_flat(muon[1]):
        return None
    name = "AdamW: embedding, norms, head" if len(muon[0]) else "learning rate"
    series = [line(log, name, role="train", curve=adamw)] if len(adamw[0]) else []
    if len(muon[0]):
        series.append(line(log, "Muon: the blocks' matrices", role="val", curve=muon))
    note = "how large a step the optimizer takes"
    return Chart("learning-rate", "Learning rate", note, lines("", "rate", series, zero=True))


def _noisy_chart(log: list[dict[str, Any]], key: str, title: str, note: str, form: str) -> Chart | None:
    curve = column(log, key)
    if is_flat(curve[1]):
        return None
    series = _noisy(log, curve, title.lower())
    view = close_up([(curve[0], smoothed(curve[1]))], [0.0])
    if view is not None and curve[1].min() >= 0:
        view[0] = 0.0
    return Chart(key.replace("_", "-"), title, note, lines("", form, series, zero=True, view=view))


def _memory_chart(log: list[dict[str, Any]]) -> Chart | None:
    """The most memory in use so far, in MB; only where it went on growing, which it should not."""
    keys = (
        ("train", "this process", "peak_memory_bytes"),
        ("val", "tensors on the device", "peak_device_memory_bytes"),
    )
    curves = [(role, name, column(log, key)) for role, name, key in keys]
    late = [values[len(values) // 4 :] for _, _, (_, values) in curves]
    if all(is_flat(values, 0.1) for values in late):
        return None
    series = [line(log, name, role=role, curve=(at, values / 1e6)) for role, name, (at, values) in curves if len(at)]
    note = "the most in use at one time so far, in MB; it should not go on growing"
    return Chart("memory", "Memory", note, lines("MB", "count", series, zero=True))


def is_flat(values: np.ndarray, share: float = FLAT) -> bool:
    """Whether some values are all about the same; so are none and a single one."""
    return len(values) < 2 or bool(np.ptp(values) <= share * np.abs(values).max())


def _heat_chart(log: list[dict[str, Any]], key: str, title: str, note: str) -> Chart | None:
    """A row a part of the model, a column a stretch of steps, and a figure as a colour on a logarithmic scale."""
    at, names, table = by_part(log, key)
    parts = names[:MAX_PARTS]
    if not parts or len(at) < 2:
        return None
    stretches = np.array_split(np.arange(len(at)), min(MAX_COLUMNS, len(at)))
    steps = [float(at[stretch[-1]]) for stretch in stretches]
    columns = [[_mean_log10(table[stretch, place]) for place in range(len(parts))] for stretch in stretches]
    return Chart(
        key.replace("_", "-"),
        title,
        note,
        {
            "kind": "heat",
            "steps": compact(np.array(steps)),
            "parts": [part.replace("layers.", "layer ") for part in parts],
            "z": [list(row) for row in zip(*columns, strict=True)],
        },
    )


def by_part(log: list[dict[str, Any]], key: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    """A figure that is logged by part of the model: steps (N,), the names of P parts, and their figures (N, P); NaN
    where a row lacks one."""
    rows = [(number(row, "step"), section(row, key)) for row in log if section(row, key)]
    names = [str(name) for name in (rows[-1][1] if rows else {})]
    found = [[number(figures, name) for name in names] for _, figures in rows]
    table = np.array(found, dtype=float).reshape(len(rows), len(names))  # None becomes NaN
    return np.array([step for step, _ in rows], dtype=float), names, table


def _mean_log10(values: np.ndarray) -> float | None:
    """The mean of the logarithms of those above zero, to two digits; `ZERO` where all are zero, None without any."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    above = known[known > 0]
    return round(float(np.log10(above).mean()), 2) if len(above) else ZERO


def _noisy(log: list[dict[str, Any]], curve: tuple[np.ndarray, np.ndarray], name: str) -> list[dict[str, Any]]:
    """The logged values, faint, under their smoothed curve."""
    steps, values = curve
    if not len(steps):
        return []
    kept = thinned(values)
    raw = line(log, f"{name}, each logged step", role="train-raw", curve=(steps[kept], values[kept]))
    smooth = {"name": f"{name}, smoothed", "role": "train", "xs": None, "y": compact(smoothed(values)[kept])}
    return [one | {"group": 0, "legend": name} for one in (raw, smooth)]


def in_words(chart: Chart) -> str:
    """What a chart shows, for whoever does not see it."""
    drawn = chart.figure
    if drawn["kind"] == "heat":
        words = f"{chart.title} of {len(drawn['parts'])} parts over {len(drawn['steps'])} stretches of steps"
        last = [(row[-1], part) for part, row in zip(drawn["parts"], drawn["z"], strict=True) if row[-1] is not None]
        if last:
            (low, least), (high, most) = min(last), max(last)
            words += f": at the end from {_power(low)} ({least}) to {_power(high)} ({most})"
        return f"{words}."
    told = []
    for index, one in enumerate(drawn["series"]):
        steps = (one["xs"] or drawn["series"][index - 1]["xs"])["step"]
        values = [figure(one["y"][place], drawn["form"]) for place in (0, -1)]
        told.append(
            f"{one['name']} from {values[0]} at step {count(steps[0])} to {values[1]} at step {count(steps[-1])}"
        )
    told += [f"{level['name']} {figure(level['y'], drawn['form'])}" for level in drawn["levels"]]
    return f"{chart.title}: {'; '.join(told)}."


def numbers_of(chart: Chart) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a small table: of curves at some steps, of a heat map each part at three of them."""
    drawn = chart.figure
    if drawn["kind"] == "heat":
        places = sorted({0, len(drawn["steps"]) // 2, len(drawn["steps"]) - 1})
        heads = ["part", *(f"step {count(drawn['steps'][place])}" for place in places)]
        cells = [
            [part, *(_power(row[place]) for place in places)]
            for part, row in zip(drawn["parts"], drawn["z"], strict=True)
        ]
        return heads, cells
    known = [one["xs"] or drawn["series"][index - 1]["xs"] for index, one in enumerate(drawn["series"])]
    steps = max((xs["step"] for xs in known), key=len, default=[])
    wanted = [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, TABLE_ROWS)})] if steps else []
    rows = []
    for step in wanted:
        cells = [count(step)]
        for one, xs in zip(drawn["series"], known, strict=True):
            near = int(np.argmin(np.abs(np.array(xs["step"], dtype=float) - step)))
            is_there = abs(xs["step"][near] - step) <= 0.5 * (steps[-1] - steps[0]) / TABLE_ROWS
            cells.append(figure(one["y"][near], drawn["form"]) if is_there else NOTHING)
        rows.append(cells)
    return ["step", *(one["name"] for one in drawn["series"])], rows


def _power(value: float | None) -> str:
    return NOTHING if value is None else "0" if value == ZERO else f"{10**value:.2g}"


def compact(values: np.ndarray) -> list[float]:
    """Numbers with six significant digits, whole ones without a decimal point: a smaller page, the same picture."""
    return [int(v) if v.is_integer() and abs(v) < 1e15 else float(f"{v:.6g}") for v in values.tolist()]
