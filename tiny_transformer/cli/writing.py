"""The verbs that let a model write: generate, chat."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, CheckpointOption, Device, app, is_given, takes
from tiny_transformer.errors import UserError, command_line

if TYPE_CHECKING:
    from tiny_transformer.generation.sampling import SamplingConfig
    from tiny_transformer.models.open import OpenCheckpoint


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

    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="One question to answer; - reads it from standard input."),
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


@app.command(context_settings=SETTINGS)
@takes(GenerateOptions, SamplingOptions)
def generate(context: typer.Context, options: GenerateOptions, sampling: SamplingOptions) -> None:
    """Let a trained model continue a prompt. Text goes to standard output, everything else to standard error."""
    from tiny_transformer.generation.command import run_generate
    from tiny_transformer.generation.requests import GenerateRequest

    has_text = options.prompt is not None or options.prompts is not None or options.interactive
    checkpoint, text = _model_and_text(options.words, options.ckpt_dir, "generate", has_text=has_text)
    if text is not None and options.prompt is not None:
        both = f"two prompts: {options.prompt!r} and {text!r}"
        raise UserError(both, where="command line", remedy="give one")
    prompt = options.prompt if text is None else text
    is_one_text = prompt is None and options.prompts is None and options.num_samples == 1 and not options.as_json
    is_typed = is_one_text and options.out is None and sys.stdin.isatty() and sys.stdout.isatty()
    same = ("num_samples", "tokenizer", "stream", "as_json", "prompts", "out", "batch_size")
    same += ("speculative", "num_draft_tokens", "vote", "adapter")
    notes = Console(stderr=True)
    if options.plot:
        from tiny_transformer.inspection.attention_file import check_plot

        check_plot()

    def watch(opened: OpenCheckpoint, ids: list[int]) -> None:
        from tiny_transformer.inspection.attention_file import save_attention

        save_attention(opened, ids, notes, plot=options.plot)

    request = GenerateRequest(
        prompt=prompt,
        checkpoint=checkpoint,
        device=sampling.device,
        engine=sampling.engine,
        is_seed_chosen=is_given(context, "seed"),
        interactive=options.interactive or is_typed,
        log_attention=options.log_attention or options.plot,
        **{name: getattr(options, name) for name in same},
    )
    run_generate(request, _settings(context, sampling), notes, watch)


@app.command(context_settings=SETTINGS)
@takes(ChatOptions, ChatSampling)
def chat(context: typer.Context, options: ChatOptions, sampling: ChatSampling) -> None:
    """Talk with a model that was taught to; one that was not continues text. /help lists what can be typed."""
    from tiny_transformer.generation.command import run_chat
    from tiny_transformer.generation.requests import ChatRequest

    checkpoint, question = _model_and_text(options.words, options.ckpt_dir, "chat")
    request = ChatRequest(
        checkpoint, question, options.system, sampling.device, sampling.engine, runs_template=options.run_template
    )
    run_chat(request, _settings(context, sampling), Console(stderr=True))


def _settings(context: typer.Context, sampling: SamplingOptions) -> SamplingConfig:
    """How text is drawn; without a seed, by a new one."""
    from tiny_transformer.generation.sampling import FILTERS, SamplingConfig, refuse_idle

    named = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    chosen = {name: named[name] for name in named if name not in ("device", "engine", "stop")}
    refuse_idle(chosen, {name for name in FILTERS if is_given(context, name)})
    if chosen["seed"] is None:
        chosen["seed"] = int.from_bytes(os.urandom(4), "little")
    return SamplingConfig(**chosen, stop=tuple(sampling.stop or ()))


def _model_and_text(
    words: list[str] | None, checkpoint: Path | None, verb: str, *, has_text: bool = False
) -> tuple[Path | None, str | None]:
    """What words without an option mean: perhaps a model, if none is named, and then a text. Where an option brings the
    text, the name of a run can only be the model."""
    from tiny_transformer.models.find import RUNS_DIR, looks_like_model

    words = list(words or [])
    places = [Path(), RUNS_DIR] if has_text else [Path()]
    if words and checkpoint is None and any(looks_like_model(place / words[0]) for place in places):
        checkpoint = Path(words.pop(0))
    if words and checkpoint is None:
        _refuse_name(words, verb)
    return checkpoint, " ".join(words) if words else None


def _refuse_name(words: list[str], verb: str) -> None:
    """A first word that is a run's name is more likely meant as one than as the beginning of a text: ask."""
    from tiny_transformer.models.find import RUNS_DIR, looks_like_model

    name = words[0]
    if Path(name).name == name and looks_like_model(RUNS_DIR / name):
        raise UserError(
            f"{name} is the name of a run, and stands here as a text" + "; --prompt means it so" * (verb == "generate"),
            where="command line",
            remedy=command_line("tiny-transformer", verb, "--ckpt", *words),
        )


for _name in ("sample", "infer"):
    app.command(_name, hidden=True, context_settings=SETTINGS)(generate)
