"""The verbs that let a model write: generate, chat."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, app, is_given, takes
from tiny_transformer.cli.options import ChatOptions, ChatSampling, GenerateOptions, SamplingOptions
from tiny_transformer.errors import UserError, command_line

if TYPE_CHECKING:
    from tiny_transformer.generation.sampling import SamplingConfig
    from tiny_transformer.models.open import OpenCheckpoint


@app.command(context_settings=SETTINGS)
@takes(GenerateOptions, SamplingOptions)
def generate(context: typer.Context, options: GenerateOptions, sampling: SamplingOptions) -> None:
    """Let a trained model continue a prompt. Text goes to standard output, everything else to standard error."""
    from tiny_transformer.generation.command import run_generate
    from tiny_transformer.generation.requests import GenerateRequest

    words, checkpoint = list(options.words or []), options.ckpt_dir
    if words and options.prompt is not None:
        both = f"two prompts: {options.prompt!r} and {' '.join(words)!r}"
        raise UserError(both, where="command line", remedy="give one")
    if words and checkpoint is None and _is_model(Path(words[0])):
        checkpoint = Path(words.pop(0))
    if words and checkpoint is None:
        _refuse_name(words)
    prompt = " ".join(words) if words else options.prompt
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

    question, checkpoint = options.question, options.ckpt_dir
    if question is not None and checkpoint is None and _is_model(Path(question)):
        checkpoint, question = Path(question), None
    if question is not None and checkpoint is None:
        _refuse_name([question], verb="chat")
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


def _is_model(path: Path) -> bool:
    """Whether a word names a run or checkpoint and is no prompt."""
    return any((path / name).exists() for name in ("config.json", "base.json", "config.yaml", "last", "best"))


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
