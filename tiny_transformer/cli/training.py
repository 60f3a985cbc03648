"""The verbs that make a model: prepare, train, profile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tiny_transformer.cli.frame import (
    OPEN_SETTINGS,
    SETTINGS,
    OutDir,
    app,
    as_overrides,
    is_given,
    number_or_null,
    overrides_of,
    takes,
    whole_or_null,
    whole_or_word,
)
from tiny_transformer.errors import ExitCode, UserError, command_line

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
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab_size", help="Of a bpe made from the text, as in prepare; --model.vocab_size is the model's."
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


@app.command(context_settings=SETTINGS)
@takes(PrepareOptions)
def prepare(context: typer.Context, options: PrepareOptions) -> None:
    """Turn text into token files that training reads: train.bin, val.bin, meta.json.

    Without --source the default below is read, and without --tokenizer a vocabulary is trained on the text.
    """
    if options.text is not None and is_given(context, "source"):
        both = f"two sources: {options.source} and {options.text}"
        raise UserError(both, where="command line", remedy="give only one of them")
    from tiny_transformer.config.load import load_data_config
    from tiny_transformer.data.prepare.command import prepare_with_progress

    keys = ("tokenizer", "vocab_size", "seq_len", "max_bytes", "val_fraction", "text_field")
    asked = {"data.source": options.text or options.source, **{f"data.{key}": getattr(options, key) for key in keys}}
    console, out_dir = Console(), options.out_dir
    data = load_data_config(as_overrides(asked))
    prepare_with_progress(data, out_dir, console, workers=options.workers, overwrite=options.overwrite)
    command = command_line("tiny-transformer", "train", "--data_dir", out_dir, "--minutes", 10)
    console.print(f"\nnext: {command}", markup=False, highlight=False, soft_wrap=True)


@app.command(context_settings=OPEN_SETTINGS)
@takes(TrainOptions)
def train(context: typer.Context, options: TrainOptions) -> None:
    """Train a language model, then show its loss, three samples and a report.

    If you would rather not choose, name a text and a time: train my.txt --minutes 10.

    Any other key of the config can be set too: --learning_rate 3e-4, --model.hidden_size 128, training.seed=7. A key
    that is true or false needs no value: --compile, --deterministic (the same bits on 1, 2, 4, ... processes; slower).
    docs/CONFIG_REFERENCE.md lists them. Ctrl+C saves and exits; --resume continues bit for bit.
    """
    from tiny_transformer.stages.command import one_voice, run_training

    with one_voice():
        _refuse_contradictions(options)
        config, overrides = _config_and_overrides(context, options)
    status = run_training(
        config,
        overrides,
        resume=options.resume,
        overwrite=options.overwrite,
        console=Console(),
        minutes=options.minutes,
        go_on=options.go_on,
        explain=options.explain,
    )
    if status == "stopped":
        raise typer.Exit(ExitCode.STOPPED)


def _refuse_contradictions(options: TrainOptions) -> None:
    if options.minutes is not None and options.max_train_minutes is not None:
        raise UserError(
            "--minutes and --max_train_minutes cannot be combined", where="command line", remedy="give only one of them"
        )
    if options.explain and options.minutes is None:
        raise UserError(
            "--explain shows what --minutes chooses, and there is no --minutes",
            where="command line",
            remedy="--minutes 10 --explain",
        )


def _config_and_overrides(context: typer.Context, options: TrainOptions) -> tuple[str | None, list[str]]:
    """The config that is named, by an option or as a plain word, and what else is set, as `key=value`."""
    from tiny_transformer.stages.command import meaning_of

    config = options.config
    lengths = ("steps", "epochs", "max_train_minutes", "eval_steps", "save_steps", "early_stopping_patience")
    flags: dict[str, Any] = {
        "data.source": options.source,
        "data.data_dir": options.data_dir,
        "data.vocab_size": options.vocab_size,
        "out_dir": options.out_dir,
        **{f"training.{key}": getattr(options, key) for key in lengths},
        "training.precision": "bf16" if options.bf16 else None,
    }
    words: list[str] = []
    overrides = overrides_of(context, words)
    for word in words:
        key = meaning_of(word)
        taken = config if key == "config" else flags[key]
        if taken is not None:
            raise UserError(f"{word} and {taken} are both given", where="command line", remedy="give only one")
        if key == "config":
            config = word
        else:
            flags[key] = word
    return config, as_overrides(flags) + overrides


@app.command(context_settings=OPEN_SETTINGS)
def profile(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|PRESET]",
            help="A .yaml, .json or .toml file, or a preset: tiny, small, medium, large, gpt2. Default: the defaults.",
        ),
    ] = None,
    named: Annotated[str | None, typer.Option("--config", hidden=True)] = None,  # as in train
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """What a config will cost, before anything runs: parameters, arithmetic, memory, time, and who can open the model.

    Any key of the config can be set, as in train: --model.hidden_size 512, training.micro_batch_size=4. Parameters and
    the memory of tensors are exact; time is an estimate from half a second of measuring this machine.
    """
    if config is not None and (config.startswith("-") or "=" in config):  # an override stands first: no file was named
        context.args.insert(0, config)
        config = None
    from tiny_transformer.costs.command import run_profile

    words: list[str] = []
    overrides = overrides_of(context, words)
    configs = [name for name in (config, named, *words) if name is not None]
    if len(configs) > 1:
        raise UserError(f"several configs are named: {', '.join(configs)}", remedy="name one")
    run_profile(configs[0] if configs else None, overrides, as_json=as_json, console=Console())
