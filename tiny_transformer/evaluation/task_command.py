"""What `tiny-transformer evaluate --task FILE` does: score questions with several answers, show a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiny_transformer.data.prepare.unpack import PACKED_SUFFIXES
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.loss import perplexity_in_words
from tiny_transformer.evaluation.tasks import TaskResult, read_items, run_task
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models.open import open_checkpoint

SUFFIXES = (".jsonl", *(f".jsonl{packed}" for packed in PACKED_SUFFIXES))


def run_tasks(
    checkpoint: Path | None,
    paths: Sequence[Path],
    *,
    limit: int | None,
    device: str,
    as_json: bool,
    console: Console,
    notes: Console,
) -> list[TaskResult]:
    """Score a checkpoint on task files and show the table; of folders every `.jsonl` file in them is one.

    Args:
        checkpoint: a checkpoint or run directory, or a run's name; None for the newest.
        paths: task files, packed or not, and folders of them.
        limit: only so many of the first questions of each.
        device: `auto`, `cpu`, `cuda` or `mps`.
        as_json: print one JSON object instead.
        console: gets the table.
        notes: gets what was chosen and which questions were cut.

    Raises:
        UserError: no checkpoint, no task file, a line that is no question.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} is not possible", remedy="--limit: 1 or more")
    files = list(_task_files(paths))
    tasks = {name: read_items(path, limit) for name, path in files}  # a bad line is told before a minute is spent
    opened = open_checkpoint(checkpoint, device=device, dtype=torch.float32)
    hardware = choose_hardware(device, "fp32")
    notes.print(f"[dim]{escape(opened.sentence)}[/]", highlight=False, soft_wrap=True)
    results = []
    for name, items in tasks.items():
        notes.print(f"[dim]{escape(name)}: {len(items):,} questions[/]", highlight=False)
        results.append(run_task(name, items, opened.model, opened.tokenizer, hardware))
    if as_json:
        facts = {"checkpoint": str(opened.path), "device": hardware.describe()}
        print(json.dumps({**facts, "tasks": [asdict(result) for result in results]}, indent=2))
    else:
        show_results(results, console)
    for result in results:
        if result.num_cut:
            longest = opened.model.config.max_position_embeddings
            notes.print(
                f"{escape(result.name)}: {result.num_cut:,} of {result.num_items:,} questions are longer than the "
                f"{longest:,} tokens the model reads; their beginnings were left out",
                highlight=False,
            )
    return results


def _task_files(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of each task. The name is the path below the folder given, or the file's name, without suffixes."""
    names: dict[str, Path] = {}
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES) and file.is_file())
            if not found:
                raise UserError(f"no .jsonl file in {path}", remedy="name a folder of task files, or a task file")
        elif not path.is_file():
            raise UserError(f"no such task file: {path}", remedy="name a .jsonl file of questions, packed or not")
        elif not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path} is no .jsonl file", remedy=f"task files are read from {' '.join(SUFFIXES)}")
        for file in found:
            name = _name(file.relative_to(path) if path.is_dir() else Path(file.name))
            name = name if names.setdefault(name, file) == file else str(file)
            yield name, file


def _name(path: Path) -> str:
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(suffix))
    return path.with_name(path.name[: -len(suffix)]).as_posix()


def show_results(results: Sequence[TaskResult], console: Console) -> None:
    """A row a task: the share that is right beside what guessing gets."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    has_perplexity = any(result.perplexity is not None for result in results)
    for heading in ("task", "questions", "right", "±", "by length", "guessing", *["perplexity"] * has_perplexity):
        table.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    for r in results:
        cells = [_percent(r.accuracy), _percent(r.standard_error), _percent(r.normalised), _percent(r.chance)]
        perplexity = [perplexity_in_words(math.log(r.perplexity)) if r.perplexity else ""] * has_perplexity
        table.add_row(escape(r.name), f"{r.num_items:,}", *cells, *perplexity)
    console.print(table)
    console.print(
        "\nright: the likeliest answer is the right one; by length: likeliest per character; ± is one standard error",
        highlight=False,
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
