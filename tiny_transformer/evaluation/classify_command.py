"""What `tiny-transformer classify` does: open a classifier, read texts, say which label each has."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tiny_transformer.data.labels import LabelledText, encode_text, make_batch
from tiny_transformer.data.prepare.files import is_running_text, read_lines, read_rows
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models.classifier import load_classifier, scores_of
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.tokenizers import load_tokenizer

ROWS_AT_ONCE = 32


def run_classify(
    checkpoint: Path | None, texts: Sequence[str], file: Path | None, *, text_field: str, device: str
) -> None:
    """Write a line of JSON for each text: the text, its label, and the probability of each label.

    Args:
        checkpoint: a classifier's run or directory; None for the newest.
        texts: to sort.
        file: more of them: rows with `text_field`, or one text a line.
        text_field: the field of a row that holds the text.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UserError: no classifier, no texts, or a row without one.
    """
    path, _ = find_checkpoint(checkpoint)
    hardware = choose_hardware(device, "fp32")
    model, labels = load_classifier(path, device=hardware.device)
    tokenizer, limit = load_tokenizer(path), model.config.max_position_embeddings
    everything = [*texts, *(_texts_of(file, text_field) if file is not None else ())]
    if not everything or not all(text.strip() for text in everything):
        raise UserError("there is no text to sort, or an empty one", where="command line", remedy="--text or --file")
    for first in range(0, len(everything), ROWS_AT_ONCE):
        part = everything[first : first + ROWS_AT_ONCE]
        rows = [
            LabelledText(ids, 0, is_cut) for ids, is_cut in (encode_text(tokenizer, t.strip(), limit) for t in part)
        ]
        batch = make_batch(rows, range(len(rows)), tokenizer.end_id).to(hardware.device)
        with torch.inference_mode():
            shares = scores_of(model, batch.input_ids, batch.lengths).float().softmax(-1).tolist()
        for text, row, share in zip(part, rows, shares, strict=True):
            chances = dict(zip(labels, share, strict=True))
            told = {"text": text, "label": labels[share.index(max(share))], "probabilities": chances}
            cut = {"cut_to_tokens": limit} if row.is_cut else {}
            sys.stdout.write(json.dumps({**told, **cut}, ensure_ascii=False) + "\n")


def _texts_of(file: Path, text_field: str) -> Iterator[str]:
    if not file.is_file():
        raise UserError(f"there is no file {file}", where="--file")
    if is_running_text(file):
        yield from filter(None, (line.strip("\r\n") for line in read_lines(file)))
        return
    for line, row in read_rows(file):
        text = row.get(text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(
                f"no text in the field {text_field!r}",
                where=f"{file}, line {line}",
                remedy="name another with --text_field",
                exit_code=ExitCode.BAD_DATA,
            )
        yield text
