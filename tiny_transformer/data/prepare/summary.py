"""What `prepare` shows: a progress bar while it works, and a table of what came out."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_transformer.data.meta import Meta

if TYPE_CHECKING:
    from rich.console import Console

FEW_TOKENS = 1000


@contextmanager
def progress_bar(console: Console) -> Generator[Callable[[int, int | None], None]]:
    """A bar with throughput and time left, as the callback that `prepare` takes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("preparing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("prepare", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_summary(meta: Meta, out_dir: Path, console: Console) -> None:
    """Documents, tokens and sizes per split, then the tokenizer and the best loss possible where it is known."""
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{meta.source} in {out_dir}")  # a name is no markup
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    headings = ("", "documents", "tokens", "text (bytes)", "bytes per token", "longest (tokens)")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, split in (("training", meta.train), ("validation", meta.val)):
        figures = (split.num_documents, split.num_tokens, split.num_bytes)
        per_token = f"{split.num_bytes / split.num_tokens:.2f}"
        table.add_row(name, *(f"{figure:,}" for figure in figures), per_token, f"{split.longest_document:,}")
    console.print(table)
    lines = [
        f"tokenizer   {meta.tokenizer}: {meta.vocab_size:,} ids, {meta.num_used_ids:,} of them in use",
        f"duplicates  {meta.num_duplicates:,} left out",
        f"licence     {meta.licence}",
    ]
    asked = meta.request.get("vocab_size")
    if isinstance(asked, int) and asked > meta.vocab_size:
        lines[0] += f"; {asked:,} were asked for, and no other pair stands in the text twice"
    if floor := meta.val.floor:
        lines.append(
            f"best loss   {floor['nats_per_token']:.3f} nats per token, {floor['bits_per_byte']:.3f} bits per byte "
            "(validation; the corpus's own entropy)"
        )
    if meta.val.num_tokens < FEW_TOKENS:
        lines.append(f"validation  {meta.val.num_tokens:,} tokens are few: losses on them are rough figures")
    for line in lines:
        console.print(line, highlight=False, markup=False)
