"""The verbs that measure a model: evaluate; and compare, which ranks several."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import (
    SETTINGS,
    CheckpointArgument,
    CheckpointToo,
    Device,
    app,
    one_checkpoint,
    refuse_given,
    takes,
)
from tiny_transformer.errors import UserError

NOT_OF_TASKS = ("data_dir", "split", "max_batches", "skills", "num_stories", "stories", "config", "tokenizer")
NOT_OF_CASES = ("data_dir", "documents", "prompt", "max_new_tokens", "seed_spread", "out")


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
        typer.Option(help="A prompt that each model continues; may be repeated. Default: the run's sample prompts."),
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
            "very weights. Default: measured, or 0.0088.",
        ),
    ] = None
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page to write. Default: compare.html here.")] = (
        None
    )
    tokenizer: Annotated[str, typer.Option(hidden=True)] = "auto"
    device: Device = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False


@app.command(context_settings=SETTINGS)
@takes(EvaluateOptions)
def evaluate(context: typer.Context, options: EvaluateOptions) -> None:
    """How well a model predicts: loss, perplexity and bits per byte, beside the best possible where that is known.

    A loss below the best possible is no success but a mistake somewhere, and brings a warning.
    """
    checkpoint = one_checkpoint(options.checkpoint, options.named)
    if options.task:
        from tiny_transformer.evaluation.task_command import run_tasks

        refuse_given(context, "is not for --task", NOT_OF_TASKS)
        how = {"limit": options.limit, "device": options.device, "as_json": options.as_json}
        run_tasks(checkpoint, options.task, **how, console=Console(), notes=Console(stderr=True))
        return
    refuse_given(context, "is for --task", ("limit",))
    if not options.skills:
        refuse_given(context, "is for --skills", ("num_stories",))
    if options.skills or options.stories is not None:
        other = "--skills" if options.skills else "--stories"
        refuse_given(context, f"is not for {other}", ("max_batches", *(() if options.skills else ("split",))))
    from tiny_transformer.evaluation import command
    from tiny_transformer.evaluation.prepared import data_of_config

    data_dir = options.data_dir
    if options.config is not None:
        if data_dir is not None:
            raise UserError("--config and --data_dir both name the data", where="command line", remedy="give only one")
        data_dir = data_of_config(options.config)
    asked = command.EvaluateOptions(
        checkpoint=checkpoint,
        data_dir=data_dir,
        split=options.split,
        max_batches=options.max_batches,
        skills=options.skills,
        num_stories=options.num_stories,
        stories=options.stories,
        device=options.device,
        as_json=options.as_json,
        tokenizer=options.tokenizer,
    )
    command.run_evaluate(asked, Console(), Console(stderr=True))


@app.command(context_settings=SETTINGS)
@takes(CompareOptions)
def compare(context: typer.Context, options: CompareOptions) -> None:
    """Measure models on the same documents: bits per byte with intervals, the same prompts, size and speed.

    Says which differences are more than chance, of the documents and of the seed. Writes a page with the loss curves of
    their runs too; `report A B` draws these alone and opens no model. Models that learnt from different texts are
    measured and not ranked.
    """
    from tiny_transformer.evaluation.measuring import MeasuringOptions
    from tiny_transformer.reports.compare_command import run_compare

    names = [*(options.names or []), *(options.checkpoints or [])]
    if not names:
        raise UserError("what is compared?", where="command line", remedy="tiny-transformer compare RUN RUN")
    if options.cases is not None:
        _rank_by_cases(context, names, options)
        return
    chosen = {} if options.seed_spread is None else {"seed_spread": options.seed_spread}
    measured = MeasuringOptions(
        data_dir=options.data_dir,
        num_documents=options.documents,
        prompts=tuple(options.prompt or ()),
        max_new_tokens=options.max_new_tokens,
        tokenizer=options.tokenizer,
        device=options.device,
        **chosen,
    )
    consoles = {"console": Console(), "notes": Console(stderr=True)}
    run_compare(names, measured, out=options.out, as_json=options.as_json, **consoles)


def _rank_by_cases(context: typer.Context, names: list[Path], options: CompareOptions) -> None:
    from tiny_transformer.evaluation.ranking import rank_checkpoints, ranking_json, show_ranking

    refuse_given(context, "is not for --cases", NOT_OF_CASES)
    ranked = rank_checkpoints(names, options.cases or Path(), options.tokenizer, options.device)
    if options.as_json:
        print(json.dumps(ranking_json(ranked), indent=2))
    else:
        show_ranking(ranked, Console())


@app.command("evaluate_checkpoints", hidden=True, context_settings=SETTINGS)
@takes(CompareOptions)
def evaluate_checkpoints(context: typer.Context, options: CompareOptions) -> None:
    """Rank checkpoints by how likely each finds the targets of a case file after their prompts: `compare --cases`."""
    if options.cases is None:
        raise UserError("--cases is missing", where="command line", remedy="--cases cases/stories.yaml")
    compare(context, **vars(options))


app.command("eval_val", hidden=True, context_settings=SETTINGS)(evaluate)
