"""What `tiny-transformer compare` does: measure models on the same documents; that and their curves on one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiny_transformer.errors import UserError, plain
from tiny_transformer.evaluation.comparison import Comparison
from tiny_transformer.evaluation.measuring import MeasuringOptions, measure
from tiny_transformer.models.find import CONFIG, find_runs
from tiny_transformer.reports.compare import DEFAULT_OUT, MAX_RUNS, write_comparison
from tiny_transformer.reports.formats import NOTHING, count, loss, signed, size
from tiny_transformer.reports.measured import in_brackets
from tiny_transformer.reports.report import refuse_directory
from tiny_transformer.reports.run_reader import is_run_directory
from tiny_transformer.storage.runs import RunDirectory


def run_compare(
    names: Sequence[Path],
    options: MeasuringOptions,
    *,
    out: Path | None,
    as_json: bool,
    console: Console,
    notes: Console,
) -> Comparison:
    """Measure checkpoints, show a table, and write a page with it, the prompts and the curves of their runs.

    Args:
        names: paths, names or patterns of runs and checkpoints; a run stands for its best checkpoint.
        options: what is measured.
        out: the page; None: compare.html in the working directory.
        as_json: print one JSON object instead of the table.
        console: gets table and texts.
        notes: gets what is done, and what is left out.

    Raises:
        UserError: nothing of a name, fewer than two checkpoints, too many, or see `measure`.
    """
    found, remarks = find_runs(names)
    if len(found) > MAX_RUNS:
        raise UserError(f"{len(found)} models are too many for one page", remedy=f"name {MAX_RUNS} at most")

    refuse_directory(out or DEFAULT_OUT)

    def tell(line: str) -> None:
        notes.print(f"[dim]{escape(plain(line))}[/]", highlight=False, soft_wrap=True)

    for remark in remarks:
        tell(f"note: {remark}")
    usable = [path for path in found if not _is_unsaved(path)]
    for path in found:
        if path not in usable:
            tell(f"{path} has no whole checkpoint: its curves are drawn, and it is not measured")
    compared = measure(usable, options, tell)
    page = write_comparison(_runs(found), out or DEFAULT_OUT, compared)
    if as_json:
        print(json.dumps({**compared.as_json(), "page": str(page)}, indent=2))
    else:
        show(compared, console)
        console.print(f"\n{plain(page)}", highlight=False, markup=False, soft_wrap=True)
    return compared


def _is_unsaved(path: Path) -> bool:
    """Whether this is a run that has no whole checkpoint yet."""
    is_run = path.is_dir() and not (path / CONFIG).exists() and is_run_directory(path)
    return is_run and RunDirectory(path).newest_whole()[0] is None


def _runs(found: Sequence[Path]) -> list[Path]:
    """The runs that these paths are, or are checkpoints of; each once."""
    runs = (path if is_run_directory(path) else path.parent for path in found if path.is_dir())
    return list(dict.fromkeys(run for run in runs if is_run_directory(run)))


def show(compared: Comparison, console: Console) -> None:
    """A row a model, the best first; the outcome in words; and how each continues the prompts."""
    best, is_ranked = compared.models[0], not compared.why_not_ranked
    headings = ["", "bits per\nbyte", *["than the best\n(95 % interval)", "verdict"] * is_ranked, "weights", "tokens/s"]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        is_text = heading in ("", "verdict")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold", no_wrap=heading != "")
    for one in compared.models:
        cells = [escape(plain(one.name)), loss(compared.bits_per_byte(one).value)]
        if is_ranked and one is best:
            cells += [NOTHING, "best"]
        elif is_ranked:
            difference = compared.difference(one, best)
            interval = difference.interval
            cells += [f"{signed(interval.value)} ({in_brackets(interval, signed)})", difference.verdict]
        table.add_row(*cells, size(one.num_bytes), count(one.tokens_per_second))
    console.print(table)
    for line in compared.outcome():
        console.print(f"\n{escape(plain(line))}", highlight=False, soft_wrap=True)
    if is_ranked and compared.seed_spread.share:
        told = f"standard deviation between seeds: {compared.spread_in_words()}"
        console.print(f"[dim]{told}[/]", highlight=False, soft_wrap=True)
    for i, prompt in enumerate(compared.prompts):
        for one in compared.models:
            console.print(f"\n[bold]{escape(plain(one.name))}[/]", highlight=False)
            console.print(escape(prompt + one.texts[i].rstrip()), highlight=False, soft_wrap=True)
