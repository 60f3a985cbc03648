"""The sections of the run report that judge: the diagnosis, and where the time went. They need no JavaScript."""

from __future__ import annotations

from typing import Any

from tiny_transformer.evaluation.meanings import MEANINGS
from tiny_transformer.reports.diagnosis.diagnose import HEALTHY, TOO_SHORT
from tiny_transformer.reports.diagnosis.evidence import MIN_ROWS, Finding
from tiny_transformer.reports.formats import count, duration, shorten
from tiny_transformer.reports.page import esc
from tiny_transformer.reports.run_reader import number, objects, section

KNOWN = 0.1  # nats lost on a choice: a tenth more surprise than it must cost
MOST_LACKING = 4  # told in words
MOST_POINTS, MOST_SKILLS = 8, 20  # columns and rows of a table
MOST_LABELS = 30  # rows and columns of the confusion
MAX_WORDS = 100  # characters of a name or meaning
# What each kind of `seconds` is called, in the order of the bar.
KINDS = {
    "forward_backward": "forward and backward",
    "optimizer": "optimizer",
    "data": "reading data",
    "evaluations": "evaluation",
    "saves": "saving",
    "samples": "samples",
    "logging": "logging",
    "planning": "timing steps to plan the run",
}


def diagnosis_section(findings: list[Finding], num_rows: int) -> str:
    """What went wrong and what to do, in plain words; without findings, that there are none, or that a log of
    `num_rows` is too short to tell."""
    if not findings:
        words = HEALTHY if num_rows >= MIN_ROWS else TOO_SHORT
        return f'<section class="diagnosis healthy"><h2>Diagnosis</h2><p>{esc(words)}</p></section>' if num_rows else ""
    items = "".join(f"<li><p>{esc(f.what)}</p><p class='note'>{esc(f.remedy)}</p></li>" for f in findings)
    return f'<section class="diagnosis"><h2>Diagnosis</h2><ul>{items}</ul></section>'


def knowledge_section(skills: dict[str, Any], written: dict[str, Any], growth: list[dict[str, Any]]) -> str:
    """What a model of the story corpus knows and what it does not know yet: in words, by what is right where it writes,
    and how each skill grew through the run."""
    parts = [_right_where_it_writes(written), _known_by_loss(skills), _growth(growth)]
    body = "".join(parts)
    return f'<section id="knowledge"><h2>What it knows</h2>{body}</section>' if body else ""


def _right_where_it_writes(written: dict[str, Any]) -> str:
    """The figures of stories that the model wrote, read by the grammar."""
    rows = ""
    for row in objects(written.get("figures")):
        right, places, whole, stories = (number(row, key) for key in ("right", "places", "right_stories", "stories"))
        if not places or not stories or right is None or whole is None:
            continue
        cells = (f"{right / places:.0%}", f"of {count(places)}", f"{whole / stories:.0%}", str(row.get("meaning", "")))
        head = f'<th scope="row">{esc(shorten(str(row.get("name", "")), MAX_WORDS))}</th>'
        rows += f"<tr>{head}{''.join(f'<td>{esc(shorten(cell, MAX_WORDS))}</td>' for cell in cells)}</tr>"
    if not rows:
        return ""
    words = shorten(str(written.get("in_words", "")), 4 * MAX_WORDS)
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("", "right", "", "stories all right", "what it is"))
    step = number(written, "step")
    at_step = "" if step is None else f", at step {count(step)}"
    note = f"{count(number(written, 'num_stories'))} stories that it wrote{at_step}, read by the grammar of the corpus."
    return (
        f'<p>{esc(words)}</p><table class="rows written"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="note">{esc(note)}</p>'
    )


def _growth(growth: list[dict[str, Any]]) -> str:
    """The chance of what is right, by skill and step, the least known at the end first."""
    points = [(number(row, "step"), section(row, "chances")) for row in growth]
    points = [(step, chances) for step, chances in points if step is not None and chances][-MOST_POINTS:]
    problem = next((str(row["problem"]) for row in reversed(growth) if "problem" in row), "")
    if not points:
        return f'<p class="note">How it grew is not known: {esc(shorten(problem, MAX_WORDS))}</p>' if problem else ""
    last = points[-1][1]
    names = sorted((name for name in last if number(last, name) is not None), key=lambda name: number(last, name) or 0)
    heads = "".join(f'<th scope="col">step {esc(count(step))}</th>' for step, _ in points)
    rows = ""
    for name in names[:MOST_SKILLS]:
        values = (number(chances, name) for _, chances in points)
        cells = "".join(f"<td>{'' if value is None else f'{value:.0%}'}</td>" for value in values)
        meaning = shorten(MEANINGS.get(name, name), MAX_WORDS)
        rows += f'<tr><th scope="row">{esc(shorten(name, MAX_WORDS))}</th>{cells}<td>{esc(meaning)}</td></tr>'
    return (
        f'<h3>As it grew</h3><table class="rows growth"><thead><tr><th></th>{heads}<th></th></tr></thead>'
        f'<tbody>{rows}</tbody></table><p class="note">The chance that the model gave to what was right in fresh '
        "stories, on average, where 100% is all that can be known.</p>"
    )


def _known_by_loss(skills: dict[str, Any]) -> str:
    """What costs hardly more than it must, and what costs most, from `evaluate --skills`."""
    known: list[str] = []
    lacking: list[tuple[float, str]] = []
    for row in objects(skills.get("skills")):
        name, meaning = str(row.get("name", "")), str(row.get("meaning", ""))
        lost, pieces, share = (number(row, key) for key in ("lost", "pieces", "share"))
        if lost is None or not pieces:
            continue
        if lost / pieces <= KNOWN:
            known.append(meaning or name)
        else:
            lacking.append((share or 0.0, f"{meaning or name} ({share or 0.0:.0%} of all that is lost)"))
    if not known and not lacking:
        return ""
    parts = ["<p>It knows: " + esc("; ".join(known)) + ".</p>"] if known else []
    if lacking:
        worst = [words for _, words in sorted(lacking, reverse=True)]
        more = f"; and {len(worst) - MOST_LACKING} things that cost less" if len(worst) > MOST_LACKING else ""
        parts.append(f"<p>It does not know yet: {esc('; '.join(worst[:MOST_LACKING]))}{more}.</p>")
    step = number(skills, "step")
    if step is not None:
        parts.append(f'<p class="note">Measured on fresh stories, at step {count(step)}.</p>')
    return "".join(parts)


def classes_section(classes: dict[str, Any]) -> str:
    """How many held-out texts of each label a classifier took for which."""
    labels, confusion = classes.get("labels"), classes.get("confusion")
    if not isinstance(labels, list) or not isinstance(confusion, list) or not labels:
        return ""
    names = [esc(shorten(str(label), MAX_WORDS)) for label in labels[:MOST_LABELS]]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = ""
    for i, (name, counts) in enumerate(zip(names, confusion, strict=False)):
        cells = [number({"n": value}, "n") for value in counts[:MOST_LABELS]] if isinstance(counts, list) else []
        words = [f"<b>{count(value)}</b>" if j == i else count(value) for j, value in enumerate(cells)]
        rows += f'<tr><th scope="row">{name}</th>{"".join(f"<td>{word}</td>" for word in words)}</tr>'
    figures = [
        f"{words} {value:.3f}"
        for key, words in (("accuracy", "accuracy"), ("macro_f1", "macro-F1"))
        if (value := number(classes, key)) is not None
    ]
    step = number(classes, "step")
    at_step = "" if step is None else f" at step {count(step)}"
    more = f" The first {MOST_LABELS} of {len(labels):,} labels." if len(labels) > MOST_LABELS else ""
    note = f"Each row is a label, each column what its held-out texts were taken for{at_step}.{more}"
    return (
        f'<section id="classes"><h2>Confusion</h2><p>{esc(", ".join(figures))}</p><div class="scroll">'
        f'<table class="rows confusion"><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="note">{esc(note)}</p></section>'
    )


def time_section(seconds: dict[str, float], elapsed_seconds: float | None) -> str:
    """One bar of all the time, and what each part of it was."""
    parts = [(kind, name, seconds[kind]) for kind, name in KINDS.items() if seconds.get(kind, 0.0) > 0.0]
    named = sum(spent for _, _, spent in parts)
    if named <= 0:
        return ""
    rest = max(0.0, (elapsed_seconds or 0.0) - named)
    total = named + rest
    parts += [("other", "everything else", rest)] if rest > 0.0005 * total else []
    bar = "".join(
        f'<span class="time-{kind}" style="width:{100 * spent / total:.2f}%" title="{esc(name)}"></span>'
        for kind, name, spent in parts
    )
    legend = "".join(
        f'<li><span class="key time-{kind}"></span>{esc(name)} <b>{spent / total:.1%}</b> '
        f"<small>{esc(_time(spent))}</small></li>"
        for kind, name, spent in parts
    )
    return (
        f'<section id="time"><h2>Where the time went</h2><p class="note">{esc(duration(total))} of training in all</p>'
        f'<div class="timebar" role="img" aria-label="shares of the time, listed below">{bar}</div>'
        f'<ul class="legend">{legend}</ul></section>'
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} seconds" if seconds < 10 else duration(seconds)
