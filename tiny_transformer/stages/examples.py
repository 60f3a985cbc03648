"""What `replay` shows of a step: its examples, one a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from tiny_transformer.data.batches import IGNORE_INDEX, TokenBatch
from tiny_transformer.tokenizers import Tokenizer

SHOWN_CHARACTERS = 80  # of a text; a token has at least one


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]], *, num_texts: int = 1) -> Table:
    """A table of examples; the last `num_texts` columns hold texts, the others numbers."""
    table = Table(title="examples", title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for place, name in enumerate(columns):
        is_text = place >= len(columns) - num_texts
        table.add_column(name, justify="left" if is_text else "right", overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def beginning(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """How a text begins, in one line."""
    return tokenizer.decode(ids[:SHOWN_CHARACTERS]).replace("\n", " ")[:SHOWN_CHARACTERS]


def show_rows(micro_batches: Sequence[TokenBatch], tokenizer: Tokenizer, *, only_targets: bool = False) -> Table:
    """Rows of tokens: their numbers in the epoch, and how their text begins, or what of it is learnt."""
    rows = []
    for batch in micro_batches:
        shown = batch.labels if only_targets else batch.input_ids
        for number, ids in zip(batch.sample_ids.tolist(), shown, strict=True):
            rows.append((f"{number:,}", beginning(tokenizer, ids[ids != IGNORE_INDEX].tolist())))
    return table_of(("number", "answers" if only_targets else "text"), rows)
