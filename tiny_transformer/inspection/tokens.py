"""Looking at prepared data: training sequences as text, with the borders of tokens and documents made visible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from tiny_transformer.data.meta import META_FILE
from tiny_transformer.data.packing import IGNORE_INDEX, BestFit, Concatenated, Example, Packing
from tiny_transformer.data.prepare.command import is_prepared
from tiny_transformer.data.prepare.summary import print_summary
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import UserError, command_line, plain
from tiny_transformer.models.find import RUNS_DIR
from tiny_transformer.reports.run_reader import is_run_directory
from tiny_transformer.tokenizers import Tokenizer

SPLITS = ("train", "val")
PACKINGS = ("concat", "documents")
BORDER, LINE_BREAK, PART = "\N{BOX DRAWINGS LIGHT VERTICAL}", "\N{RETURN SYMBOL}", "\N{HORIZONTAL ELLIPSIS}"
COLOURS = ("black on #cfe8ff", "black on #ffe3b8", "black on #d9f2d0")  # neighbours differ, on any background
CONTROL = "bold white on red"


@dataclass(frozen=True)
class InspectOptions:
    """Which sequences are shown.

    Attributes:
        split: `train` or `val`.
        index: the first of them, in the order of the file (training shuffles them).
        count: how many.
        seq_len: tokens in a sequence; None for what the data was prepared for.
        packing: `concat` or `documents`; see `data.packing`.
    """

    split: str = "train"
    index: int = 0
    count: int = 2
    seq_len: int | None = None
    packing: str = "concat"


def inspect_data(data_dir: Path, options: InspectOptions, console: Console) -> None:
    """Show what a prepared data directory holds: a table, then some sequences.

    Raises:
        UserError: not a data directory, or an option that does not fit it.
    """
    _refuse_other_things(data_dir)
    for name, value, allowed in (("split", options.split, SPLITS), ("packing", options.packing, PACKINGS)):
        if value not in allowed:
            raise UserError(f"there is no {name} {value!r}", remedy=f"--{name} {' or '.join(allowed)}")
    dataset = open_dataset(data_dir)
    seq_len = dataset.meta.seq_len if options.seq_len is None else options.seq_len
    if seq_len < 1 or options.count < 1:
        raise UserError("seq_len and count are 1 or more", remedy="leave them out for the defaults")
    tokens = dataset.train if options.split == "train" else dataset.val
    sequences: Packing
    if options.packing == "concat":
        sequences = Concatenated(tokens, seq_len, keep_rest=True)
    else:
        sequences = BestFit(tokens, seq_len)
    if not 0 <= options.index < len(sequences):
        raise UserError(
            f"there is no sequence {options.index} in {options.split}: it has {len(sequences):,} of {seq_len} tokens",
            where=str(data_dir),
            remedy=f"--index 0 to {len(sequences) - 1}",
        )
    print_summary(dataset.meta, data_dir, console)
    in_colour = console.color_system is not None
    border = "a change of colour is" if in_colour else f"{BORDER} is"
    console.print(
        f"\n{border} a token border, {LINE_BREAK} a line break, {PART} a token that ends inside a character",
        highlight=False,
    )
    for i in range(options.index, min(options.index + options.count, len(sequences))):
        _show(sequences[i], f"{options.split} sequence {i:,} of {len(sequences):,}", dataset.tokenizer, console)


def _refuse_other_things(path: Path) -> None:
    """Say what to use instead when `path` is not a data directory."""
    if not path.exists() and is_run_directory(RUNS_DIR / path):
        path = RUNS_DIR / path
    look = f'{command_line("tiny-transformer", "inspect", path)} --prompt "some words" shows it reading'
    if not path.exists():
        raise UserError(f"{path} does not exist", remedy="make data with: tiny-transformer prepare --out_dir data")
    if path.is_file():
        inside = f": its directory is {path.parent}" if is_prepared(path.parent) else ""
        raise UserError(f"{path} is a file", remedy=f"give a directory of prepared data{inside}")
    if is_prepared(path):
        return
    if is_run_directory(path):
        raise UserError(
            f"{path} is a run, not prepared data",
            remedy=f"{command_line('tiny-transformer', 'runs', path)} lists its checkpoints, "
            f"{command_line('tiny-transformer', 'generate', '--ckpt_dir', path)} lets it write, {look}",
        )
    if (path / "config.json").is_file():
        raise UserError(
            f"{path} is a model, not prepared data",
            remedy=f"{command_line('tiny-transformer', 'generate', '--ckpt_dir', path)} lets it write, "
            f"{command_line('tiny-transformer', 'evaluate', path)} measures it, {look}",
        )
    inside = sorted(child for child in path.iterdir() if child.is_dir() and is_prepared(child))
    if inside:
        names = ", ".join(str(child) for child in inside[:3])
        raise UserError(f"{path} is not prepared data: it has no {META_FILE}", remedy=f"but these are: {names}")
    raise UserError(
        f"{path} is not prepared data: it has no {META_FILE}",
        remedy="make it with: "
        + command_line("tiny-transformer", "prepare", "--source", "YOUR_TEXT", "--out_dir", path),
    )


def _show(example: Example, name: str, tokenizer: Tokenizer, console: Console) -> None:
    """One sequence: a headline, then its documents, each on a line of its own."""
    parts = list(documents_of(example, tokenizer.end_id))
    num_targets = int((example.labels != IGNORE_INDEX).sum())
    documents = "1 document" if len(parts) == 1 else f"{len(parts)} documents"
    padding = len(example.labels) - num_targets
    console.print(
        f"\n[bold]{name}[/]: {num_targets:,} tokens to predict, parts of {documents}"
        + (f", {padding:,} tokens of padding" if padding else ""),
        highlight=False,
    )
    for i, ids in enumerate(parts):
        console.print(f"[dim]--- document {i + 1}, {len(ids):,} tokens ---[/]", highlight=False)
        console.print(token_text(ids, tokenizer, in_colour=console.color_system is not None), soft_wrap=False)


def documents_of(example: Example, end_id: int) -> Iterator[list[int]]:
    """The tokens of each document in a sequence, padding left out; the last target is shown after the last input."""
    is_target = example.labels != IGNORE_INDEX
    doc_ids = np.zeros(len(is_target), np.int64) if example.doc_ids is None else example.doc_ids
    for doc_id in np.unique(doc_ids[is_target]):
        here = is_target & (doc_ids == doc_id)
        ids = [*example.input_ids[here].tolist(), int(example.labels[here][-1])]
        while end_id in ids[:-1]:  # joined documents: cut after each end token
            cut = ids.index(end_id) + 1
            yield ids[:cut]
            ids = ids[cut:]
        yield ids


def token_text(ids: list[int], tokenizer: Tokenizer, *, in_colour: bool) -> Text:
    """Tokens as text: neighbours in different colours, or with a line between them."""
    decoder = tokenizer.stream_decoder()
    text = Text(overflow="fold")
    for place, token_id in enumerate(ids):
        is_control = tokenizer.is_special(token_id)
        if is_control:
            piece = tokenizer.decode([token_id], skip_special_tokens=False)
        else:
            piece = decoder.push(token_id) or PART
        shown = "\n".join(plain(line) for line in piece.replace("\n", f"{LINE_BREAK}\n").split("\n"))
        if in_colour:
            text.append(shown, CONTROL if is_control else COLOURS[place % len(COLOURS)])
        else:
            text.append((BORDER if place else "") + shown)
    return text
