"""What `tiny-transformer generate` does: find the checkpoint, load it, write."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import UserError
from tiny_transformer.generation.rows import check_prompts
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import encode_prompt, write
from tiny_transformer.models.open import open_checkpoint

DEFAULT_PROMPT = "Once upon a time"


@dataclass(frozen=True)
class GenerateOptions:
    """What is generated, besides how it is sampled.

    Attributes:
        prompt: the text to continue; None for the first one that the run was sampled with.
        checkpoint: a checkpoint or run directory, or a run's name; None for the newest.
        num_samples: how many continuations.
        tokenizer: `auto`, or a name that must mean the checkpoint's own tokenizer.
        device: `auto`, `cpu`, `cuda` or `mps`.
        stream: show each piece as it is written.
        adapter: a directory of low-rank adapters to put on the model.
    """

    prompt: str | None = None
    checkpoint: Path | None = None
    num_samples: int = 1
    tokenizer: str = "auto"
    device: str = "auto"
    stream: bool = False
    adapter: Path | None = None


def run_generate(options: GenerateOptions, settings: SamplingConfig, notes: Console) -> None:
    """Write continuations of a prompt to standard output; what was chosen goes to `notes`.

    Raises:
        UserError: no checkpoint, a damaged one, another tokenizer, or a prompt it cannot encode.
    """
    if options.num_samples < 1:
        raise UserError(f"num_samples = {options.num_samples} is not possible", remedy="num_samples: 1 or more")
    opened = open_checkpoint(options.checkpoint, device=options.device)
    opened.check_tokenizer(options.tokenizer)
    prompt = _prompt_of(opened.path) if options.prompt is None else options.prompt
    # A prompt that the model cannot read is refused before the weights are read.
    config, tokenizer, prompt_ids = opened.config, opened.tokenizer, encode_prompt(opened.tokenizer, prompt)
    vocab_size = config.vocab_size or tokenizer.vocab_size
    check_prompts([prompt_ids], vocab_size=vocab_size, context_length=config.max_position_embeddings)
    model = opened.model
    if options.adapter is not None:
        from tiny_transformer.models.adapters import load_adapter

        load_adapter(model, options.adapter)
    notes.print(f"[dim]{escape(opened.sentence)}; seed {settings.seed}[/]", highlight=False, soft_wrap=True)
    rows = [""] * options.num_samples
    if options.stream:
        _show(prompt)
    prompts = [prompt] * options.num_samples
    for row, piece in write(model, tokenizer, prompts, settings, opened.end_ids):
        if options.stream and row == 0:  # the other rows are written beside it and shown after it
            _show(piece)
        else:
            rows[row] += piece
    for row, text in enumerate(rows):
        head = "" if options.stream and row == 0 else prompt
        _show(("\n---\n\n" if row else "") + head + text + "\n")


def _prompt_of(checkpoint: Path) -> str:
    """A prompt that fits what the model has read."""
    with suppress(UserError):  # a checkpoint that stands alone, or a config of another version
        prompts = load_run_config(checkpoint.resolve().parent / "config.yaml").training.sample_prompts
        return prompts[0] if prompts else DEFAULT_PROMPT
    return DEFAULT_PROMPT


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
