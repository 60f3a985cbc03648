"""The options of the verbs that have many, a class each: what a field says is what `--help` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tiny_transformer.cli.frame import (
    CheckpointArgument,
    CheckpointOption,
    CheckpointToo,
    Device,
    OutDir,
    number_or_null,
    whole_or_null,
    whole_or_word,
)

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


@dataclass(frozen=True)
class CompareOptions:
    """Of `compare`."""

    names: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="A B...", help="Names, directories or globs of runs and checkpoints; a run means its best."
        ),
    ] = None
    checkpoints: Annotated[list[Path] | None, typer.Option(metavar="DIR|GLOB", hidden=True)] = None
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir", metavar="DIR", help="Prepared data to read from. Default: what the first model learnt from."
        ),
    ] = None
    documents: Annotated[int, typer.Option(metavar="N", min=1, help="Read at most N validation documents.")] = 1000
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A text that each model continues; may be given several times. Default: the run's sample prompts."
        ),
    ] = None
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", metavar="N", min=1, help="Length of these texts, in tokens.")
    ] = 60
    cases: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rank by how likely each model finds the targets in a YAML file of prompts and targets (see cases/), "
            "instead of by documents.",
        ),
    ] = None
    seed_spread: Annotated[
        float | None,
        typer.Option(
            "--seed_spread",
            metavar="SHARE",
            help="Standard deviation of bits per byte between seeds of one config, as a share of it; 0 compares these "
            "very weights. Default: measured, or 0.0075.",
        ),
    ] = None
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page to write. Default: compare.html here.")] = (
        None
    )
    tokenizer: Annotated[str, typer.Option(hidden=True)] = "auto"
    device: Device = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False


@dataclass(frozen=True)
class EvaluateOptions:
    """Of `evaluate`."""

    checkpoint: CheckpointArgument = None
    named: CheckpointToo = None
    data_dir: Annotated[
        Path | None,
        typer.Option("--data_dir", metavar="DIR", help="Prepared data. Default: what the run learnt from."),
    ] = None
    split: Annotated[
        str | None, typer.Option(help="val or train. Default: val; with --skills, fresh stories never seen before.")
    ] = None
    max_batches: Annotated[
        int | None, typer.Option("--max_batches", help="Score this many batches of 16 sequences. Default: all.")
    ] = None
    skills: Annotated[
        bool, typer.Option("--skills", help="The loss by skill and by place in the story (story corpus only).")
    ] = False
    num_stories: Annotated[int, typer.Option("--num_stories", metavar="N", help="How many stories --skills reads.")] = (
        500
    )
    task: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Answer the questions in a .jsonl file (HellaSwag, ARC, PIQA, OpenBookQA, WinoGrande, BLiMP, LAMBADA, "
            "or your own in one of these formats), or in a folder of such files; may be repeated.",
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="With --task: only the first N questions of each file.")
    ] = None
    stories: Annotated[
        int | None,
        typer.Option(metavar="N", help="Let the model write N stories and check them: hero kept? sums right?"),
    ] = None
    device: Device = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False
    config: Annotated[Path | None, typer.Option(hidden=True)] = None  # names the data, as it does for train
    tokenizer: Annotated[str, typer.Option(hidden=True)] = "auto"  # as in generate


@dataclass(frozen=True)
class InspectOptions:
    """Of `inspect`."""

    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR|FILE",
            help="Prepared data (default: data/), a file of conversations, or, with --prompt, a model: a run's name or "
            "a directory.",
        ),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(help="Watch a model read this text: its guesses, attention, heads and blocks, on one page."),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="With --prompt: the page to write. Default: inspect.html here."),
    ] = None
    split: Annotated[str, typer.Option(help="train or val.")] = "train"
    index: Annotated[int, typer.Option(help="The first sequence to show, in file order.")] = 0
    count: Annotated[int, typer.Option(help="How many sequences to show.")] = 2
    seq_len: Annotated[
        int | None, typer.Option("--seq_len", help="Tokens per sequence. Default: what the data was prepared for.")
    ] = None
    packing: Annotated[
        str, typer.Option(help="concat joins documents and cuts; documents packs whole ones, as a run would.")
    ] = "concat"
    template: Annotated[
        str | None,
        typer.Option(help="Show conversations in this chat template, with the trained part in colour."),
    ] = None
    ckpt_dir: CheckpointOption = None


# --- options of generate and chat


MaxNewTokens = Annotated[
    int, typer.Option("--max_new_tokens", "--max_tokens", "--max_length", help="The most tokens to write.")
]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token; 1 draws as the model believes.")]
TopP = Annotated[
    float | None, typer.Option("--top_p", help="Draw among the likeliest tokens that together have this probability.")
]


@dataclass(frozen=True)
class SamplingOptions:
    """How `generate` draws text."""

    max_new_tokens: MaxNewTokens = 200
    temperature: Temperature = 0.8
    top_k: Annotated[int | None, typer.Option("--top_k", help="Draw among the k likeliest tokens only.")] = None
    top_p: TopP = None
    min_p: Annotated[
        float | None,
        typer.Option("--min_p", help="Draw among tokens at least this likely, relative to the likeliest."),
    ] = None
    repetition_penalty: Annotated[
        float,
        typer.Option("--repetition_penalty", help="Above 1: tokens that were used already become less likely."),
    ] = 1.0
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same text. Default: a new one each time, shown.")
    ] = None
    device: Device = "auto"
    engine: Annotated[
        str,
        typer.Option(
            help="What computes the tokens of a single text on a CPU: plain, fast (compiled by Numba, several times "
            "faster), or auto: fast where it is available and pays off."
        ),
    ] = "auto"


@dataclass(frozen=True)
class GenerateOptions:
    """Of `generate`."""

    words: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="The text to continue, without --prompt.")
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The text to continue; - reads it from standard input. Default: on a terminal you type it; elsewhere, "
            "the run's first sample prompt."
        ),
    ] = None
    ckpt_dir: CheckpointOption = None
    num_samples: Annotated[int, typer.Option("--num_samples", "--samples", help="How many continuations to write.")] = 1
    tokenizer: Annotated[
        str, typer.Option(help="auto takes the checkpoint's own; any other name must mean the same tokenizer.")
    ] = "auto"
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it is written.")] = False
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Many prompts: one per line of a .txt, or the `prompt` of each object in a .jsonl; - reads lines.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the answers to --prompts go, as JSON lines; an interrupted file is continued."
        ),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", help="How many prompts of a file are read at once. Default: 16.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each text.")] = False
    vote: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Show only the sample that wins. majority: the most common answer (after ####, else the last number, "
            "else the whole text); regex:PATTERN: of its first group; verifier:FILE.py:function: the highest score.",
        ),
    ] = None
    speculative: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFT",
            help="Draft tokens ahead and check several per pass; the text stays the same. ngram: from earlier text; "
            "mtp: with the model's own MTP head; or a smaller model's run. Reports whether it paid off.",
        ),
    ] = None
    num_draft_tokens: Annotated[
        int | None, typer.Option("--num_draft_tokens", help="The most tokens drafted at once. Default: 4.")
    ] = None
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Type prompts, one after another, into one running text.")
    ] = False
    log_attention: Annotated[
        bool,
        typer.Option(
            "--log_attention", help="Save the attention weights of the text to attention.safetensors, 256 MB at most."
        ),
    ] = False
    plot: Annotated[
        bool, typer.Option("--plot", help="Also draw them, to attention.png; needs the extra `plot` (matplotlib).")
    ] = False
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|DIR", help="Low-rank adapters to apply to the model: a run, or a directory saved by PEFT."
        ),
    ] = None


@dataclass(frozen=True)
class ChatOptions:
    """Of `chat`."""

    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="One question to answer; - reads it from standard input.")
    ] = None
    ckpt_dir: CheckpointOption = None
    system: Annotated[str, typer.Option(help="What the model is told before the first question.")] = ""
    run_template: Annotated[
        bool,
        typer.Option(
            "--run_template",
            help="Run a chat template that came with an imported model: a program of whoever made it, in a process of "
            "its own with a second, 256 MB and no files. Those of finetune need no running.",
        ),
    ] = False


@dataclass(frozen=True)
class ChatSampling(SamplingOptions):
    """How answers are drawn: a little closer to what the model finds likeliest."""

    max_new_tokens: MaxNewTokens = 500
    temperature: Temperature = 0.7
    top_p: TopP = 0.9
