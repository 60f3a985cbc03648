"""What `tiny-transformer quantize` does: round a checkpoint's weights, write it beside the old one, compare the two."""

from __future__ import annotations

import math
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiny_transformer.data.batches import evaluation_batches
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.errors import UserError, command_line, plain
from tiny_transformer.evaluation.loss import SplitLoss, evaluate_split
from tiny_transformer.evaluation.prepared import data_dir_of, how_it_reads, open_data
from tiny_transformer.evaluation.speed import tokens_per_second, weight_bytes
from tiny_transformer.generation.engines import choose_engine
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.interop.hf import beside_the_weights
from tiny_transformer.models import save_model
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint
from tiny_transformer.models.swaps import LEARNING, describe_swaps, quantize_layers, quantize_words
from tiny_transformer.quantization.gptq import quantize_by_inputs
from tiny_transformer.storage.commit import publish
from tiny_transformer.storage.runs import CONFIG_FILE

KINDS = ("int8", "int4")
CALIBRATION_SEQUENCES = 128
BATCH_SIZE = 16


@dataclass(frozen=True)
class QuantizeOptions:
    """What is written.

    Attributes:
        kind: `int8` or `int4`.
        checkpoint: a checkpoint or run directory, or a run's name; None for the newest.
        out: a directory that does not exist yet. None: `KIND` in the run; `CHECKPOINT-KIND` beside a checkpoint that
            stands alone.
        data_dir: prepared data to measure on, and with int4 to round by; None for what the run was trained on.
        max_batches: measure on so many batches of 16 sequences; None for the whole validation split.
        replace: whether `out` may be there, and is replaced.
    """

    kind: str
    checkpoint: Path | None = None
    out: Path | None = None
    data_dir: Path | None = None
    max_batches: int | None = None
    replace: bool = False


@dataclass(frozen=True)
class Measured:
    """A model on disk and at work: bytes of its weight files, loss (None without data), new tokens a second."""

    num_bytes: int
    loss: SplitLoss | None
    tokens_per_second: float


@dataclass(frozen=True)
class _Text:
    """Prepared data of the model's own tokenizer, and how the model reads it."""

    dataset: Dataset
    seq_len: int
    packing: str

    def batches(self, split: str, most: int | None) -> Any:
        tokens = self.dataset.val if split == "val" else self.dataset.train
        found = evaluation_batches(tokens, seq_len=self.seq_len, batch_size=BATCH_SIZE, packing=self.packing)
        return islice(found, most)


def run_quantize(options: QuantizeOptions, console: Console, notes: Console) -> tuple[Path, Measured, Measured]:
    """Write a quantized checkpoint; where it is, and how the model was before and is now.

    Linear layers get the bits that are asked for, with int4 in groups of 32 whose integers are chosen by what the
    layers read (`gptq`) where there is text to read. Embedding and head get 8 bits a weight in both kinds: they are
    most of a small model, and rounded to four bits they would cost more than all other layers together. Norms, biases,
    routers, convolutions and decay rates keep all their bits: they are few, and small differences there decide much.

    Raises:
        UserError: no checkpoint, one that is quantized already, data of another tokenizer, or `out` is there.
    """
    if options.kind not in KINDS:
        raise UserError(f"there is no kind {options.kind!r}", remedy=f"one of {', '.join(KINDS)}")
    opened = open_checkpoint(options.checkpoint, device="cpu")
    out, text = options.out or default_out(opened.path, options.kind), _text_of(opened, options.data_dir)
    old = opened.model
    if told := _not_from_here(old):
        raise UserError(told[0], where=str(opened.path), remedy=told[1])
    if out.exists() and not options.replace:
        raise UserError("already there, and not to be overwritten", where=str(out), remedy="choose another --out")
    notes.print(f"[dim]{escape(opened.sentence)}[/]", highlight=False, soft_wrap=True)
    notes.print(f"[dim]{escape(_method(options.kind, text))}[/]", highlight=False, soft_wrap=True)
    new = quantized(old, options.kind, text)
    beside = beside_the_weights(opened)
    with publish(out, info={"quantized_from": opened.path.name, "kind": options.kind}, replace=options.replace) as here:
        save_model(new, here, sampling=beside.sampling, **beside.token_ids)
        opened.tokenizer.save(here, max_length=old.config.max_position_embeddings, end_ids=opened.end_ids)
        for name, content in (beside.copied or {}).items():
            here.write(name, content)
    for name, model in (("before", old), (options.kind, new)):
        notes.print(f"[dim]tokens/s of {name}: {escape(choose_engine(model))}[/]", highlight=False, soft_wrap=True)
    speeds = tokens_per_second(lambda: old, lambda: new)
    before, after = (
        Measured(weight_bytes(path), _loss(model, text, options.max_batches), speed)
        for path, model, speed in ((opened.path, old, speeds[0]), (out, new, speeds[1]))
    )
    _show(options.kind, before, after, console)
    next_step = command_line("tiny-transformer", "generate", "--ckpt", out)
    console.print(f"wrote {plain(out)}\nnext: {next_step}", highlight=False, markup=False, soft_wrap=True)
    return out, before, after


def _not_from_here(model: CausalLM) -> tuple[str, str] | None:
    """Why a model cannot be quantized, and what to do instead; None: it can."""
    swaps = describe_swaps(model)
    if any(record["kind"] in LEARNING for record in swaps):
        return "this model is a base with adapters beside it", "make one model of them first: tiny-transformer merge"
    if swaps:
        what = "the weights of this model are rounded to 8 or 4 bits already; rounding them again would only lose more"
        return what, "quantize the checkpoint that it was made from"
    return None


def default_out(checkpoint: Path, kind: str) -> Path:
    """`runs/demo/int8` for a checkpoint of the run `runs/demo`, `models/theirs-int8` for `models/theirs`."""
    checkpoint = checkpoint.resolve() if checkpoint.is_symlink() else checkpoint
    is_of_a_run = (checkpoint.parent / CONFIG_FILE).is_file()
    return checkpoint.parent / kind if is_of_a_run else checkpoint.with_name(f"{checkpoint.name}-{kind}")


def quantized(model: CausalLM, kind: str, text: _Text | None) -> CausalLM:
    """A copy of a model with weights of 8 or 4 bits; see `run_quantize`."""
    model = deepcopy(model)
    if kind == "int4" and text is not None:
        batches = text.batches("train", CALIBRATION_SEQUENCES // BATCH_SIZE)
        quantize_by_inputs(model, kind, batches)
    else:
        quantize_layers(model, kind)
    quantize_words(model)
    return model


def _method(kind: str, text: _Text | None) -> str:
    if kind == "int8":
        return "int8: a scale a row, rounded to nearest; embedding and head too"
    by = f"rounded by what the layers read in {CALIBRATION_SEQUENCES} training sequences (GPTQ)"
    by = by if text is not None else "rounded to nearest: no text to round by, name prepared data with --data_dir"
    return f"int4: a scale for 32 weights, {by}; embedding and head in int8, a scale a row"


def _text_of(opened: OpenCheckpoint, data_dir: Path | None) -> _Text | None:
    """The data that is named, or else that of the run where it still is; None: there is none."""
    with suppress(UserError):
        data_dir = data_dir or data_dir_of(opened.path, opened.run_config)
    if data_dir is None:
        return None
    dataset = open_data(opened, data_dir)
    return _Text(dataset, *how_it_reads(opened, dataset))


def _loss(model: CausalLM, text: _Text | None, max_batches: int | None) -> SplitLoss | None:
    if text is None:
        return None
    hardware, num_bytes = choose_hardware("cpu", "fp32"), text.dataset.meta.val.num_bytes
    return evaluate_split(model, text.batches("val", max_batches), num_bytes=num_bytes, hardware=hardware)


def _show(kind: str, before: Measured, after: Measured, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, heading in enumerate(("", "bytes on disk", "perplexity", "tokens/s")):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for name, one in (("before", before), (kind, after)):
        perplexity = "no data" if one.loss is None else f"{one.loss.perplexity:.4f}"
        table.add_row(name, f"{one.num_bytes:,}", perplexity, f"{one.tokens_per_second:,.0f}")
    cost = ""
    if before.loss and after.loss:
        cost = f"{100 * math.expm1(after.loss.nats_per_token - before.loss.nats_per_token):+.2f} %"
    table.add_row(
        "change",
        f"x {after.num_bytes / before.num_bytes:.3f}",
        cost,
        f"x {after.tokens_per_second / before.tokens_per_second:.2f}",
    )
    console.print(table)
