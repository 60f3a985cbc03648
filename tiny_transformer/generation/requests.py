"""What is asked of `generate` and `chat`, and which requests contradict themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiny_transformer.errors import UserError
from tiny_transformer.generation.engines import check_engine
from tiny_transformer.generation.sampling import SamplingConfig


@dataclass(frozen=True)
class GenerateRequest:
    """What is generated, besides how it is sampled.

    Attributes:
        prompt: the text to continue, `-` for standard input; None for the first one that the run was sampled with.
        checkpoint: a checkpoint or run directory, or a run's name; None for the newest.
        num_samples: how many continuations.
        tokenizer: `auto`, or a name that must mean the checkpoint's own tokenizer.
        device: `auto`, `cpu`, `cuda` or `mps`.
        stream: show each piece as it is written.
        as_json: print one JSON object a continuation.
        prompts: a file of prompts instead of one; `-` for lines of standard input.
        out: where the answers to `prompts` go; None: standard output.
        batch_size: how many prompts of a file are answered side by side; None: 16.
        is_seed_chosen: False: an output that is gone on with names the seed.
        interactive: read prompts from the terminal, one after the other, into one running text.
        speculative: who drafts tokens ahead: `ngram`, `mtp`, or a checkpoint or run of a smaller model; None: what the
            run's config says.
        num_draft_tokens: the most that are drafted at once; None: 4.
        engine: who computes single tokens of one text: see `engines.choose_engine`.
        vote: show of several continuations the one that wins: `majority`, `regex:PATTERN` or `verifier:FILE.py:name`.
        adapter: a directory of low-rank adapters to put on the model.
        log_attention: hand the tokens of the text to `watch`; where it is not asked for, the run's config decides.
    """

    prompt: str | None = None
    checkpoint: Path | None = None
    num_samples: int = 1
    tokenizer: str = "auto"
    device: str = "auto"
    stream: bool = False
    as_json: bool = False
    prompts: Path | None = None
    out: Path | None = None
    batch_size: int | None = None
    is_seed_chosen: bool = True
    interactive: bool = False
    speculative: str | None = None
    num_draft_tokens: int | None = None
    vote: str | None = None
    engine: str = "auto"
    adapter: Path | None = None
    log_attention: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """Who is talked with.

    Attributes:
        checkpoint: as for `generate`.
        question: one to answer, `-` for standard input; None to talk.
        system: what the model is told first.
        device: `auto`, `cpu`, `cuda` or `mps`.
        engine: as for `generate`.
        runs_template: whether a chat template that is not one of ours may be run.
    """

    checkpoint: Path | None = None
    question: str | None = None
    system: str = ""
    device: str = "auto"
    engine: str = "auto"
    runs_template: bool = False


def check_request(options: GenerateRequest, settings: SamplingConfig) -> None:
    """Refuse what cannot be, or what would be passed over."""
    for name in ("num_samples", "batch_size", "num_draft_tokens"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name} {value} is not possible", remedy=f"--{name}: 1 or more")
    check_engine(options.engine)
    if options.batch_size is not None and options.prompts is None:
        raise UserError("--batch_size is for --prompts", where="command line", remedy="leave it out, or --prompts FILE")
    many = (
        ("--prompts", options.prompts),
        ("--num_samples", options.num_samples > 1),
        ("--speculative", options.speculative),
    )
    if options.engine == "fast" and (beside := [name for name, value in many if value]):
        what = f"--engine fast computes one token of one text at a time, and {beside[0]} is given"
        raise UserError(what, where="command line", remedy="leave one of them out")
    if options.prompts is not None and options.prompt is not None:
        raise UserError("--prompt and --prompts are both given", where="command line", remedy="give one of them")
    if options.prompts is not None and options.stream:
        raise UserError("--stream shows one text, and --prompts has many", where="command line", remedy="leave one out")
    drafting = (("--speculative", options.speculative), ("--num_draft_tokens", options.num_draft_tokens))
    drafted = [name for name, value in drafting if value is not None]
    if drafted and options.prompts is not None:
        remedy = f"leave {drafted[0]} out: it writes text after text, and --prompts many side by side"
        raise UserError(f"{drafted[0]} and --prompts are both given", where="command line", remedy=remedy)
    if options.vote is not None and (options.stream or options.prompts is not None or options.interactive):
        remedy = "leave out --stream, --prompts and --interactive"
        raise UserError("--vote shows one text of one prompt", where="command line", remedy=remedy)
    if options.vote is not None and options.num_samples < 2:
        raise UserError("--vote needs several texts", where="command line", remedy="--samples 8 or so")
    if options.vote is not None and settings.temperature == 0:
        raise UserError("--vote with --temperature 0: all texts are the same", remedy="--temperature 0.7 or so")
    if options.out is not None and options.prompts is None:
        raise UserError("--out needs --prompts", where="command line", remedy="--prompts FILE, or redirect with > FILE")
    one_text = (("--prompt", options.prompt), ("--prompts", options.prompts), ("--json", options.as_json))
    if options.interactive and (beside := [name for name, value in one_text if value]):
        remedy = "leave one out, or: tiny-transformer chat"
        raise UserError(f"--interactive and {beside[0]} are both given", where="command line", remedy=remedy)
    if options.interactive and drafted:
        what = f"{drafted[0]} is for a text that is given, not for one that is typed"
        raise UserError(what, where="command line", remedy=f"--prompt TEXT, or leave {drafted[0]} out")
    if options.interactive and options.num_samples > 1:
        raise UserError("--interactive writes one text", where="command line", remedy="leave out --num_samples")
    many = (("--prompts", options.prompts), ("--interactive", options.interactive), ("--vote", options.vote))
    beside = [name for name, value in (*many, ("--num_samples", options.num_samples > 1)) if value]
    if options.log_attention and beside:
        what = f"--log_attention and --plot are for one text, and {beside[0]} is given"
        raise UserError(what, where="command line", remedy="leave one out")
    if options.as_json and options.stream:
        raise UserError("--json and --stream are both given", where="command line", remedy="give one of them")
