"""The verbs that look at what is there: runs, inspect, replay, doctor, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, CheckpointOption, app, one_checkpoint, refuse_given, takes
from tiny_transformer.errors import ExitCode, UserError, plain
from tiny_transformer.models.find import find_run, find_runs, newest_run


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
        typer.Option(
            help="Watch a model read this text (- for standard input): its guesses, attention, heads and blocks, "
            "on one page."
        ),
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


@app.command(context_settings=SETTINGS)
def runs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Names, directories or globs of runs, or folders of them. Default: runs/, runs_*.",
        ),
    ] = None,
) -> None:
    """List runs: text, size, minutes, loss, state; a run that is named also shows its checkpoints."""
    from tiny_transformer.reports.runs_table import list_runs, print_runs

    named = _noted(*find_runs(paths)) if paths else [Path("runs"), *sorted(Path().glob("runs_*"))]
    found = list_runs(*named)
    if paths and not found:
        shown = ", ".join(map(str, named))
        raise UserError(f"no run in {shown}", where="command line", remedy="tiny-transformer runs lists them all")
    print_runs(Console(), found)


@app.command(context_settings=SETTINGS)
@takes(InspectOptions)
def inspect(context: typer.Context, options: InspectOptions) -> None:
    """Look at what a model reads or, with --prompt, at a model while it reads.

    Prepared data: sequences, with the borders of tokens and documents. A file of conversations: as fine-tuning reads
    them, with the trained part in colour. A model: one HTML page that opens anywhere.
    """
    target = options.target
    if options.prompt is not None:
        from tiny_transformer.inspection.model_page import inspect_model

        of_data = ("split", "index", "count", "seq_len", "packing", "template")
        refuse_given(context, "says nothing about a model", of_data)
        inspect_model(one_checkpoint(options.ckpt_dir, target), options.prompt, options.out, Console())
        return
    if options.out is not None:
        remedy = 'add --prompt "some words", or leave it out'
        raise UserError("--out is for --prompt", where="command line", remedy=remedy)
    from tiny_transformer.data.prepare.files import ROW_SUFFIXES, kind_of

    is_table = target is not None and kind_of(target) in ROW_SUFFIXES
    if target is not None and (is_table or options.template is not None or options.ckpt_dir is not None):
        from tiny_transformer.inspection.conversations import inspect_conversations

        refuse_given(context, "says nothing about conversations", ("split", "seq_len", "packing"))
        shown = {"index": options.index, "count": options.count}
        inspect_conversations(str(target), options.template, options.ckpt_dir, **shown, console=Console())
        return
    if options.ckpt_dir is not None:
        remedy = 'add --prompt "some words", or name a file of conversations'
        raise UserError("--ckpt alone shows nothing", where="command line", remedy=remedy)
    refuse_given(context, "says nothing about prepared data", ("template",))
    from tiny_transformer.inspection import tokens

    how = tokens.InspectOptions(options.split, options.index, options.count, options.seq_len, options.packing)
    tokens.inspect_data(target or Path("data"), how, Console())


@app.command(context_settings=SETTINGS)
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's name or directory.")],
    step: Annotated[int, typer.Option("--step", help="Which update; the first is 1.")],
) -> None:
    """Repeat one step of a run and show its batch, its loss and the gradient of each block.

    Starts from the newest checkpoint before the step and writes nothing. For a loss that is not a number, or one that
    jumped.
    """
    from tiny_transformer.stages.replay import replay as make_again

    make_again(_one(run), step, Console())


@app.command(context_settings=SETTINGS)
def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="A run's name, or a run, checkpoint or data directory. Default: the newest run."
        ),
    ] = None,
) -> None:
    """Verify every byte of a run: which checkpoints are whole, where last and best lead, what is left over."""
    from tiny_transformer.storage.doctor import examine

    report = examine(newest_run() if run is None else _one(run))
    for line in report.lines():
        typer.echo(line)
    if not report.ok:
        raise typer.Exit(ExitCode.BAD_DATA)


@app.command(context_settings=SETTINGS)
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...", help="A run's name or directory; several, or a glob, compare. Default: the newest run."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The page to write. Default: RUN/report.html, or compare.html here."
        ),
    ] = None,
) -> None:
    """Write a run's report.html again: diagnosis, loss beside the best possible, updates, time, settings, samples.

    Of several runs: one page with their loss curves together (by step, tokens or time), the settings that differ, and
    the final figures side by side.
    """
    runs = _noted(*find_runs(runs)) if runs else [newest_run()]
    if len(runs) == 1:
        from tiny_transformer.reports.report import write_report

        typer.echo(plain(write_report(runs[0], out)))
    else:
        from tiny_transformer.reports.compare import DEFAULT_OUT, write_comparison

        typer.echo(plain(write_comparison(runs, out or DEFAULT_OUT)))


def _noted(found: list[Path], notes: list[str]) -> list[Path]:
    """What was found; the notes go to standard error."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return found


def _one(name: Path) -> Path:
    found, note = find_run(name)
    return _noted([found], [note] if note else [])[0]


app.command("list", hidden=True, context_settings=SETTINGS)(runs)
