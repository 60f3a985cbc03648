"""The verbs that train a model further, and use what came of it: finetune, align, merge, classify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import OPEN_SETTINGS, SETTINGS, OutDir, app, as_overrides, overrides_of, takes
from tiny_transformer.errors import ExitCode, plain


@dataclass(frozen=True)
class TuningOptions:
    """Of every verb that trains a trained model further."""

    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="A .yaml, .json or .toml file; see configs/.")
    ] = None
    init_from: Annotated[
        Path | None,
        typer.Option("--init_from", metavar="RUN", help="The model to start from: a run, a checkpoint, a directory."),
    ] = None
    lora: Annotated[
        bool,
        typer.Option(
            "--lora", help="Train only low-rank adapters; see also --lora.rank 8, --lora.targets q_proj,v_proj."
        ),
    ] = False
    out_dir: OutDir = None
    minutes: Annotated[float | None, typer.Option(help="Fit the run to this time.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in out_dir exactly where it stopped.")] = (
        False
    )
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in out_dir.")] = False


@dataclass(frozen=True)
class FinetuneOptions(TuningOptions):
    """Of `finetune`."""

    source: Annotated[
        str | None,
        typer.Option(
            help="Records of conversations: .jsonl, .json, .csv or .parquet, a folder or glob, or a data set of the "
            "hub. Alpaca's, question and answer, messages of OpenAI or ShareGPT."
        ),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            help="chatml, qwen3, alpaca, llama3 or plain. Default: what the model was taught, else chatml; with --lora "
            "else alpaca."
        ),
    ] = None


@dataclass(frozen=True)
class AlignOptions(TuningOptions):
    """Of `align`."""

    source: Annotated[
        str | None,
        typer.Option(
            help="Pairs of answers, of which one is preferred: rows with prompt, chosen and rejected, as texts or "
            "messages; for grpo rows with question (or prompt, messages) and answer; in .jsonl, .json, .csv or "
            ".parquet, a folder or glob, or a data set of the hub."
        ),
    ] = None
    method: Annotated[str | None, typer.Option(help="dpo, orpo or grpo. Default: dpo.")] = None
    verifier: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="For grpo, how an answer is scored: exact, regex:PATTERN or FILE.py:function. Default: exact.",
        ),
    ] = None
    template: Annotated[
        str | None, typer.Option(help="chatml, qwen3, alpaca, llama3 or plain. Default: what the model was taught.")
    ] = None


@app.command(context_settings=OPEN_SETTINGS)
@takes(FinetuneOptions)
def finetune(context: typer.Context, options: FinetuneOptions) -> None:
    """Teach a trained model to answer: supervised fine-tuning on conversations, with a loss on the answers alone.

    With nothing to choose: finetune --init_from runs/demo --source FILE --minutes 10. Any key of the config can be set
    too, as in train: --learning_rate 1e-4, --seq_len 512. What is trained, tiny-transformer inspect FILE --template
    chatml shows in colour.
    """
    _train("finetune", context, options, {"data.source": options.source, "finetune.template": options.template})


@app.command(context_settings=OPEN_SETTINGS)
@takes(AlignOptions)
def align(context: typer.Context, options: AlignOptions) -> None:
    """Teach a model which answers are preferred: DPO and ORPO on pairs, GRPO on its own answers and a verifier.

    With nothing to choose: align --init_from runs/tuned --source FILE --minutes 10. Any key of the config can be set
    too, as in train: --beta 0.3, --learning_rate 5e-6. It starts from a model that answers already (finetune).
    """
    own = {
        "data.source": options.source,
        "align.method": options.method,
        "align.template": options.template,
        "grpo.verifier": options.verifier,
    }
    _train("align", context, options, own)


def _train(stage: str, context: typer.Context, options: TuningOptions, own: dict[str, str | None]) -> None:
    """Train as the options say; `own`: those of the verb alone, by the keys of the config."""
    from tiny_transformer.stages.command import run_training

    named = as_overrides({"init_from": options.init_from, **own, "out_dir": options.out_dir})
    words = [f"stage={stage}", *(["lora.enabled=true"] if options.lora else []), *named, *overrides_of(context)]
    status = run_training(
        options.config,
        words,
        resume=options.resume,
        overwrite=options.overwrite,
        console=Console(),
        minutes=options.minutes,
    )
    if status == "stopped":
        raise typer.Exit(ExitCode.STOPPED)


@app.command(context_settings=SETTINGS)
def merge(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|DIR", help="A run or checkpoint with adapters, or adapters that PEFT saved.")
    ],
    out_dir: Annotated[
        Path, typer.Option("--out_dir", metavar="DIR", help="The directory to write; it must not exist yet.")
    ],
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The model under the adapters. Default: what they name.")
    ] = None,
) -> None:
    """Merge adapters into their base model, for programs that cannot read adapters."""
    from tiny_transformer.interop.merging import merge as merge_layers

    taken = merge_layers(source, out_dir, base=base)
    Console().print(f"wrote {plain(out_dir)}, of {plain(taken)}", highlight=False, markup=False, soft_wrap=True)


@app.command(context_settings=SETTINGS)
def classify(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="[CKPT]", help="A classifier: run, checkpoint or directory.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to label; may be repeated.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts: rows of .jsonl, .json, .csv or .parquet, or one text per line."),
    ] = None,
    text_field: Annotated[str, typer.Option("--text_field", help="The field of a row that holds the text.")] = "text",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Label texts with a trained classifier; prints one line of JSON per text.

    One is made with: train --stage classify --init_from runs/demo --source FILE, with rows of text and label.
    """
    from tiny_transformer.evaluation.classify_command import run_classify

    run_classify(checkpoint, text or [], file, text_field=text_field, device=device)
