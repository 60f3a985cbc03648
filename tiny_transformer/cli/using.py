"""The verbs that use a model: generate, evaluate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, CheckpointOption, app
from tiny_transformer.errors import UserError


@app.command(context_settings=SETTINGS)
def generate(
    words: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="The text to continue, too.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The text to continue. Default: what the run was sampled with first.")
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
    prompt = " ".join(words) if words else prompt
    run_generate(
        GenerateOptions(prompt, ckpt_dir, num_samples, tokenizer, device, stream), settings, Console(stderr=True)
    )


def _is_model(path: Path) -> bool:
    """Whether a word names a run or checkpoint and is no prompt."""
    return any((path / name).exists() for name in ("config.json", "config.yaml", "last", "best"))


@app.command(context_settings=SETTINGS)
def evaluate(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CKPT]",
            help="A checkpoint or run directory, or a run's name. Default: the newest best (else last) under runs/.",
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
    task: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Answer the questions of a .jsonl file (HellaSwag, ARC, PIQA, OpenBookQA, WinoGrande, BLiMP, LAMBADA "
            "and their forms) or a folder of them; may be given several times.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="With --task: only so many of the first questions.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """How well a model predicts: loss, perplexity, bits per byte, beside the best possible where that is known.

    A loss below the best possible is no success but a mistake somewhere, and is told as a warning.
    """
    if task or limit is not None:
        from tiny_transformer.evaluation.task_command import run_tasks

        given = {"--data_dir": data_dir, "--split": split, "--max_batches": max_batches, "--skills": skills or None}
        refused = [name for name, value in given.items() if value is not None]
        if refused or not task:
            what = f"{refused[0]} is not for --task" if refused else "--limit is for --task"
            raise UserError(what, where="command line", remedy="leave it out, or evaluate twice")
        run_tasks(
            checkpoint,
            task,
            limit=limit,
            device=device,
            as_json=as_json,
            console=Console(),
            notes=Console(stderr=True),
        )
        return
    from tiny_transformer.evaluation.command import EvaluateOptions, run_evaluate

    options = EvaluateOptions(checkpoint, data_dir, split, max_batches, skills, num_stories, device, as_json)
    run_evaluate(options, Console(), Console(stderr=True))


for _name in ("sample", "infer"):
    app.command(_name, hidden=True, context_settings=SETTINGS)(generate)
