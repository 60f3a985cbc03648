"""The options of the verbs that have many, a class each: what a field says is what `--help` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tiny_transformer.cli.frame import OutDir, number_or_null, whole_or_null, whole_or_word

SOURCE_HELP = (
    "A name (stories, tinystories, wikipedia, wiki-intros, wiki-bookscorpus), a hub id, or a file, folder or glob "
    "of .txt .md .html .jsonl .json .csv .tsv .parquet, also .gz .bz2 .xz .zst."
)


@dataclass(frozen=True)
class PrepareOptions:
    """Of `prepare`."""

    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The source, without --source.")] = None
    source: Annotated[str, typer.Option(help=SOURCE_HELP)] = "stories"
    out_dir: Annotated[
        Path, typer.Option("--out_dir", metavar="DIR", help="Where train.bin, val.bin and meta.json go.")
    ] = Path("data")
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bpe or auto (trained on it), byte, char, gpt2, qwen3, qwen2.5, a tokenizer directory or hub id. "
            "Default: bpe."
        ),
    ] = None
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab_size", help="Vocabulary size of a bpe trained here. Default: chosen by the amount of text."
        ),
    ] = None
    seq_len: Annotated[
        int | None,
        typer.Option(
            "--seq_len",
            help="Tokens per training sequence; recorded in meta.json, and a run may use another. Default: 256.",
        ),
    ] = None
    max_bytes: Annotated[int | None, typer.Option("--max_bytes", help="Stop after this many bytes of text.")] = None
    val_fraction: Annotated[
        float | None,
        typer.Option(
            "--val_fraction", help="Share held out for validation. Default: 0.02, up to 0.1 for a short text."
        ),
    ] = None
    text_field: Annotated[
        str | None,
        typer.Option(
            "--text_field",
            help="The field with the text in .jsonl, .json, .csv, .tsv, .parquet and hub rows. Default: text.",
        ),
    ] = None
    workers: Annotated[int | None, typer.Option(help="Number of encoding threads. Default: one per core.")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other prepared data in out_dir.")] = False


@dataclass(frozen=True)
class TrainOptions:
    """Of `train`."""

    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "--preset",
            metavar="FILE|PRESET",
            help="A .yaml, .json or .toml file, or a preset: tiny, small, medium, large, gpt2.",
        ),
    ] = None
    source: Annotated[
        str | None, typer.Option(help="Text to prepare if data_dir holds none yet; a name or path, as in prepare.")
    ] = None
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir", metavar="DIR", help="Prepared token files. Default: data/NAME, prepared if missing."
        ),
    ] = None
    out_dir: OutDir = None
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Choose model, batch size, learning rates and length to make the most of this many minutes on this "
            "machine and this data; what --config or another option sets is kept. A resumed run keeps its choice."
        ),
    ] = None
    steps: Annotated[
        str | None,
        typer.Option(
            parser=whole_or_null, metavar="N", help="Number of weight updates; overrides the minutes of a config."
        ),
    ] = None
    epochs: Annotated[
        str | None, typer.Option(parser=number_or_null, metavar="N", help="Number of passes over the training text.")
    ] = None
    max_train_minutes: Annotated[
        str | None,
        typer.Option(
            "--max_train_minutes",
            parser=number_or_null,
            metavar="N",
            help="Fit the run to this time: steps, warm-up and decay follow from the measured speed, nothing else.",
        ),
    ] = None
    eval_steps: Annotated[
        str | None,
        typer.Option(
            "--eval_steps",
            parser=whole_or_word,
            metavar="N",
            help="Evaluate every N steps and keep the best checkpoint. Default: auto, eight times a run.",
        ),
    ] = None
    save_steps: Annotated[
        str | None,
        typer.Option(
            "--save_steps",
            parser=whole_or_null,
            metavar="N",
            help="Save a checkpoint every N steps.",
        ),
    ] = None
    early_stopping_patience: Annotated[
        str | None,
        typer.Option(
            "--early_stopping_patience",
            parser=whole_or_null,
            metavar="N",
            help="Stop after N evaluations in a row without improvement.",
        ),
    ] = None
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute matrix products in bf16 if the hardware supports it.")
    ] = False
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in out_dir (or the newest of this config) exactly where it stopped."
        ),
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in out_dir.")] = False
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Resume the newest run of this config if it was interrupted; otherwise start a new one beside it.",
        ),
    ] = False
    explain: Annotated[bool, typer.Option("--explain", help="Show the arithmetic behind what --minutes chooses.")] = (
        False
    )
