"""The labelled texts of a classification run: read, encoded, split; and what it shows at its end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tiny_transformer.config.stages import ClassifyConfig
from tiny_transformer.data.labels import (
    LabelBatch,
    LabelledText,
    encode_text,
    place_of,
    read_labelled,
    settle_labels,
)
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.evaluation.classes import ClassFigures, evaluate_classes
from tiny_transformer.models.classifier import load_classifier
from tiny_transformer.stages.chat import first_checkpoint, refuse_idle, with_length
from tiny_transformer.stages.stage import Request, RunResult
from tiny_transformer.storage import RunDirectory, atomic_write
from tiny_transformer.storage.runs import CLASSES_FILE
from tiny_transformer.tokenizers import Tokenizer

VAL_FRACTION = 0.1
UNUSED = ("data.data_dir", "data.vocab_size", "data.max_bytes", "data.packing", "training.eval_tokens")


@dataclass(frozen=True)
class ClassData:
    """What a run learns from.

    Attributes:
        config: completed.
        tokenizer: of the base.
        labels: their names, by number.
        train, val: the texts.
        notes: which files of a folder or pattern are read, and which are not.
    """

    config: ClassifyConfig
    tokenizer: Tokenizer
    labels: list[str]
    train: list[LabelledText]
    val: list[LabelledText]
    notes: tuple[str, ...] = ()


def open_class_data(request: Request, config: ClassifyConfig, run_dir: Path) -> ClassData:
    """Read the rows, encode them with the base's tokenizer, split them, and complete the config.

    Raises:
        UserError: no start, no rows, a row without text or label, a label that is not in the list.
    """
    _refuse(config)
    tokenizer = first_checkpoint(request, run_dir, "classification").tokenizer
    data, notes = config.data, list[str]()
    rows = list(read_labelled(data.source, data.text_field, config.classify.label_field, notes.append))
    found, places = Counter(label for _, label, _ in rows), {label: where for _, label, where in reversed(rows)}
    labels = settle_labels(found, config.classify.labels, places)
    share = data.val_fraction or VAL_FRACTION
    parts: tuple[list[LabelledText], list[LabelledText]] = ([], [])
    for text, label, _ in rows:
        ids, is_cut = encode_text(tokenizer, text, data.seq_len)
        parts[place_of(text) < share].append(LabelledText(ids, labels.index(label), is_cut))
    if not all(parts):
        raise UserError(
            f"{len(rows):,} rows are too few to learn from some and validate on others",
            where=data.source,
            remedy="give more rows, or another --val_fraction",
            exit_code=ExitCode.BAD_DATA,
        )
    return ClassData(_completed(config, labels, len(parts[0])), tokenizer, labels, *parts, tuple(notes))


def class_weights(data: ClassData) -> torch.Tensor:
    """(labels,): what a text of each label counts; 1 on average over the texts."""
    counts, even = Counter(example.label for example in data.train), len(data.train) / len(data.labels)
    weighs = data.config.classify.class_weights
    return torch.tensor([even / counts[i] if weighs and counts[i] else 1.0 for i in range(len(data.labels))])


def describe(data: ClassData) -> str:
    """The texts and how they are spread over the labels."""
    counts = Counter(example.label for example in data.train)
    spread = ", ".join(f"{label} {counts[i]:,}" for i, label in enumerate(data.labels))
    cut = sum(example.is_cut for example in (*data.train, *data.val))
    told = f"{data.config.data.source}, {len(data.train):,} texts and {len(data.val):,} held out ({spread})"
    cuts = [f"{cut:,} are longer than {data.config.data.seq_len:,} tokens and cut"] if cut else []
    return "; ".join([told, *data.notes, *cuts])


def show_classes(result: RunResult, data: ClassData, batches: Iterable[LabelBatch], console: Console) -> None:
    """Accuracy, macro-F1 and confusion of the best checkpoint on held-out texts; classification.json keeps them."""
    run = RunDirectory(result.run_dir)
    checkpoint = run.resolve("best") or run.resolve("last")
    if checkpoint is None:
        return
    model, labels = load_classifier(checkpoint.path, device=result.hardware.device)
    figures = evaluate_classes(model, batches, len(labels), hardware=result.hardware)
    console.print(
        f"\nheld-out texts: accuracy {figures.accuracy:.3f}, macro-F1 {figures.macro_f1:.3f}; by label, and taken for",
        highlight=False,
    )
    console.print(_table(figures, labels))
    told = {"loss": figures.loss, "accuracy": figures.accuracy, "macro_f1": figures.macro_f1}
    kept = {"step": checkpoint.step, **told, "labels": labels, "confusion": figures.confusion.tolist()}
    atomic_write(result.run_dir / CLASSES_FILE, json.dumps(kept, indent=2) + "\n", makes_parents=False)


def _refuse(config: ClassifyConfig) -> None:
    if config.lora.enabled:
        raise UserError("a new head cannot be learnt by adapters alone", where="lora.enabled", remedy="leave it out")
    refuse_idle(config, UNUSED, "classification, which reads rows of text and label")
    if config.data.source == STORIES:
        remedy = "--source FILE of .jsonl, .json, .csv or .parquet, with a text and a label in each row"
        raise UserError("classification needs labelled texts to learn from", where="data.source", remedy=remedy)


def _completed(config: ClassifyConfig, labels: list[str], num_texts: int) -> ClassifyConfig:
    """With its labels, and its length in tokens."""
    training = with_length(config.training, num_texts, config.data.seq_len)
    classify = config.classify.model_copy(update={"labels": tuple(labels)})
    return config.model_copy(update={"training": training, "classify": classify})


def _table(figures: ClassFigures, labels: list[str]) -> Table:
    names = [Text(label) for label in labels]  # as they stand: square brackets are no markup
    table = Table("", *(Column(name) for name in names), box=None)
    for name, row in zip(names, figures.confusion.tolist(), strict=True):
        table.add_row(name, *(f"{count:,}" for count in row))
    return table
