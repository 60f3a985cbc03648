"""Several runs on one page: their loss curves together, what differs in their settings, and where each came out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tiny_transformer.errors import UserError
from tiny_transformer.reports.charts import Chart, column, compact, smoothed, thinned
from tiny_transformer.reports.diagnosis.diagnose import diagnose_run
from tiny_transformer.reports.diagnosis.evidence import Finding
from tiny_transformer.reports.formats import NOTHING, count, duration, large, loss, setting, shorten, signed, size
from tiny_transformer.reports.outcome import Outcome, outcome_of
from tiny_transformer.reports.page import MAX_KEY_CHARS, chart_section, esc
from tiny_transformer.reports.report import plotly_js, whole_page
from tiny_transformer.reports.run_reader import RunFiles, number, read_run, section
from tiny_transformer.storage import atomic_write

DEFAULT_OUT = Path("compare.html")
MAX_RUNS = 8  # as many colours as can be told apart
MAX_DIFFERENCES = 100
WORSE_THAN_UNTRAINED = 1.25  # the chart goes up to so many times the first loss
AXES = (("step", "step"), ("tokens", "num_tokens"), ("seconds", "elapsed_seconds"))
_ABSENT = object()


def write_comparison(run_dirs: list[Path], out: Path = DEFAULT_OUT) -> Path:
    """Makes or renews a page about several runs and returns its path.

    Raises:
        UserError: too many runs, one that is none, plotly is not installed, or the page cannot be written.
    """
    if len(run_dirs) > MAX_RUNS:
        raise UserError(f"{len(run_dirs)} runs are too many for one page", remedy=f"name {MAX_RUNS} at most")
    page = comparison_html([read_run(path) for path in run_dirs], plotly_js())
    atomic_write(out, page)
    return out


def comparison_html(runs: list[RunFiles], plotly: str) -> str:
    """The whole page."""
    names, outcomes = unique_names(runs), [outcome_of(run) for run in runs]
    sections = [
        f'<header><h1>{len(runs)} runs</h1><p class="outcome">{esc(_best(names, outcomes))}</p></header>',
        chart_section([chart for chart in [overlay(runs, names)] if chart is not None]),
        _figures_section(runs, names, outcomes),
        _differences_section(runs, names),
    ]
    return whole_page(f"{len(runs)} runs · tiny-transformer", sections, plotly)


def unique_names(runs: list[RunFiles]) -> list[str]:
    """The runs' names, shortened, numbered where two are the same."""
    names: list[str] = []
    for run in runs:
        name = shorten(run.name, 40)
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def overlay(runs: list[RunFiles], names: list[str]) -> Chart | None:
    """The smoothed training loss of each run, and its validation loss as dots. Each trace has three horizontal axes,
    of which the page shows one."""
    traces: list[dict[str, Any]] = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        for key, title in (("loss", f"{name}"), ("val_loss", f"{name}, validation")):
            steps, values = column(run.log, key)
            if not len(steps):
                continue
            shown = smoothed(values) if key == "loss" else values
            kept = thinned(shown)
            xs = {axis: compact(_along(run.log, field, steps[kept])) for axis, field in AXES}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines" if key == "loss" and len(kept) > 1 else "markers",
                    "name": title,
                    "x": xs["step"],
                    "y": compact(shown[kept]),
                    "hovertemplate": "%{y:.3f}",
                    "showlegend": key == "loss",
                    "legendgroup": str(index),
                    "meta": {"role": f"run-{index}", "xs": xs},
                }
            )
    if not traces:
        return None
    floors = {outcome.floor for outcome in map(outcome_of, runs) if outcome.floor is not None}
    shapes = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": f, "y1": f} for f in sorted(floors)
    ]
    y_axis: dict[str, Any] = {"title": {"text": "nats per token"}}
    shown = [y for trace in traces for y in trace["y"]] + sorted(floors)
    untrained = max(trace["y"][0] for trace in traces)
    if max(shown) > WORSE_THAN_UNTRAINED * untrained:  # a run that exploded would flatten the others
        y_axis |= {"autorange": False, "range": [min(0.0, *shown), WORSE_THAN_UNTRAINED * untrained]}
    layout = {"yaxis": y_axis, "shapes": shapes}
    note = "training loss, smoothed, as lines; validation loss as dots; dashed: the best loss possible"
    shown_late: list[float] = [y for trace in traces for y in trace["y"][len(trace["y"]) // 4 :]] + sorted(floors)
    low, high = min(shown_late), max(shown_late)
    margin = 0.1 * (high - low) or 0.1
    meta = {"close_up": {"y": [low - margin, high + margin]}, "axes": [axis for axis, _ in AXES]}
    return Chart("loss", "Loss", note, {"data": traces, "layout": layout, "meta": meta})


def _along(log: list[dict[str, Any]], field: str, steps: np.ndarray) -> np.ndarray:
    """What another figure of the log was at some steps, in between by a straight line."""
    at, values = column(log, field)
    return np.interp(steps, at, values) if len(at) else steps


def differences(runs: list[RunFiles]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, by dotted name, one value a run. Where a run is written to is
    left out: that always differs."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings if key != "out_dir"))
    found = {}
    for key in keys:
        values = [settings.get(key, _ABSENT) for settings in flat]
        texts = [NOTHING if value is _ABSENT else setting(value) for value in values]
        if any(text != texts[0] for text in texts):
            found[key] = texts
    return found


def _flat(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """Dotted names and values: of the sections' own keys, not deeper."""
    pairs: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            pairs += [(f"{key}.{inner}", item) for inner, item in value.items()]
        else:
            pairs.append((str(key), value))
    return pairs


def _best(names: list[str], outcomes: list[Outcome]) -> str:
    """Which came out best, in one sentence; by bits per byte, which do not depend on the tokenizer."""
    scored = [(o.val_bits_per_byte, name) for o, name in zip(outcomes, names, strict=True) if o.val_bits_per_byte]
    if not scored:
        return "None of them was evaluated on held-out text."
    bits, name = min(scored)
    return f"Best on held-out text: {name}, with {loss(bits)} bits per byte."


def _figures_section(runs: list[RunFiles], names: list[str], outcomes: list[Outcome]) -> str:
    findings = [diagnose_run(run) for run in runs]
    rows: list[tuple[str, Callable[[Outcome], str]]] = [
        ("state", lambda o: o.state),
        ("steps", lambda o: count(o.step)),
        ("tokens seen", lambda o: large(o.num_tokens)),
        ("training time", lambda o: duration(o.elapsed_seconds)),
        ("parameters", lambda o: large(o.num_parameters)),
        ("training loss", lambda o: loss(o.train_loss)),
        ("best validation loss", lambda o: loss(o.val_loss)),
        ("bits per byte", lambda o: loss(o.val_bits_per_byte)),
        ("best loss possible", lambda o: loss(o.floor)),
        ("gap to it", lambda o: signed(o.gap)),
    ]
    table = [(title, [words(outcome) for outcome in outcomes]) for title, words in rows]
    table.append(("tokens a second (median)", [_median(run, "tokens_per_second", count) for run in runs]))
    table.append(("peak memory", [_median(run, "peak_memory_bytes", size, last=True) for run in runs]))
    table.append(("diagnosis", [_keys(found) for found in findings]))
    tokenizers = {str(section(run.newest.info, "tokenizer").get("fingerprint")) for run in runs if run.newest}
    note = (
        "These runs do not share a tokenizer: compare bits per byte, not nats per token." if len(tokenizers) > 1 else ""
    )
    return _table("Where they came out", names, table, note)


def _median(run: RunFiles, key: str, words: Callable[[float], str], *, last: bool = False) -> str:
    values = [value for row in run.log if (value := number(row, key)) is not None]
    if not values:
        return NOTHING
    return words(values[-1] if last else float(np.median(values)))


def _keys(findings: list[Finding]) -> str:
    return ", ".join(finding.key for finding in findings) or "nothing unusual"


def _differences_section(runs: list[RunFiles], names: list[str]) -> str:
    found = differences(runs)
    rows = [(shorten(str(key), MAX_KEY_CHARS), texts) for key, texts in list(found.items())[:MAX_DIFFERENCES]]
    note = "" if rows else "No setting differs."
    return _table("What differs in the settings", names, rows, note)


def _table(title: str, names: list[str], rows: list[tuple[str, list[str]]], note: str) -> str:
    words = f'<p class="note">{esc(note)}</p>' if note else ""
    if not rows:
        return f"<section><h2>{esc(title)}</h2>{words}</section>"
    head = "".join(f'<th scope="col"><span class="key run-{i}"></span>{esc(name)}</th>' for i, name in enumerate(names))
    body = "".join(
        f'<tr><th scope="row">{esc(key)}</th>{"".join(f"<td>{esc(text)}</td>" for text in texts)}</tr>'
        for key, texts in rows
    )
    return (
        f'<section><h2>{esc(title)}</h2>{words}<div class="scroll"><table class="rows compared">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )
