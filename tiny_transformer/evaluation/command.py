"""What `tiny-transformer evaluate` does: find checkpoint and data, measure, show."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.batches import evaluation_batches
from tiny_transformer.data.meta import SplitMeta, read_meta
from tiny_transformer.data.prepare.command import is_prepared
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.data.token_file import Dataset, TokenFile, open_dataset
from tiny_transformer.errors import UserError, command_line
from tiny_transformer.evaluation.floor import FloorCheck, check_split
from tiny_transformer.evaluation.loss import SplitLoss, evaluate_split, num_targets, perplexity_in_words, scored_bytes
from tiny_transformer.evaluation.skills import MEANINGS, Loss, SkillReport, measure_skills
from tiny_transformer.evaluation.stories import Reading, ToldStory, fresh_stories, split_stories
from tiny_transformer.hardware import Hardware, choose_hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint
from tiny_transformer.storage import atomic_write, read_manifest
from tiny_transformer.storage.runs import SKILLS_FILE, holds_a_run, load_identity

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
        device: `auto`, `cpu`, `cuda` or `mps`.
        as_json: print one JSON object instead of tables.
    """

    checkpoint: Path | None = None
    data_dir: Path | None = None
    split: str | None = None
    max_batches: int | None = None
    skills: bool = False
    num_stories: int = 500
    device: str = "auto"
    as_json: bool = False


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
        UserError: no checkpoint, no data, data of another tokenizer, or `skills` on text that is not the story corpus.
    """
    if options.split not in (None, *SPLITS):
        raise UserError(f"there is no split {options.split!r}", remedy=f"--split {' or '.join(SPLITS)}")
    for name, value in (("max_batches", options.max_batches), ("num_stories", options.num_stories)):
        if value is not None and value < 1:
            raise UserError(f"{name} = {value} is not possible", remedy=f"{name}: 1 or more")
    opened = open_checkpoint(options.checkpoint, device=options.device, dtype=torch.float32)
    data_dir = options.data_dir or _data_dir_of(opened.path, opened.run_config)
    dataset = open_dataset(data_dir)
    _refuse_other_tokenizer(opened, dataset, data_dir)
    if options.skills and dataset.meta.source != STORIES:
        raise UserError(
            f"--skills needs the story corpus, and {data_dir} holds {dataset.meta.source}",
            where=str(data_dir),
            remedy="only its grammar knows what each word should cost; leave out --skills for the loss",
        )
    subject = _load(opened, dataset, options.device)
    notes.print(f"[dim]{escape(f'{opened.sentence}; data in {data_dir}')}[/]", highlight=False, soft_wrap=True)
    facts = {"checkpoint": str(opened.path), "data_dir": str(data_dir), "device": subject.hardware.describe()}
    if options.skills:
        report = measure_skills(subject.model, _stories(subject, options, notes), _reading(subject))
        check: FloorCheck | None = report.check
        if options.split is None:
            _keep_for_the_report(opened.path, report, notes)
        if options.as_json:
            told = options.split or "fresh stories"
            print(json.dumps({**facts, "stories": told, **_skills_json(report)}, indent=2))
        else:
            show_skills(report, console)
    else:
        split = options.split or SPLITS[0]
        loss, check = _split_loss(subject, split, options.max_batches)
        meta = _split_meta(dataset, split)
        if options.as_json:
            print(json.dumps({**facts, "split": split, **_loss_json(loss, meta, check)}, indent=2))
        else:
            show_loss(loss, meta, split, subject.packing, console)
    if check is not None and check.rings and options.split != "train":  # a model may know what it was trained on
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


# --- what is evaluated
# ---------------------------------------------------------------------------------------------------


def _data_dir_of(checkpoint: Path, config: RunConfig | None) -> Path:
    """What the run was trained on: as its config says, else the data of the same content beneath data/."""
    if config is None:
        raise UserError(
            f"{checkpoint} does not say what it was trained on",
            where=str(checkpoint),
            remedy="name prepared data with --data_dir (tiny-transformer prepare makes it)",
        )
    data_dir = config.data.data_dir
    if data_dir is not None and is_prepared(data_dir):
        return data_dir
    fingerprints = load_identity(checkpoint).values()
    for directory in (Path("data"), *sorted(Path("data").glob("*"))):
        if is_prepared(directory) and read_meta(directory).fingerprint in fingerprints:
            return directory
    raise UserError(
        f"the data this run was trained on is not in {data_dir or 'data'}/ any more",
        where=str(checkpoint),
        remedy="name it with --data_dir, or other data prepared with the same tokenizer",
    )


def _refuse_other_tokenizer(opened: OpenCheckpoint, dataset: Dataset, data_dir: Path) -> None:
    own, theirs = opened.tokenizer, dataset.tokenizer
    if own.fingerprint != theirs.fingerprint:
        raise UserError(
            f"{data_dir} was prepared with another tokenizer ({theirs.name}) than the model's ({own.name})",
            where=str(data_dir),
            remedy="prepare the text with the model's: "
            + command_line("tiny-transformer", "prepare", "--tokenizer", opened.path, "..."),
        )


def _load(opened: OpenCheckpoint, dataset: Dataset, device: str) -> _Subject:
    config, shape = opened.run_config, opened.config
    hardware = choose_hardware(device, config.training.precision if config else "fp32")
    if shape.known_vocab_size < dataset.tokenizer.vocab_size:
        raise UserError(
            f"the model knows {shape.known_vocab_size:,} ids and its tokenizer gives {dataset.tokenizer.vocab_size:,}",
            where=str(opened.path),
            remedy="take a checkpoint whose config.json and tokenizer.json belong together",
        )
    seq_len = config.data.seq_len if config else min(dataset.meta.seq_len, shape.max_position_embeddings)
    return _Subject(opened.model, dataset, hardware, seq_len, config.data.packing if config else "concat")


def _tokens(dataset: Dataset, split: str) -> TokenFile:
    return dataset.val if split == "val" else dataset.train


def _split_meta(dataset: Dataset, split: str) -> SplitMeta:
    return dataset.meta.val if split == "val" else dataset.meta.train


# --- what is shown
# -------------------------------------------------------------------------------------------------------


def _keep_for_the_report(checkpoint: Path, report: SkillReport, notes: Console) -> None:
    """Leave the figures in the checkpoint's run, where the report finds them; a run that cannot be written to does
    without."""
    run_dir = checkpoint.resolve().parent
    if not holds_a_run(run_dir):
        return
    with suppress(OSError, UserError):
        kept = {"step": read_manifest(checkpoint).info.get("step"), **_skills_json(report)}
        atomic_write(run_dir / SKILLS_FILE, json.dumps(kept, indent=2, allow_nan=True) + "\n")
        here = Path.cwd().resolve()
        shown = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
        report_again = command_line("tiny-transformer", "report", shown)
        notes.print(f"[dim]kept for the page: {escape(report_again)} says it in words[/]", soft_wrap=True)


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


def _loss_json(loss: SplitLoss, meta: SplitMeta, check: FloorCheck | None) -> dict[str, Any]:
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


def _skills_json(report: SkillReport) -> dict[str, Any]:
    return {
        **asdict(report.check),
        "lost_per_text": report.check.lost_per_text,
        "beats_the_floor": report.check.rings,
        "skills": [{**asdict(row), "meaning": MEANINGS[row.name]} for row in report.skills],
        "parts": [asdict(row) for row in report.parts],
    }
