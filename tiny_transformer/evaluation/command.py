"""What `tiny-transformer evaluate` does: find checkpoint and data, measure, show."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from tiny_transformer.data.batches import evaluation_batches
from tiny_transformer.data.meta import SplitMeta
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.data.token_file import Dataset, TokenFile
from tiny_transformer.errors import UserError, command_line, plain
from tiny_transformer.evaluation.floor import FloorCheck, check_split
from tiny_transformer.evaluation.loss import SplitLoss, evaluate_split, num_targets, scored_bytes
from tiny_transformer.evaluation.prepared import data_dir_of, how_it_reads, open_data
from tiny_transformer.evaluation.skills import measure_skills
from tiny_transformer.evaluation.stories import Reading, ToldStory, fresh_stories, split_stories
from tiny_transformer.evaluation.tables import (
    loss_json,
    show_loss,
    show_skills,
    show_written,
    skills_json,
    written_json,
)
from tiny_transformer.evaluation.written import read_stories, write_stories
from tiny_transformer.hardware import Hardware, choose_hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint
from tiny_transformer.storage import atomic_write, read_manifest
from tiny_transformer.storage.runs import (
    SKILLS_FILE,
    WRITTEN_FILE,
    holds_a_run,
)

BATCH_SIZE = 16
SPLITS = ("val", "train")


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured.

    Attributes:
        checkpoint: a checkpoint or run directory, or a run's name; None for the newest.
        data_dir: prepared data; None for what the run was trained on.
        split: `val` or `train`. None: the validation split, or with `skills` fresh stories.
        max_batches: score only so many batches of 16 sequences; None for the whole split.
        skills: tell the loss by skill and by place in the story instead of the split's loss.
        num_stories: how many stories for that.
        stories: let the model write so many stories, and read them; None for none.
        device: `auto`, `cpu`, `cuda` or `mps`.
        as_json: print one JSON object instead of tables.
        tokenizer: `auto`, or a name that must mean the checkpoint's own tokenizer.
    """

    checkpoint: Path | None = None
    data_dir: Path | None = None
    split: str | None = None
    max_batches: int | None = None
    skills: bool = False
    num_stories: int = 500
    stories: int | None = None
    device: str = "auto"
    as_json: bool = False
    tokenizer: str = "auto"


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: a model, the data beside it, and how it was trained to read."""

    model: CausalLM
    dataset: Dataset
    hardware: Hardware
    seq_len: int
    packing: str


def run_evaluate(options: EvaluateOptions, console: Console, notes: Console) -> None:
    """Measure a checkpoint; results go to `console`, what was chosen and warnings to `notes`.

    Raises:
        UserError: no checkpoint, no data, data of another tokenizer, or `skills` or `stories` with a text that is not
            the story corpus.
    """
    _refuse_what_cannot_be(options)
    opened = open_checkpoint(options.checkpoint, device=options.device, dtype=torch.float32)
    data_dir = options.data_dir or data_dir_of(opened.path, opened.run_config)
    dataset = open_data(opened, data_dir)
    opened.check_tokenizer(options.tokenizer)
    asked = "--skills" if options.skills else "--stories"
    if (options.skills or options.stories) and dataset.meta.source != STORIES:
        raise UserError(
            f"{asked} needs the story corpus, and {data_dir} holds {dataset.meta.source}",
            where=str(data_dir),
            remedy=f"only its grammar knows what each word should be; leave out {asked} for the loss",
        )
    subject = _load(opened, dataset, options.device)
    notes.print(f"[dim]{escape(f'{opened.sentence}; data in {plain(data_dir)}')}[/]", highlight=False, soft_wrap=True)
    if opened.run_config is None:
        told = f"how it learnt to read is not known: documents are joined into rows of {subject.seq_len:,} tokens"
        told += " (packing: concat); a model that learnt from documents one by one looks worse than it is"
        notes.print(f"[dim]{told}[/]", highlight=False, soft_wrap=True)
    facts = {"checkpoint": str(opened.path), "data_dir": str(data_dir), "device": subject.hardware.describe()}
    if options.skills:
        facts |= _tell_skills(subject, options, opened.path, console, notes)
    if options.stories is not None:
        facts |= _tell_written(opened, options.stories, options.as_json, console, notes)
    if not options.skills and options.stories is None:
        facts |= _tell_loss(subject, options, console, notes)
    if options.as_json:
        print(json.dumps(facts, indent=2))


def _refuse_what_cannot_be(options: EvaluateOptions) -> None:
    if options.split not in (None, *SPLITS):
        raise UserError(f"there is no split {options.split!r}", remedy=f"--split {' or '.join(SPLITS)}")
    for name in ("max_batches", "num_stories", "stories"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} is not possible", remedy=f"--{name}: 1 or more")


def _tell_skills(
    subject: _Subject, options: EvaluateOptions, checkpoint: Path, console: Console, notes: Console
) -> dict[str, Any]:
    """What is lost by skill, shown or as JSON has it."""
    report = measure_skills(subject.model, _stories(subject, options, notes), _reading(subject))
    if options.split is None:
        _keep_for_the_report(checkpoint, SKILLS_FILE, skills_json(report), notes)
    if not options.as_json:
        show_skills(report, console)
    _warn(report.check, options, notes)
    return {"stories": options.split or "fresh stories", **skills_json(report)}


def _tell_written(
    opened: OpenCheckpoint, count: int, as_json: bool, console: Console, notes: Console
) -> dict[str, Any]:
    """What the model writes, read by the grammar: shown or as JSON has it."""
    figures = read_stories(write_stories(opened.model, opened.tokenizer, count, end_ids=opened.end_ids))
    written = written_json(figures, count)
    _keep_for_the_report(opened.path, WRITTEN_FILE, written, notes)
    if not as_json:
        show_written(figures, count, console)
    return {"written": written}


def _tell_loss(subject: _Subject, options: EvaluateOptions, console: Console, notes: Console) -> dict[str, Any]:
    """The loss on a split, shown or as JSON has it."""
    split = options.split or SPLITS[0]
    loss, check = _split_loss(subject, split, options.max_batches)
    meta = _split_meta(subject.dataset, split)
    if not options.as_json:
        show_loss(loss, meta, split, subject.packing, console)
    _warn(check, options, notes)
    return {"split": split, **loss_json(loss, meta, check)}


def _warn(check: FloorCheck | None, options: EvaluateOptions, notes: Console) -> None:
    """The alarm; a model may know by heart what it was trained on."""
    if check is not None and check.rings and options.split != "train":
        notes.print(f"\n[bold yellow]warning[/]: {check.warning()}", highlight=False)


def _split_loss(subject: _Subject, split: str, max_batches: int | None) -> tuple[SplitLoss, FloorCheck | None]:
    """The loss on a split, or on its first batches (then without a check: the floor is that of whole texts)."""
    tokens, meta = _tokens(subject.dataset, split), _split_meta(subject.dataset, split)
    batches: Any = evaluation_batches(tokens, seq_len=subject.seq_len, batch_size=BATCH_SIZE, packing=subject.packing)
    if max_batches is not None:
        batches = list(islice(batches, max_batches))
    loss = evaluate_split(subject.model, batches, num_bytes=meta.num_bytes, hardware=subject.hardware)
    if loss.num_tokens < num_targets(meta, subject.packing):
        return replace(loss, num_bytes=scored_bytes(meta, loss.num_tokens, subject.packing)), None
    return loss, check_split(loss.loss_sum, loss.num_tokens, meta, subject.model.config.known_vocab_size)


def _stories(subject: _Subject, options: EvaluateOptions, notes: Console) -> list[ToldStory]:
    """The stories to read; says so when fresh ones come from another grammar than the model's."""
    dataset = subject.dataset
    if options.split is not None:
        return split_stories(_tokens(dataset, options.split), dataset.tokenizer, options.num_stories)
    try:
        split_stories(dataset.val, dataset.tokenizer, 50)
    except UserError:
        notes.print(
            "the data was told by an earlier version of the grammar: what is new in the fresh stories counts as lost",
            highlight=False,
        )
    return fresh_stories(options.num_stories)


def _reading(subject: _Subject) -> Reading:
    tokenizer = subject.dataset.tokenizer
    has_first = subject.packing == "concat" or tokenizer.begin_id is not None
    return Reading(tokenizer, subject.seq_len, predicts_first=has_first, hardware=subject.hardware)


def _keep_for_the_report(checkpoint: Path, name: str, figures: dict[str, Any], notes: Console) -> None:
    """Leave the figures in the checkpoint's run, where the report finds them; a run that cannot be written to does
    without."""
    run_dir = checkpoint.resolve().parent
    if not holds_a_run(run_dir):
        return
    with suppress(OSError, UserError):
        kept = {"step": read_manifest(checkpoint).info.get("step"), **figures}
        atomic_write(run_dir / name, json.dumps(kept, indent=2, allow_nan=True) + "\n")
        here = Path.cwd().resolve()
        shown = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
        report_again = command_line("tiny-transformer", "report", shown)
        notes.print(f"[dim]kept for the page: {escape(report_again)} says it in words[/]", soft_wrap=True)


def _load(opened: OpenCheckpoint, dataset: Dataset, device: str) -> _Subject:
    config, shape = opened.run_config, opened.config
    hardware = choose_hardware(device, config.training.precision if config else "fp32")
    if shape.known_vocab_size < dataset.tokenizer.vocab_size:
        raise UserError(
            f"the model knows {shape.known_vocab_size:,} ids and its tokenizer gives {dataset.tokenizer.vocab_size:,}",
            where=str(opened.path),
            remedy="take a checkpoint whose config.json and tokenizer.json belong together",
        )
    return _Subject(opened.model, dataset, hardware, *how_it_reads(opened, dataset))


def _tokens(dataset: Dataset, split: str) -> TokenFile:
    return dataset.val if split == "val" else dataset.train


def _split_meta(dataset: Dataset, split: str) -> SplitMeta:
    return dataset.meta.val if split == "val" else dataset.meta.train
