"""The sections of the run report as HTML. Every text from a run goes through `esc`; nothing here reads a file."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tiny_transformer.reports.charts import AXES, Chart, in_words, numbers_of
from tiny_transformer.reports.formats import count, duration, large, loss, setting, shorten, signed, size
from tiny_transformer.reports.outcome import Outcome
from tiny_transformer.reports.run_reader import RunFiles, number, section

# What is longer is cut, so that the page stays small whatever a run holds; the files beside it have the whole.
MAX_SAMPLES = 12
MAX_PROMPTS = 8  # shown through time
MAX_SAMPLE_CHARS = 4_000
MAX_PROMPT_CHARS = 1_000
MAX_COMMAND_CHARS = 2_000
MAX_KEY_CHARS = 100
MAX_TABLES = 8
WIDE = ("loss", "update-ratios", "part-grad-norms")  # charts over the whole width
MAX_ROWS = 60  # of one table


def esc(value: object) -> str:
    """Text as HTML, safe in an element and in a quoted attribute."""
    return html.escape(str(value))


def heading(run: RunFiles, outcome: Outcome) -> str:
    """The run's name, its state and its outcome in words."""
    return f"""<header>
<p class="state {outcome.state.replace(" ", "-")}">{esc(outcome.state)}</p>
<h1>{esc(run.name)}</h1>
<p class="outcome">{esc(outcome.sentence())}</p>
</header>"""


def key_figures(outcome: Outcome, log: list[dict[str, Any]]) -> str:
    """The loss beside the floor, and how much work went into it."""
    memory = max((value for row in log if (value := number(row, "peak_memory_bytes")) is not None), default=None)
    total = outcome.total_steps
    of_all = f"of {count(total)}" if total and outcome.step is not None and outcome.step < total else ""
    cards = [
        ("steps", count(outcome.step), of_all),
        (f"{outcome.target}s seen", large(outcome.num_tokens), ""),
        ("training time", duration(outcome.elapsed_seconds), ""),
        ("parameters", large(outcome.num_parameters), ""),
        *([("memory at most", size(memory), "")] if memory else []),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{esc(value)}{f' <small>{esc(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in cards
    )
    return f'<section class="figures">{_loss_table(outcome)}<dl class="cards">{items}</dl></section>'


def _loss_table(outcome: Outcome) -> str:
    if outcome.val_loss is None:
        return f"""<div><table class="losses">
<thead><tr><th></th><th scope="col">nats per {outcome.target}</th></tr></thead>
<tbody><tr class="ours"><th scope="row">training loss</th><td>{loss(outcome.train_loss)}</td></tr></tbody>
</table>
<p class="note">No validation loss: <code>training.eval_steps</code> has the model tested on held-out text.</p></div>"""
    rows = [("validation loss", outcome.val_loss, outcome.val_bits_per_byte, loss, "ours")]
    if outcome.floor is not None:
        rows.append(("best loss possible", outcome.floor, outcome.floor_bits_per_byte, loss, "floor"))
        rows.append(("gap", outcome.gap, outcome.gap_bits_per_byte, signed, ""))
    body = "".join(
        f'<tr class="{role}"><th scope="row">{name}</th><td>{words(nats)}</td><td>{words(bits)}</td></tr>'
        for name, nats, bits, words, role in rows
    )
    part = "" if outcome.val_part is None else f"the first {count(outcome.val_part)} tokens of the "
    notes = [f"Measured on {part}held-out text at step {count(outcome.val_step)}."]
    if outcome.last_val_loss is not None and outcome.last_val_loss > outcome.val_loss:
        notes[0] = (
            f"The best evaluation, at step {count(outcome.val_step)}; the last one gave {loss(outcome.last_val_loss)}."
        )
        notes += [f"Each read {part}held-out text."] if part else []
    if outcome.floor is None:
        notes.append("The best loss possible on this text is not known: only a corpus made by a known grammar has one.")
    else:
        notes.append("The best loss possible is the corpus’s own entropy: no model can stay below it on new text.")
    return f"""<div><table class="losses">
<thead><tr><th></th><th scope="col">nats per {outcome.target}</th><th scope="col">bits per byte</th></tr></thead>
<tbody>{body}</tbody></table><p class="note">{esc(" ".join(notes))}</p></div>"""


def chart_section(
    charts: list[Chart],
    picture: str = "",
    *,
    counted: str = "tokens",
    why_none: str = "log.jsonl holds nothing to draw yet.",
) -> str:
    """Places for the charts, each with its data and its numbers; `picture` (an SVG) is for readers without scripts,
    `counted` what `num_tokens` of the log counts."""
    if not charts:
        return f'<section><h2>Charts</h2><p class="note">{esc(why_none)}</p></section>'
    axes = [axis for axis, _ in AXES if any(_has_axis(chart, axis) for chart in charts)]
    words = {"tokens": counted}
    buttons = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="{str(not place).lower()}">'
        f"by {words.get(axis, axis)}</button>"
        for place, axis in enumerate(axes)
    )
    buttons += '<button type="button" data-toggle="log" aria-pressed="false">log axis</button>'
    told = f'role="group" aria-label="horizontal axis of all curves" data-counted="{counted}"'
    parts = [f'<div class="toggles whole" {told}>{buttons}</div>']
    parts += [_figure(chart) for chart in charts]
    note = '<p class="note">The curves need JavaScript; the numbers are below each, and in log.jsonl.</p>'
    parts.append(f"<noscript>{note}{picture}</noscript>")
    return f'<section class="charts">{"".join(parts)}</section>'


def _has_axis(chart: Chart, axis: str) -> bool:
    return any(axis in (one["xs"] or ()) for one in chart.figure.get("series", ()))


def _figure(chart: Chart) -> str:
    """One chart: what it is, a place for report.js to draw in, its data, and some of its numbers as a table."""
    has_view = chart.figure.get("view") is not None
    button = '<button type="button" data-toggle="close" aria-pressed="true">close-up</button>' if has_view else ""
    # "<" cannot end the script element when it is written as an escape.
    data = json.dumps(chart.figure, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    words = esc(f"{in_words(chart)} The arrow keys read single values.")
    return f"""<figure class="{"wide" if chart.key in WIDE else "small"}">
<figcaption><h2>{esc(chart.title)}</h2><p class="note">{esc(chart.note)}</p>
<div class="toggles">{button}</div></figcaption>
<div class="chart {chart.figure["kind"]}" id="{esc(chart.key)}" tabindex="0" role="group" aria-label="{words}"></div>
<script type="application/json">{data}</script>
<details><summary>numbers</summary><div class="scroll">{_numbers(chart)}</div></details>
</figure>"""


def _numbers(chart: Chart) -> str:
    """A few of a chart's values, for whoever reads rather than looks."""
    heads, rows = numbers_of(chart)
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{esc(row[0])}</th>{"".join(f"<td>{esc(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f'<table class="rows numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def samples_section(samples: list[dict[str, Any]]) -> str:
    """What the model wrote: each prompt, and its continuation in another hand."""
    last = [sample for sample in samples if not is_of_the_way(sample)]
    if not last:
        return ""
    items = []
    for sample in last[:MAX_SAMPLES]:
        step = number(sample, "step")
        facts = [f"step {count(step)}"] if step is not None else []
        facts += [f"{key.replace('_', ' ')} {value}" for key, value in _rows(section(sample, "settings"))]
        prompt = shorten(str(sample.get("prompt", "")), MAX_PROMPT_CHARS)
        items.append(
            f'<article><p class="story"><span class="prompt">{esc(prompt)}</span>{_text(sample, MAX_SAMPLE_CHARS)}</p>'
            f'<p class="note">{esc(shorten(", ".join(facts), MAX_PROMPT_CHARS))}</p></article>'
        )
    note = '<p class="note">The marked words were given; the model wrote the rest.</p>'
    return f'<section><h2>Samples</h2>{note}<div class="samples">{"".join(items)}</div></section>'


def _text(sample: dict[str, Any], limit: int) -> str:
    """What was written, without the blank lines of a model that knows no better; in words where that is nothing."""
    if sample.get("problem"):
        return f' <em class="note">(no text: {esc(shorten(str(sample["problem"]), MAX_PROMPT_CHARS))})</em>'
    text = re.sub(r"(\s*\n){3,}", "\n\n", re.sub(r"[ \t]{9,}", "        ", str(sample.get("text", "")))).rstrip()
    if not text:
        return (
            ' <em class="note">(nothing but blanks)</em>' if sample.get("text") else ' <em class="note">(nothing)</em>'
        )
    return esc(shorten(text, limit))


def samples_over_time_section(samples: list[dict[str, Any]]) -> str:
    """How the same prompts were continued at several points of the run, each from noise to sentences."""
    of_the_way = [sample for sample in samples if is_of_the_way(sample)]
    prompts = list(dict.fromkeys(str(sample.get("prompt", "")) for sample in of_the_way))
    parts = []
    for prompt in prompts[:MAX_PROMPTS]:
        texts = [sample for sample in of_the_way if str(sample.get("prompt", "")) == prompt]
        rows = "".join(
            f'<tr><th scope="row">step {esc(count(number(sample, "step")))}</th>'
            f'<td class="story">{_text(sample, MAX_SAMPLE_CHARS // 4)}</td></tr>'
            for sample in texts[:MAX_SAMPLES]
        )
        given = esc(shorten(prompt, MAX_PROMPT_CHARS))
        parts.append(
            f'<h3><span class="prompt">{given}</span></h3>'
            f'<table class="rows through-time"><tbody>{rows}</tbody></table>'
        )
    if not parts:
        return ""
    note = '<p class="note">The most likely continuation of the same words, as the model learnt.</p>'
    return f'<section id="through-time"><h2>The same prompt through time</h2>{note}{"".join(parts)}</section>'


def is_of_the_way(sample: dict[str, Any]) -> bool:
    """Whether a sample was written while the model learnt: greedily, the others are drawn at random."""
    return number(section(sample, "settings"), "temperature") == 0.0


def settings_section(config: dict[str, Any]) -> str:
    """Every resolved setting, by section."""
    if not config:
        return ""
    single = {key: value for key, value in config.items() if not isinstance(value, dict)}
    groups = [(key, value) for key, value in config.items() if isinstance(value, dict)] + [("run", single)]
    tables = "".join(_table(name, _rows(group)) for name, group in groups[:MAX_TABLES] if group)
    return f'<section><h2>Settings</h2><div class="tables">{tables}</div></section>'


def environment_section(run: RunFiles) -> str:
    """What it ran on, and on what data."""
    info = run.newest.info if run.newest else {}
    versions = section(info, "versions")
    command = info.get("command")
    parts = [str(part) for part in command] if isinstance(command, list) else []
    facts = {
        "tiny-transformer": versions.get("tiny_transformer"),
        "torch": versions.get("torch"),
        "python": versions.get("python"),
        "device": info.get("device"),
        "threads": info.get("num_threads"),
        "precision": info.get("precision"),
        "saved": str(info["saved_at"]).replace("T", " ") if "saved_at" in info else None,
    }
    data = section(info, "data") | {f"tokenizer {key}": value for key, value in section(info, "tokenizer").items()}
    tables = _table("machine and versions", _rows({key: value for key, value in facts.items() if value is not None}))
    tables += _table("data", _rows(data))
    line = shlex.join(parts) if parts else "\n".join(run.config_comments)
    command_line = f"<h3>command</h3><pre>{esc(shorten(line, MAX_COMMAND_CHARS))}</pre>" if line else ""
    if not tables and not command_line:
        return ""
    return f'<section><h2>Environment</h2><div class="tables">{tables}</div>{command_line}</section>'


def files_section(run: RunFiles, page_dir: Path) -> str:
    """Where everything is, as links that work from the directory of the page, and how to go on."""
    way = os.path.relpath(run.path.resolve(), page_dir.resolve())
    prefix, beside = ("", ", beside this page") if way == "." else (f"{way}/", "")
    files = [
        ("best", "the checkpoint with the lowest validation loss: a Hugging Face model directory"),
        ("last", "the newest checkpoint"),
        ("config.yaml", "every setting, with the command that was run"),
        ("log.jsonl", "one line for each logged step"),
        ("loss.svg", "the loss curve as a picture"),
        ("samples.json", "the samples above"),
        ("classification.json", "the confusion above"),
    ]
    rows = "".join(
        f'<tr><th scope="row"><a href="{esc(quote(prefix + name))}">{esc(name)}</a></th><td>{what}</td></tr>'
        for name, what in files
        if (run.path / name).exists()
    )
    steps = ", ".join(
        f'<a href="{esc(quote(prefix + c.path.name))}">{esc(c.path.name)}</a>' + (" (not whole)" if c.problem else "")
        for c in run.checkpoints
    )
    rows += f'<tr><th scope="row">checkpoints</th><td>{steps}</td></tr>' if steps else ""
    mark = next((name for name in ("best", "last") if (run.path / name).exists()), None)
    hint = ""
    if mark:
        checkpoint = shlex.quote(str(run.path / mark))
        first = next((str(sample["prompt"]) for sample in run.samples if sample.get("prompt")), "Once upon a time")
        prompt = shlex.quote(shorten(" ".join(first.split()), MAX_KEY_CHARS))
        command = f"tiny-transformer generate --ckpt {checkpoint} --prompt {prompt}"
        hint = f"<h3>let it write</h3><pre>{esc(command)}</pre>"
    problems = "".join(f"<li>{esc(problem)}</li>" for problem in run.problems)
    problems = f"<h3>what is missing</h3><ul>{problems}</ul>" if problems else ""
    return f"""<section><h2>Files</h2><p class="note">In <code>{esc(run.path)}</code>{beside}.</p>
<table class="rows files"><tbody>{rows}</tbody></table>{problems}{hint}</section>"""


def _rows(group: dict[str, Any]) -> list[tuple[str, str]]:
    """The first names and values of a group, those of groups inside it with dotted names."""
    return list(islice(_all_rows(group), MAX_ROWS))


def _all_rows(group: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in group.items():
        name = shorten(str(key), MAX_KEY_CHARS)
        if isinstance(value, dict) and value:
            yield from (
                (f"{name}.{shorten(str(inner), MAX_KEY_CHARS)}", setting(item)) for inner, item in value.items()
            )
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
            yield name, count(value)
        else:
            yield name, setting(value)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(f'<tr><th scope="row">{esc(key)}</th><td>{esc(value)}</td></tr>' for key, value in rows)
    title = esc(shorten(str(title), MAX_KEY_CHARS))
    return f'<div class="group"><h3>{title}</h3><table class="rows"><tbody>{body}</tbody></table></div>'
