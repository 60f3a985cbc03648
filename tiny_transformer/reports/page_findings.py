"""The sections of the run report that judge: the diagnosis, and where the time went. They need no JavaScript."""

from __future__ import annotations

from typing import Any

from tiny_transformer.reports.diagnosis.diagnose import HEALTHY, TOO_SHORT
from tiny_transformer.reports.diagnosis.evidence import MIN_ROWS, Finding
from tiny_transformer.reports.formats import count, duration
from tiny_transformer.reports.page import esc
from tiny_transformer.reports.run_reader import number

KNOWN = 0.1  # nats lost on a choice: a tenth more surprise than it must cost
MOST_LACKING = 4  # told in words
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


def knowledge_section(skills: dict[str, Any]) -> str:
    """What a model of the story corpus knows and what it does not know yet, from `evaluate --skills`: a skill is known
    where a choice costs little more than it must."""
    known: list[str] = []
    lacking: list[tuple[float, str]] = []
    for row in skills.get("skills") or ():
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
    note = "" if step is None else f'<p class="note">Measured on fresh stories, at step {count(step)}.</p>'
    return f'<section id="knowledge"><h2>What it knows</h2>{note}{"".join(parts)}</section>'


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
