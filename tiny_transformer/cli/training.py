"""The verbs that make a model: prepare, train, profile."""

from __future__ import annotations

import shlex
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
    whole_or_null,
)
from tiny_transformer.errors import ExitCode, UserError

SOURCE_HELP = (
    "A name (stories, tinystories, wikipedia, wiki-intros, wiki-bookscorpus), a hub id, or a file, folder or glob "
    "of .txt .md .html .jsonl .json .csv .tsv .parquet, also .gz .bz2 .xz .zst."
)


@app.command(context_settings=SETTINGS)
def prepare(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The source, as a plain word.")] = None,
    source: Annotated[str, typer.Option(help=SOURCE_HELP)] = "stories",
    out_dir: Annotated[
        Path, typer.Option("--out_dir", metavar="DIR", help="Where train.bin, val.bin and meta.json go.")
    ] = Path("data"),
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bpe or auto (trained on it), byte, char, gpt2, qwen3, qwen2.5, a tokenizer directory or hub id. "
            "Default: bpe."
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab_size", help="Words of a bpe trained here. Default: chosen from the amount of text."),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            "--seq_len",
            help="Tokens in a training sequence; noted in meta.json, a run may choose another. Default: 256.",
        ),
    ] = None,
    max_bytes: Annotated[int | None, typer.Option("--max_bytes", help="Stop after this many bytes of text.")] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option("--val_fraction", help="Share kept for validation. Default: 0.02, and up to 0.1 of a short text."),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            "--text_field",
            help="The field with the text in .jsonl, .json, .csv, .tsv, .parquet and hub rows. Default: text.",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that encode. Default: one per core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other prepared data in out_dir.")] = False,
) -> None:
    """Turn text into token files that training reads: train.bin, val.bin, meta.json.

    Without options the built-in story corpus is written, tokenized with a vocabulary trained on it.
    """
    if text is not None and is_given(context, "source"):
        raise UserError(f"two sources: {source} and {text}", where="command line", remedy="give one of them")
    from tiny_transformer.config.load import load_data_config
    from tiny_transformer.data.prepare.command import prepare_with_progress

    console = Console()
    data = load_data_config(
        as_overrides(
            {
                "data.source": text or source,
                "data.tokenizer": tokenizer,
                "data.vocab_size": vocab_size,
                "data.seq_len": seq_len,
                "data.max_bytes": max_bytes,
                "data.val_fraction": val_fraction,
                "data.text_field": text_field,
            }
        )
    )
    prepare_with_progress(data, out_dir, console, workers=workers, overwrite=overwrite)
    command = shlex.join(["tiny-transformer", "train", "--data_dir", str(out_dir), "--minutes", "10"])
    console.print(f"\nnext: {command}", markup=False, highlight=False, soft_wrap=True)


@app.command(context_settings=OPEN_SETTINGS)
def train(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "--preset",
            metavar="FILE|PRESET",
            help="A .yaml, .json or .toml file, or a preset: tiny, small, medium, large, gpt2.",
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Text to prepare where data_dir holds none yet; a name or path, as in prepare.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir", metavar="DIR", help="Prepared token files. Default: data/NAME, prepared when missing."
        ),
    ] = None,
    out_dir: OutDir = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Choose model, batch, rates and length for this many minutes on this machine and this data; what "
            "--config or another option sets stays as it is set. A resumed run keeps its choice."
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            parser=whole_or_null, metavar="N", help="Updates of the weights; stronger than the minutes of a config."
        ),
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(parser=number_or_null, metavar="N", help="How often the training text is read.")
    ] = None,
    max_train_minutes: Annotated[
        str | None,
        typer.Option(
            "--max_train_minutes",
            parser=number_or_null,
            metavar="N",
            help="Fit the run to this time: steps, warm-up and decay follow from the measured speed, nothing else.",
        ),
    ] = None,
    eval_steps: Annotated[
        str | None,
        typer.Option(
            "--eval_steps",
            parser=whole_or_null,
            metavar="N",
            help="Evaluate every so many steps and keep the best checkpoint.",
        ),
    ] = None,
    save_steps: Annotated[
        str | None,
        typer.Option(
            "--save_steps",
            parser=whole_or_null,
            metavar="N",
            help="Save a checkpoint every so many steps.",
        ),
    ] = None,
    early_stopping_patience: Annotated[
        str | None,
        typer.Option(
            "--early_stopping_patience",
            parser=whole_or_null,
            metavar="N",
            help="Stop after so many evaluations without gain.",
        ),
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Multiply in bf16 where the device has it in hardware.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in out_dir (or the newest of this config) exactly where it stood."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in out_dir.")] = False,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Resume the newest run of this config if it was interrupted, else make a new one beside it.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the arithmetic behind what --minutes chooses.")
    ] = False,
) -> None:
    """Train a language model, then show its loss, three samples and a report.

    If you would rather not choose, name a text and a time: train my.txt --minutes 10.

    Any other key of the config can be set too: --learning_rate 3e-4, --model.hidden_size 128, training.seed=7, and
    alone where it is true or false: --compile, --deterministic (the same bits on 1, 2, 4, ... processes; slower).
    docs/CONFIG_REFERENCE.md lists them. Ctrl+C saves and leaves; --resume continues bit for bit.
    """
    flags: dict[str, Any] = {
        "data.source": source,
        "data.data_dir": data_dir,
        "out_dir": out_dir,
        "training.steps": steps,
        "training.epochs": epochs,
        "training.max_train_minutes": max_train_minutes,
        "training.eval_steps": eval_steps,
        "training.save_steps": save_steps,
        "training.early_stopping_patience": early_stopping_patience,
        "training.precision": "bf16" if bf16 else None,
    }
    from tiny_transformer.stages.command import meaning_of, one_voice, run_training

    with one_voice():
        words: list[str] = []
        overrides = overrides_of(context, words)
        for word in words:
            key = meaning_of(word)
            taken = config if key == "config" else flags[key]
            if taken is not None:
                raise UserError(f"{word} and {taken} cannot both be read", where="command line", remedy="give one")
            if key == "config":
                config = word
            else:
                flags[key] = word
        overrides = as_overrides(flags) + overrides
    if minutes is not None and max_train_minutes is not None:
        raise UserError(
            "--minutes and --max_train_minutes exclude each other", where="command line", remedy="give one of them"
        )
    if explain and minutes is None:
        raise UserError(
            "--explain shows what --minutes chooses, and there is no --minutes",
            where="command line",
            remedy="--minutes 10 --explain",
        )
    console = Console()
    status = run_training(
        config,
        overrides,
        resume=resume,
        overwrite=overwrite,
        console=console,
        minutes=minutes,
        go_on=go_on,
        explain=explain,
    )
    if status == "stopped":
        raise typer.Exit(ExitCode.STOPPED)


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
