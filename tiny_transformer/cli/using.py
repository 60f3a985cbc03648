"""The verbs that measure a model: evaluate, and evaluate_checkpoints, which ranks several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, CheckpointArgument, CheckpointToo, app, one_checkpoint
from tiny_transformer.errors import UserError


@app.command(context_settings=SETTINGS)
def evaluate(
    checkpoint: CheckpointArgument = None,
    named: CheckpointToo = None,
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
    stories: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Let the model write N stories and read them: is the hero kept, are sums right?"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    config: Annotated[Path | None, typer.Option(hidden=True)] = None,  # names the data, as it does for train
    tokenizer: Annotated[str, typer.Option(hidden=True)] = "auto",  # as in generate
) -> None:
    """How well a model predicts: loss, perplexity, bits per byte, beside the best possible where that is known.

    A loss below the best possible is no success but a mistake somewhere, and is told as a warning.
    """
    checkpoint = one_checkpoint(checkpoint, named)
    if task or limit is not None:
        from tiny_transformer.evaluation.task_command import run_tasks

        given = {
            "--data_dir": data_dir,
            "--split": split,
            "--max_batches": max_batches,
            "--skills": skills or None,
            "--stories": stories,
            "--config": config,
            "--tokenizer": None if tokenizer == "auto" else tokenizer,
        }
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
    from tiny_transformer.evaluation.command import EvaluateOptions, data_of_config, run_evaluate

    if config is not None:
        if data_dir is not None:
            raise UserError("--config and --data_dir both name the data", where="command line", remedy="give only one")
        data_dir = data_of_config(config)
    options = EvaluateOptions(
        checkpoint, data_dir, split, max_batches, skills, num_stories, stories, device, as_json, tokenizer
    )
    run_evaluate(options, Console(), Console(stderr=True))


@app.command("evaluate_checkpoints", hidden=True, context_settings=SETTINGS)
def evaluate_checkpoints(
    checkpoints: Annotated[
        list[Path], typer.Option(metavar="DIR|GLOB", help="Checkpoints, runs or a glob; may be given several times.")
    ],
    cases: Annotated[Path, typer.Option(metavar="FILE", help="Prompts and targets, in YAML; see cases/.")],
    tokenizer: Annotated[str, typer.Option(help="auto: each checkpoint's own.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Rank checkpoints by how likely each finds the targets of a case file after their prompts; the best first."""
    from tiny_transformer.evaluation.ranking import rank_checkpoints, show_ranking

    show_ranking(rank_checkpoints(checkpoints, cases, tokenizer, device), Console())


app.command("eval_val", hidden=True, context_settings=SETTINGS)(evaluate)
