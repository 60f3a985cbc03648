"""Several runs on one page: their loss curves together, what differs in their settings, and where each came out.

Only what is comparable is compared: see `comparable`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.comparison import Comparison
from tiny_transformer.reports.charts import Chart, close_up, column, line, loss_levels, smoothed
from tiny_transformer.reports.comparable import (
    Entry,
    entries_of,
    same_text,
    share_a_tokenizer,
    targets_of,
    unit_of,
    unlike,
    verdict,
)
from tiny_transformer.reports.diagnosis.diagnose import diagnose_run
from tiny_transformer.reports.diagnosis.evidence import Finding
from tiny_transformer.reports.formats import NOTHING, count, duration, large, loss, setting, shorten, signed, size
from tiny_transformer.reports.measured import measured_section, prompts_section
from tiny_transformer.reports.outcome import Outcome
from tiny_transformer.reports.page import MAX_KEY_CHARS, chart_section, esc
from tiny_transformer.reports.report import guarded, whole_page, write_page
from tiny_transformer.reports.run_reader import RunFiles, next_token_key, number, read_run, section

DEFAULT_OUT = Path("compare.html")
MAX_RUNS = 8  # as many colours as can be told apart
MAX_DIFFERENCES = 100
WORSE_THAN_UNTRAINED = 1.25  # the chart goes up to so many times the first loss
_ABSENT = object()


def write_comparison(run_dirs: list[Path], out: Path = DEFAULT_OUT, measured: Comparison | None = None) -> Path:
    """Makes or renews a page about several runs and returns its path.

    Args:
        run_dirs: whose curves and settings are shown; none where only models without a run were measured.
        out: the page.
        measured: what `compare` found on the same documents, which stands first; None: only what the runs logged.

    Raises:
        UserError: too many runs, one that is none, or the page cannot be written.
    """
    if len(run_dirs) > MAX_RUNS:
        raise UserError(f"{len(run_dirs)} runs are too many for one page", remedy=f"name {MAX_RUNS} at most")
    write_page(out, comparison_html([read_run(path) for path in run_dirs], measured))
    return out


def comparison_html(runs: list[RunFiles], measured: Comparison | None = None) -> str:
    """The whole page."""
    places = {} if measured is None else {one.name: place for place, one in enumerate(measured.models)}
    entries = entries_of(runs, None if measured is None else _colours(runs, measured))
    groups = same_text(entries)
    title = f"{len(runs)} runs" if measured is None else f"{len(measured.models)} models"
    told = verdict(groups) if measured is None else measured.outcome()
    sections: dict[str, Callable[[], str]] = {}
    if measured is not None:
        sections["On the same documents"] = lambda: measured_section(measured, places)
        sections["The same prompts"] = lambda: prompts_section(measured, places)
    if runs:
        sections["Charts"] = lambda: _charts_section(groups)
        sections["Where they came out"] = lambda: _figures_section(entries, groups)
    if len(runs) > 1:
        sections["What differs in the settings"] = lambda: _differences_section(entries)
    sentences = "".join(f'<p class="outcome">{esc(words)}</p>' for words in told)
    parts = [f"<header><h1>{title}</h1>{sentences}</header>"]
    parts += [guarded(heading, make) for heading, make in sections.items()]
    return whole_page(f"{title} · tiny-transformer", parts)


def _colours(runs: list[RunFiles], measured: Comparison) -> list[int]:
    """The colour of each run: that of its first model, else one that no model has."""
    of_models = {one.run: place for place, one in reversed(list(enumerate(measured.models)))}
    rest = iter(range(len(measured.models), len(measured.models) + len(runs)))
    return [of_models[run] if (run := os.path.realpath(one.path)) in of_models else next(rest) for one in runs]


def _charts_section(groups: list[list[Entry]]) -> str:
    charts = [chart for group in groups if (chart := overlay(group, len(groups)))]
    counted = targets_of([entry for group in groups for entry in group])
    if all(len(group) == 1 for group in groups) and len(groups) > 1:
        why_none = "No two of these runs share a text, so no curves belong in one chart."
        return chart_section(charts, counted=counted, why_none=why_none)
    return chart_section(charts, counted=counted)


def overlay(group: list[Entry], num_groups: int = 1) -> Chart | None:
    """The curves of runs on one text: smoothed training loss and, as dots, validation loss; where they do not share a
    tokenizer, validation alone, in bits per byte. A text of which there is a single run has no chart here."""
    if num_groups > 1 and len(group) == 1:
        return None
    by_token = share_a_tokenizer(group)
    series, curves, first = [], [], []
    for entry in group:
        of_run: dict[str, Any] = {"role": f"run-{entry.place}", "group": entry.place, "legend": entry.name}
        log = entry.run.log
        steps, losses = column(log, next_token_key(log))
        if by_token and len(steps):
            series.append(line(log, entry.name, curve=(steps, smoothed(losses)), **of_run))
            first.append(float(losses[0]))
        evaluated = column(log, "val_loss" if by_token else "val_bits_per_byte")
        if len(evaluated[0]):
            as_what = {"dots": True} if by_token else {"marks": True}
            series.append(line(log, f"{entry.name}, validation", curve=evaluated, **of_run, **as_what))
        curves += [(steps, smoothed(losses))] * by_token + [evaluated]
    if not series:
        return None
    outcomes = [entry.outcome for entry in group]
    floors = {round(f, 6) for o in outcomes if (f := o.floor if by_token else o.floor_bits_per_byte) is not None}
    levels = loss_levels(floors.pop()) if len(floors) == 1 else []
    view = close_up(curves, [level["y"] for level in levels])
    limit = WORSE_THAN_UNTRAINED * max(first, default=math.inf)
    drawn = [value for one in series for value in one["y"]]
    if max(drawn) > limit:  # a run that exploded would flatten the others
        low = view[0] if view else min(drawn + [level["y"] for level in levels]) - 0.1
        view = [low, max(min(view[1] if view else limit, limit), low + 0.1)]
    note = "training loss, smoothed, as lines; validation loss as dots"
    if not by_token:
        note = "validation loss per byte of text, since these runs do not share a tokenizer"
    title = "Loss" if num_groups == 1 else f"Loss on {group[0].source}"
    figure = {"kind": "lines", "unit": unit_of(group), "form": "loss", "series": series, "levels": levels, "view": view}
    return Chart("loss" if num_groups == 1 else f"loss-{group[0].place}", title, note, figure)


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


def _figures_section(entries: list[Entry], groups: list[list[Entry]]) -> str:
    findings = [diagnose_run(entry.run) for entry in entries]
    rows: list[tuple[str, Callable[[Outcome], str]]] = [
        ("state", lambda o: o.state),
        ("steps", lambda o: count(o.step)),
        (f"{targets_of(entries)} seen", lambda o: large(o.num_tokens)),
        ("training time", lambda o: duration(o.elapsed_seconds)),
        ("parameters", lambda o: large(o.num_parameters)),
        ("training loss", lambda o: loss(o.train_loss)),
        ("best validation loss", lambda o: loss(o.val_loss)),
        ("bits per byte", lambda o: loss(o.val_bits_per_byte)),
        ("best loss possible", lambda o: loss(o.floor)),
        ("gap to it", lambda o: signed(o.gap)),
    ]
    table = [
        ("text", [entry.source for entry in entries]),
        ("tokenizer", [_tokenizer_name(entry) for entry in entries]),
    ]
    table += [(title, [words(entry.outcome) for entry in entries]) for title, words in rows]
    runs = [entry.run for entry in entries]
    table.append(
        (f"{targets_of(entries)} a second (median)", [_median(run, "tokens_per_second", count) for run in runs])
    )
    table.append(("peak memory", [_median(run, "peak_memory_bytes", size, last=True) for run in runs]))
    table.append(("diagnosis", [_keys(found) for found in findings]))
    return _table("Where they came out", entries, table, " ".join(_cautions(entries, groups)))


def _tokenizer_name(entry: Entry) -> str:
    return setting(section(entry.told, "tokenizer").get("name") or NOTHING)


def _cautions(entries: list[Entry], groups: list[list[Entry]]) -> list[str]:
    """What of the table must not be compared."""
    told = []
    if sum(bool(group[0].told) for group in groups) > 1:
        told.append("These runs are judged by different texts: compare losses of the same text only.")
    if not share_a_tokenizer(entries):
        told.append("These runs do not share a tokenizer: compare bits per byte, not nats per token.")
    told += [words for group in groups if group[0].told for words in unlike(group)]
    return told


def _median(run: RunFiles, key: str, words: Callable[[float], str], *, last: bool = False) -> str:
    values = [value for row in run.log if (value := number(row, key)) is not None]
    if not values:
        return NOTHING
    return words(values[-1] if last else float(np.median(values)))


def _keys(findings: list[Finding]) -> str:
    return ", ".join(finding.key for finding in findings) or "nothing unusual"


def _differences_section(entries: list[Entry]) -> str:
    found = differences([entry.run for entry in entries])
    rows = [(shorten(str(key), MAX_KEY_CHARS), texts) for key, texts in list(found.items())[:MAX_DIFFERENCES]]
    note = "" if rows else "No setting differs."
    return _table("What differs in the settings", entries, rows, note)


def _table(title: str, entries: list[Entry], rows: list[tuple[str, list[str]]], note: str) -> str:
    words = f'<p class="note">{esc(note)}</p>' if note else ""
    if not rows:
        return f"<section><h2>{esc(title)}</h2>{words}</section>"
    head = "".join(
        f'<th scope="col"><span class="key run-{entry.place}"></span>{esc(entry.name)}</th>' for entry in entries
    )
    body = "".join(
        f'<tr><th scope="row">{esc(key)}</th>{"".join(f"<td>{esc(text)}</td>" for text in texts)}</tr>'
        for key, texts in rows
    )
    return (
        f'<section><h2>{esc(title)}</h2>{words}<div class="scroll"><table class="rows compared">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )
