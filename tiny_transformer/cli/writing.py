"""The verbs that let a model write: generate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, CheckpointOption, app, is_given
from tiny_transformer.errors import UserError


@app.command(context_settings=SETTINGS)
def generate(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="The text to continue, too.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The text to continue; - reads it from standard input. Default: what the run was sampled with first."
        ),
    ] = None,
    ckpt_dir: CheckpointOption = None,
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
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Many prompts: a line each of a .txt, or the `prompt` of each object of a .jsonl; - reads lines.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the answers to --prompts go, as JSON lines; goes on where it was."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", help="Prompts of a file that are read at once.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each text.")] = False,
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
    if words and prompt is not None:
        raise UserError(f"two prompts: {prompt!r} and {' '.join(words)!r}", where="command line", remedy="give one")
    if words and ckpt_dir is None and _is_model(Path(words[0])):
        ckpt_dir = Path(words.pop(0))
    if words and ckpt_dir is None:
        _refuse_name(words)
    options = GenerateOptions(
        prompt=" ".join(words) if words else prompt,
        checkpoint=ckpt_dir,
        num_samples=num_samples,
        tokenizer=tokenizer,
        device=device,
        stream=stream,
        as_json=as_json,
        prompts=prompts,
        out=out,
        batch_size=batch_size,
        is_seed_chosen=is_given(context, "seed"),
    )
    run_generate(options, settings, Console(stderr=True))


def _is_model(path: Path) -> bool:
    """Whether a word names a run or checkpoint and is no prompt."""
    return any((path / name).exists() for name in ("config.json", "config.yaml", "last", "best"))


def _refuse_name(words: list[str]) -> None:
    """A single word that is a run's name is more likely meant as one than as a prompt: ask."""
    from tiny_transformer.models.find import RUNS_DIR

    name = words[0]
    if len(words) == 1 and Path(name).name == name and _is_model(RUNS_DIR / name):
        raise UserError(
            f"{name} is the name of a run; as a prompt it stands after --prompt",
            where="command line",
            remedy=f"tiny-transformer generate --ckpt {name}",
        )


for _name in ("sample", "infer"):
    app.command(_name, hidden=True, context_settings=SETTINGS)(generate)
