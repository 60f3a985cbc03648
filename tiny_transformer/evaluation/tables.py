"""What `tiny-transformer evaluate` shows: a table for a person, and the same figures for a program."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tiny_transformer.data.meta import SplitMeta
from tiny_transformer.evaluation.floor import FloorCheck
from tiny_transformer.evaluation.loss import SplitLoss, num_targets, perplexity_in_words
from tiny_transformer.evaluation.meanings import MEANINGS
from tiny_transformer.evaluation.skills import Loss, SkillReport
from tiny_transformer.evaluation.written import FIGURES, TEMPERATURE, Figure, in_words


def show_loss(loss: SplitLoss, meta: SplitMeta, split: str, packing: str, console: Console) -> None:
    """The loss in its three units, beside the floor when the data has one."""
    table = _table(f"{split} split", "", "nats per token", "bits per byte", "perplexity")
    nats, bits = loss.nats_per_token, loss.bits_per_byte
    table.add_row("this model", f"{nats:.4f}", f"{bits:.4f}", perplexity_in_words(nats))
    if meta.floor:
        best, best_bits = meta.floor["nats_per_token"], meta.floor["bits_per_byte"]
        table.add_row("best possible", f"{best:.4f}", f"{best_bits:.4f}", perplexity_in_words(best))
        table.add_row("still to learn", f"{nats - best:.4f}", f"{bits - best_bits:.4f}", "")
    console.print(table)
    all_targets = num_targets(meta, packing)
    part = "" if loss.num_tokens >= all_targets else f" of {all_targets:,}"
    console.print(f"{loss.num_tokens:,}{part} tokens, {loss.num_bytes:,} bytes of text", highlight=False)


def show_skills(report: SkillReport, console: Console) -> None:
    """What is lost by skill, the worst first, and by tenths of the story."""
    check = report.check
    table = _table("nats lost per story, by skill", "skill", "pieces", "best", "lost", "±", "share", "what it is")
    for row in report.skills:
        table.add_row(*_cells(row), MEANINGS[row.name])
    error = check.standard_error
    table.add_section()
    table.add_row("all", "", f"{check.exact_per_text:.2f}", f"{check.lost_per_text:.2f}", _error(error), "100 %", "")
    console.print(table)
    console.print()
    table = _table("nats lost per story, by place in the story", "part", "best", "lost", "±", "share", "")
    largest = max((part.lost for part in report.parts), default=0.0)
    for part in report.parts:
        cells = _cells(part)
        length = round(30 * part.lost / largest) if largest > 0 else 0
        table.add_row(cells[0], *cells[2:], "#" * length)
    console.print(table)
    console.print(
        f"\n{check.num_texts:,} stories; the model pays {check.nats_per_text:.2f} nats a story, the best possible is "
        f"{check.exact_per_text:.2f}; ± is one standard error",
        highlight=False,
    )


def show_written(figures: list[Figure], count: int, console: Console) -> None:
    """How much is right of what the model wrote, and in words what it knows."""
    columns = ("what", "right", "of", "share", "stories all right", "what it is")
    table = _table(f"what the model writes: {count:,} stories, read by the grammar", *columns)
    for f in figures:
        counts = (f"{f.right:,}", f"{f.places:,}") if f.places else ("", "")
        shares = (_percent(f.right, f.places), _percent(f.right_stories, f.stories))
        table.add_row(f.name, *counts, *shares, FIGURES[f.name])
    console.print()
    console.print(table)
    console.print(f"\n{in_words(figures)}", highlight=False)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""


def written_json(figures: list[Figure], count: int) -> dict[str, Any]:
    """The figures of what a model writes, for programs and for the report."""
    return {
        "num_stories": count,
        "temperature": TEMPERATURE,
        "in_words": in_words(figures),
        "figures": [{**asdict(f), "share": f.share, "meaning": FIGURES[f.name]} for f in figures],
    }


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, heading in enumerate(headings):
        is_text = i == 0 or heading in ("", "what it is")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading != "what it is")
    return table


def _cells(row: Loss) -> list[str]:
    share = "" if math.isnan(row.share) else f"{100 * row.share:.0f} %"
    return [row.name, f"{row.pieces:.1f}", f"{row.exact:.2f}", f"{row.lost:.2f}", _error(row.standard_error), share]


def _error(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def loss_json(loss: SplitLoss, meta: SplitMeta, check: FloorCheck | None) -> dict[str, Any]:
    """The loss on a split, for programs."""
    return {
        "num_tokens": loss.num_tokens,
        "num_bytes": loss.num_bytes,
        "loss_sum": loss.loss_sum,
        "nats_per_token": loss.nats_per_token,
        "perplexity": loss.perplexity,
        "bits_per_byte": loss.bits_per_byte,
        "floor": meta.floor,
        "beats_the_floor": None if check is None else check.rings,
    }


def skills_json(report: SkillReport) -> dict[str, Any]:
    """What is lost by skill, for programs and for the report."""
    return {
        **asdict(report.check),
        "lost_per_text": report.check.lost_per_text,
        "beats_the_floor": report.check.rings,
        "skills": [{**asdict(row), "meaning": MEANINGS[row.name]} for row in report.skills],
        "parts": [asdict(row) for row in report.parts],
    }
