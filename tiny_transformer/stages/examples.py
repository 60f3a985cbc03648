"""What `replay` shows of a step that reads tokens: its examples, one a row."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tiny_transformer.data.batches import IGNORE_INDEX, TokenBatch
from tiny_transformer.tokenizers import Tokenizer

SHOWN_CHARACTERS = 80  # of a row


def show_rows(micro_batches: Sequence[TokenBatch], tokenizer: Tokenizer, *, only_targets: bool = False) -> Table:
    """Rows of a batch: their numbers in the epoch, and how their text begins, or what of it is learnt."""
    table = Table(title="examples", title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("number", justify="right")
    table.add_column("answers" if only_targets else "text", overflow="ellipsis", no_wrap=True)
    for batch in micro_batches:
        shown = batch.labels if only_targets else batch.input_ids
        for sample, row in zip(batch.sample_ids.tolist(), shown.tolist(), strict=True):
            ids = [token for token in row if token != IGNORE_INDEX]
            text = tokenizer.decode(ids[:SHOWN_CHARACTERS]).replace("\n", " ")
            table.add_row(f"{sample:,}", Text(text[:SHOWN_CHARACTERS]))
    return table
