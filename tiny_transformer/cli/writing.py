"""The verbs that let a model write: generate, chat."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, CheckpointOption, app, is_given
from tiny_transformer.errors import UserError, command_line

MaxNewTokens = Annotated[
    int, typer.Option("--max_new_tokens", "--max_tokens", "--max_length", help="Longest continuation.")
]
Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest word each time; 1 draws as the model believes.")
]
TopK = Annotated[int | None, typer.Option("--top_k", help="Draw among the k likeliest words only.")]
TopP = Annotated[
    float | None,
    typer.Option("--top_p", help="Draw among the likeliest words that together have this probability."),
]
MinP = Annotated[
    float | None, typer.Option("--min_p", help="Draw among words at least this likely, relative to the likeliest.")
]
RepetitionPenalty = Annotated[
    float, typer.Option("--repetition_penalty", help="Above 1 makes words that were used less likely.")
]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]
Seed = Annotated[
    int | None, typer.Option(help="The same seed gives the same text. Default: a new one each time, shown.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Engine = Annotated[
    str,
    typer.Option(
        help="Who computes the tokens of one text on a CPU: plain, fast (compiled by Numba, several times quicker), or "
        "auto: fast where it can be had and pays."
    ),
]


@app.command(context_settings=SETTINGS)
def generate(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="The text to continue, too.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The text to continue; - reads it from standard input. Default: on a terminal you type it, "
            "elsewhere what the run was sampled with first."
        ),
    ] = None,
    ckpt_dir: CheckpointOption = None,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    num_samples: Annotated[int, typer.Option("--num_samples", "--samples", help="How many continuations.")] = 1,
    seed: Seed = None,
    tokenizer: Annotated[
        str, typer.Option(help="auto takes the checkpoint's own; another name is only accepted when it is the same.")
    ] = "auto",
    device: Device = "auto",
    engine: Engine = "auto",
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
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", help="Prompts of a file that are read at once. Default: 16.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each text.")] = False,
    vote: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Of several samples show the one that wins. majority: the commonest answer (after ####, else the last "
            "number, else all); regex:PATTERN: of its first group; verifier:FILE.py:function: the highest score.",
        ),
    ] = None,
    speculative: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFT",
            help="Draft tokens ahead and check several a pass; the text stays the same. ngram: from earlier text; mtp: "
            "with the model's own MTP head; or a smaller model's run. Says whether it paid.",
        ),
    ] = None,
    num_draft_tokens: Annotated[
        int | None, typer.Option("--num_draft_tokens", help="The most tokens drafted at once. Default: 4.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Type prompts, one after the other, into one running text.")
    ] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="RUN|DIR", help="Low-rank adapters to put on the model: a run, or what PEFT saved."),
    ] = None,
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
        seed=_seed(seed),
    )
    if words and prompt is not None:
        raise UserError(f"two prompts: {prompt!r} and {' '.join(words)!r}", where="command line", remedy="give one")
    if words and ckpt_dir is None and _is_model(Path(words[0])):
        ckpt_dir = Path(words.pop(0))
    if words and ckpt_dir is None:
        _refuse_name(words)
    prompt = " ".join(words) if words else prompt
    is_one_text = prompt is None and prompts is None and num_samples == 1 and not as_json
    options = GenerateOptions(
        prompt=prompt,
        checkpoint=ckpt_dir,
        num_samples=num_samples,
        tokenizer=tokenizer,
        device=device,
        engine=engine,
        stream=stream,
        as_json=as_json,
        prompts=prompts,
        out=out,
        batch_size=batch_size,
        speculative=speculative,
        vote=vote,
        num_draft_tokens=num_draft_tokens,
        is_seed_chosen=is_given(context, "seed"),
        adapter=adapter,
        interactive=interactive or (is_one_text and out is None and sys.stdin.isatty() and sys.stdout.isatty()),
    )
    run_generate(options, settings, Console(stderr=True))


@app.command(context_settings=SETTINGS)
def chat(
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="One question to answer; - reads it from standard input.")
    ] = None,
    ckpt_dir: CheckpointOption = None,
    system: Annotated[str, typer.Option(help="What the model is told before the first question.")] = "",
    max_new_tokens: MaxNewTokens = 500,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = 0.9,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = None,
    device: Device = "auto",
    engine: Engine = "auto",
) -> None:
    """Talk with a model that was taught to; one that was not continues text. /help lists what can be typed."""
    from tiny_transformer.generation.command import ChatOptions, run_chat
    from tiny_transformer.generation.sampling import SamplingConfig

    settings = SamplingConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        seed=_seed(seed),
    )
    if question is not None and ckpt_dir is None and _is_model(Path(question)):
        ckpt_dir, question = Path(question), None
    if question is not None and ckpt_dir is None:
        _refuse_name([question], verb="chat")
    run_chat(ChatOptions(ckpt_dir, question, system, device, engine), settings, Console(stderr=True))


def _seed(seed: int | None) -> int:
    """The seed that was given, else a new one."""
    return seed if seed is not None else int.from_bytes(os.urandom(4), "little")


def _is_model(path: Path) -> bool:
    """Whether a word names a run or checkpoint and is no prompt."""
    return any((path / name).exists() for name in ("config.json", "config.yaml", "last", "best"))


def _refuse_name(words: list[str], verb: str = "generate") -> None:
    """A single word that is a run's name is more likely meant as one than as a prompt: ask."""
    from tiny_transformer.models.find import RUNS_DIR

    name = words[0]
    if len(words) == 1 and Path(name).name == name and _is_model(RUNS_DIR / name):
        raise UserError(
            f"{name} is the name of a run, and stands here as a text" + "; --prompt means it so" * (verb == "generate"),
            where="command line",
            remedy=command_line("tiny-transformer", verb, "--ckpt", name),
        )


for _name in ("sample", "infer"):
    app.command(_name, hidden=True, context_settings=SETTINGS)(generate)
