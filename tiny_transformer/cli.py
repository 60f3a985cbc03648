"""The command `tiny-transformer`: one verb per job. A verb parses, calls a library function and prints; it holds no
logic.

Nothing heavy is imported here: torch comes in inside the verbs that compute.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.exceptions import TyperException

from tiny_transformer import __version__
from tiny_transformer.errors import ExitCode, UserError

# --out-dir and --out_dir are the same option
_SETTINGS: dict[str, Any] = {
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "help_option_names": ["-h", "--help"],
}
_OPEN_SETTINGS = {**_SETTINGS, "allow_extra_args": True, "ignore_unknown_options": True}

_SOURCE_HELP = (
    "A name (stories, tinystories, wikipedia, wiki-intros, wiki-bookscorpus), a hub id, or a file, folder or glob "
    "of .txt .md .jsonl .parquet, also .gz .xz .zst."
)

app = typer.Typer(
    name="tiny-transformer",
    help="Read, train and own a small language model: from text to a model that writes.",
    epilog="Start with: tiny-transformer train --config configs/demo.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings=_SETTINGS,
    pretty_exceptions_enable=False,
)

OutDir = Annotated[
    Path | None, typer.Option("--out_dir", metavar="DIR", help="Where the run goes. Default: runs/NAME of the config.")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--ckpt_dir",
        "--ckpt",
        "--checkpoint",
        metavar="DIR",
        help="A checkpoint or run directory. Default: the newest best (else last) under runs/.",
    ),
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(f"tiny-transformer {__version__}")
        raise typer.Exit


@app.command(context_settings=_SETTINGS)
def prepare(
    source: Annotated[
        str,
        typer.Option(help=_SOURCE_HELP),
    ] = "stories",
    out_dir: Annotated[
        Path, typer.Option("--out_dir", metavar="DIR", help="Where train.bin, val.bin and meta.json go.")
    ] = Path("data"),
    tokenizer: Annotated[
        str,
        typer.Option(help="bpe (trained on this text), byte, char, gpt2, qwen3, or a tokenizer directory or hub id."),
    ] = "bpe",
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab_size", help="Words of a bpe trained here. Default: chosen from the amount of text."),
    ] = None,
    seq_len: Annotated[
        int,
        typer.Option("--seq_len", help="Tokens in a training sequence; noted in meta.json, a run may choose another."),
    ] = 512,
    max_bytes: Annotated[int | None, typer.Option("--max_bytes", help="Stop after this many bytes of text.")] = None,
    val_fraction: Annotated[
        float, typer.Option("--val_fraction", help="Share of the documents kept for validation.")
    ] = 0.02,
    text_field: Annotated[
        str, typer.Option("--text_field", help="The field with the text in .jsonl, .parquet and hub rows.")
    ] = "text",
    workers: Annotated[int | None, typer.Option(help="Threads that encode. Default: one per core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other prepared data in out_dir.")] = False,
) -> None:
    """Turn text into token files that training reads: train.bin, val.bin, meta.json.

    Without options the built-in story corpus is written, tokenized with a vocabulary trained on it.
    """
    from tiny_transformer.data.prepare import prepare_with_progress

    console = Console()
    prepare_with_progress(
        source,
        console=console,
        out_dir=out_dir,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        seq_len=seq_len,
        max_bytes=max_bytes,
        val_fraction=val_fraction,
        text_field=text_field,
        workers=workers,
        overwrite=overwrite,
    )
    console.print(f"\nnext: tiny-transformer train --config configs/demo.yaml --data_dir {out_dir}", highlight=False)


@app.command(context_settings=_OPEN_SETTINGS)
def train(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|PRESET", help="A .yaml, .json or .toml file, or a preset: tiny, small, medium, large, gpt2."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir", metavar="DIR", help="Prepared token files. Default: data/NAME, prepared when missing."
        ),
    ] = None,
    out_dir: OutDir = None,
    steps: Annotated[int | None, typer.Option(help="Updates of the weights.")] = None,
    max_train_minutes: Annotated[
        float | None,
        typer.Option(
            "--max_train_minutes",
            help="Fit the run to this time instead: steps, warm-up and decay follow from the measured speed.",
        ),
    ] = None,
    eval_steps: Annotated[
        int | None, typer.Option("--eval_steps", help="Evaluate every so many steps and keep the best checkpoint.")
    ] = None,
    save_steps: Annotated[
        int | None, typer.Option("--save_steps", help="Save a checkpoint every so many steps.")
    ] = None,
    early_stopping_patience: Annotated[
        int | None, typer.Option("--early_stopping_patience", help="Stop after so many evaluations without gain.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Multiply in bf16 where the device has it in hardware.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in out_dir (or the newest of this config) exactly where it stood."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in out_dir.")] = False,
) -> None:
    """Train a language model, then show its loss, three samples and a report.

    Any other key of the config can be set too: --learning_rate 3e-4, --model.hidden_size 128, training.seed=7
    (docs/CONFIG_REFERENCE.md lists them). Ctrl+C saves and leaves; --resume continues bit for bit.
    """
    flags = {
        "data.data_dir": data_dir,
        "out_dir": out_dir,
        "training.steps": steps,
        "training.max_train_minutes": max_train_minutes,
        "training.eval_steps": eval_steps,
        "training.save_steps": save_steps,
        "training.early_stopping_patience": early_stopping_patience,
        "training.precision": "bf16" if bf16 else None,
    }
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None] + _overrides(context)
    from tiny_transformer.training.command import run_training

    status = run_training(config, overrides, resume=resume, overwrite=overwrite, console=Console())
    if status == "stopped":
        raise typer.Exit(ExitCode.STOPPED)


@app.command(context_settings=_OPEN_SETTINGS)
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
    from tiny_transformer.inspection.profile import run_profile

    run_profile(config or named, _overrides(context), as_json=as_json, console=Console())


@app.command(context_settings=_SETTINGS)
def generate(
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "Once upon a time",
    ckpt_dir: Checkpoint = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", "--max_tokens", "--max_length", help="Longest continuation.")
    ] = 200,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest word each time; 1 draws as the model believes.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top_k", help="Draw among the k likeliest words only.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top_p", help="Draw among the likeliest words that together have this probability."),
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min_p", help="Draw among words at least this likely, relative to the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition_penalty", help="Above 1 makes words that were used less likely.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    num_samples: Annotated[int, typer.Option("--num_samples", help="How many continuations.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same text. Default: a new one each time, shown.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="auto takes the checkpoint's own; another name is only accepted when it is the same.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    stream: Annotated[bool, typer.Option("--stream", help="Print each word as it is written.")] = False,
) -> None:
    """Let a trained model continue a prompt. Text goes to standard output, everything else to standard error."""
    from tiny_transformer.generation.command import GenerateOptions, run_generate
    from tiny_transformer.generation.sampling import SamplingConfig

    settings = SamplingConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        seed=seed if seed is not None else int.from_bytes(os.urandom(4), "little"),
    )
    run_generate(
        GenerateOptions(prompt, ckpt_dir, num_samples, tokenizer, device, stream), settings, Console(stderr=True)
    )


@app.command(context_settings=_SETTINGS)
def evaluate(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CKPT]", help="A checkpoint or run directory. Default: the newest best (else last) under runs/."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data_dir", metavar="DIR", help="Prepared data. Default: what the run learnt from.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="val or train. Default: val; with --skills fresh stories, never seen before.")
    ] = None,
    max_batches: Annotated[
        int | None, typer.Option("--max_batches", help="Score so many batches of 16 sequences. Default: all.")
    ] = None,
    skills: Annotated[
        bool, typer.Option("--skills", help="What is lost by skill and by place in the story (story corpus only).")
    ] = False,
    num_stories: Annotated[int, typer.Option("--num_stories", help="How many stories --skills reads.")] = 500,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """How well a model predicts: loss, perplexity, bits per byte, beside the best possible where that is known.

    A loss below the best possible is no success but a mistake somewhere, and is told as a warning.
    """
    from tiny_transformer.evaluation.command import EvaluateOptions, run_evaluate

    options = EvaluateOptions(checkpoint, data_dir, split, max_batches, skills, num_stories, device, as_json)
    run_evaluate(options, Console(), Console(stderr=True))


@app.command(context_settings=_SETTINGS)
def runs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Run directories, or folders of runs. Default: runs/ and runs_*."),
    ] = None,
) -> None:
    """A table of runs and checkpoints: step, epoch, losses, size, age."""
    from tiny_transformer.inspection.runs import list_runs, print_runs

    print_runs(Console(), list_runs(*(paths or [Path("runs"), *sorted(Path().glob("runs_*"))])))


@app.command(context_settings=_SETTINGS)
def inspect(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A directory of prepared data.")] = Path("data"),
    split: Annotated[str, typer.Option(help="train or val.")] = "train",
    index: Annotated[int, typer.Option(help="The first sequence shown, in the order of the file.")] = 0,
    count: Annotated[int, typer.Option(help="How many sequences.")] = 2,
    seq_len: Annotated[
        int | None, typer.Option("--seq_len", help="Tokens in a sequence. Default: what the data was prepared for.")
    ] = None,
    packing: Annotated[
        str, typer.Option(help="concat joins documents and cuts; documents packs whole ones, as a run would.")
    ] = "concat",
) -> None:
    """Look at what a model reads: sequences of prepared data with the borders of tokens and documents."""
    from tiny_transformer.inspection.tokens import InspectOptions, inspect_data

    inspect_data(target, InspectOptions(split, index, count, seq_len, packing), Console())


@app.command(context_settings=_SETTINGS)
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    step: Annotated[int, typer.Option("--step", help="Which update; the first is 1.")],
) -> None:
    """Make one step of a run again and look at it: its batch, its loss, each block's gradient.

    Starts from the newest checkpoint before the step and writes nothing. For a loss that is not a number, or one that
    jumped.
    """
    from tiny_transformer.training.replay import replay as make_again

    make_again(run, step, Console())


@app.command(context_settings=_SETTINGS)
def doctor(run: Annotated[Path, typer.Argument(metavar="DIR", help="A run, checkpoint or data directory.")]) -> None:
    """Check every byte of a run: which checkpoints are whole, where last and best lead, what is left over."""
    from tiny_transformer.storage.doctor import examine

    report = examine(run)
    for line in report.lines():
        typer.echo(line)
    if not report.ok:
        raise typer.Exit(ExitCode.BAD_DATA)


@app.command(context_settings=_SETTINGS)
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Write a run's report.html again: loss beside the best possible, speed, settings, samples."""
    from tiny_transformer.inspection.report import write_report

    typer.echo(write_report(run))


@app.command(context_settings=_SETTINGS)
def export(
    ckpt_dir: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="A checkpoint or run directory. Default: the newest best under runs/."),
    ] = None,
    gguf: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="f32 (exact), f16 (half the size), q8_0 (8.5 bits a weight) or q4_0 (4.5 bits, a little worse).",
        ),
    ] = "f16",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: RUN-TYPE.gguf in the current directory.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
) -> None:
    """Write a model, its tokenizer included, as one GGUF file for llama.cpp, Ollama, LM Studio and the like.

    transformers, vLLM and mlx-lm need no export: they open the checkpoint directory as it is.
    """
    from tiny_transformer.interop.command import run_export

    run_export(ckpt_dir, kind=gguf, out=out, overwrite=overwrite, console=Console())


@app.command("import", context_settings=_SETTINGS)
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A Hugging Face directory, a llama2.c .bin, or token files.")
    ],
    out_dir: Annotated[
        Path, typer.Option("--out_dir", metavar="DIR", help="Where it goes; a directory that does not exist yet.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="For a llama2.c model its tokenizer.bin; for train.bin and val.bin a name such as gpt2."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of token files, which do not say: uint16 or uint32.")] = "uint16",
) -> None:
    """Bring in a model or token files of another program: checked, in one piece, readable by every verb here.

    Pickled files (.pt, .pth, .ckpt, .pkl) are never read: loading one can run any program.
    """
    from tiny_transformer.interop.command import run_import

    run_import(source, out_dir=out_dir, tokenizer=tokenizer, dtype=dtype, console=Console())


for _name, _command in {"sample": generate, "infer": generate, "list": runs}.items():
    app.command(_name, hidden=True, context_settings=_SETTINGS)(_command)


def _overrides(context: typer.Context) -> list[str]:
    """What is left on the command line as `key=value`: `--key value`, `--key=value` or `key=value`."""
    overrides, words = [], list(context.args)
    while words:
        word = words.pop(0)
        if "=" in word:
            overrides.append(word.removeprefix("--"))
        elif word.startswith("--") and words and not words[0].startswith("--"):
            overrides.append(f"{word[2:].replace('-', '_')}={words.pop(0)}")
        else:
            known = [name for option in context.command.params for name in option.opts]
            near = difflib.get_close_matches(word, known, n=1)
            raise UserError(
                f"no such option or key: {word}",
                where="command line",
                remedy=f"did you mean {near[0]}?" if near else "tiny-transformer train --help",
            )
    return overrides


def main(arguments: list[str] | None = None, prog: str = "tiny-transformer") -> None:
    """Run a command line and end the process with one of `ExitCode`."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments, prog))


def run(arguments: list[str], prog: str = "tiny-transformer") -> int:
    """Run a command line; the exit code."""
    try:
        code = app(arguments, prog_name=prog, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.OK
    except UserError as error:
        typer.echo(str(error), err=True)
        return error.exit_code
    except typer.Exit as ended:
        return ended.exit_code
    except TyperException as error:
        typer.echo(f"error: {error.format_message()}\n  try: {prog} --help", err=True)
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader of our output left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except OSError as error:
        where = f"\n   in: {error.filename}" if error.filename else ""
        remedy = "\n  try: check the disk and permissions, then run the command again"
        typer.echo(f"error: {error.strerror or error}{where}{remedy}", err=True)
        return ExitCode.IO
    except Exception:
        traceback.print_exc()
        typer.echo(
            "\nThis is a bug in tiny-transformer, not in your input. Please report it with the lines above.", err=True
        )
        return ExitCode.INTERNAL


if __name__ == "__main__":
    main()
