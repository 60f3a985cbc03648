"""The verbs that measure a model: evaluate; and compare, which ranks several."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, app, one_checkpoint, refuse_given, takes
from tiny_transformer.cli.options import CompareOptions, EvaluateOptions
from tiny_transformer.errors import UserError

NOT_OF_TASKS = ("data_dir", "split", "max_batches", "skills", "num_stories", "stories", "config", "tokenizer")
NOT_OF_CASES = ("data_dir", "documents", "prompt", "max_new_tokens", "seed_spread", "out")


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
    from tiny_transformer.evaluation import command

    data_dir = options.data_dir
    if options.config is not None:
        if data_dir is not None:
            raise UserError("--config and --data_dir both name the data", where="command line", remedy="give only one")
        data_dir = command.data_of_config(options.config)
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
