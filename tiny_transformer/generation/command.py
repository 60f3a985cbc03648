"""What `tiny-transformer generate` and `chat` do: find the checkpoint, load it, write."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from reprlib import repr as short
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import UserError
from tiny_transformer.generation.chat import Conversation, RunningText
from tiny_transformer.generation.drafting import speculation_of
from tiny_transformer.generation.engines import choose_engine
from tiny_transformer.generation.interactive import NO_ANSWER, Session
from tiny_transformer.generation.prompt_files import (
    STANDARD_INPUT,
    AnswerFile,
    answer_file,
    answer_prompts,
    given_prompt,
    read_prompts,
)
from tiny_transformer.generation.requests import ChatRequest, GenerateRequest, check_request
from tiny_transformer.generation.rows import check_prompts
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.speculative import Speculation
from tiny_transformer.generation.text import Writing, encode_prompt
from tiny_transformer.generation.voting import Vote, parse_vote
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint

BATCH_SIZE, NUM_DRAFTED = 16, 4
DEFAULT_PROMPT = "Once upon a time"
TURNS = 10  # of a conversation, to tell whether it pays to load the compiled step


Watch = Callable[[OpenCheckpoint, list[int]], None]  # told the tokens of a text when it has been written


def run_generate(
    options: GenerateRequest, settings: SamplingConfig, notes: Console, watch: Watch | None = None
) -> None:
    """Write continuations of a prompt to standard output, or of many to a file; what was chosen goes to `notes`.

    Raises:
        UserError: no checkpoint, a damaged one, another tokenizer, options that contradict each other, or a prompt it
            cannot encode.
    """
    check_request(options, settings)
    vote = None if options.vote is None else parse_vote(options.vote)
    opened = open_checkpoint(options.checkpoint, device=options.device)
    opened.check_tokenizer(options.tokenizer)
    if options.adapter is not None:
        from tiny_transformer.models.adapter_files import load_adapter

        load_adapter(opened.model, options.adapter)
        _check_tokens(opened, options.adapter)
    if options.prompts is not None or options.interactive:
        _tell_left_out(opened, notes, "log_attention", "sample_drafter")
    elif options.num_samples > 1:
        _tell_left_out(opened, notes, "log_attention")
    if options.prompts is not None:
        _answer(opened, options, settings, notes)
        return
    if options.interactive:
        _say(opened, settings, notes)
        _choose(opened, options.engine, TURNS * settings.max_new_tokens, notes)
        talk(RunningText(opened, settings), notes)
        return
    prompt = _prompt_of(opened.path) if options.prompt is None else given_prompt(options.prompt)
    # A prompt that the model cannot read is refused before the weights are read.
    check_prompt(opened, prompt)
    _say(opened, settings, notes)
    speculation = _speculation(opened, options)
    if options.num_samples == 1 and speculation is None:
        _choose(opened, options.engine, settings.max_new_tokens, notes)
    prompts = [prompt] * options.num_samples
    writing = Writing(
        opened.model, opened.tokenizer, prompts, settings, end_ids=opened.end_ids, speculation=speculation
    )
    if vote is not None:
        _elect(writing, prompt, vote, settings.seed, options.as_json, notes)
    elif options.as_json:
        for sample, continuation in enumerate(writing.all()):
            show_json({"sample": sample, "prompt": prompt, **asdict(continuation), "seed": settings.seed})
    else:
        _write(writing, prompt, options)
    if watch is not None and options.num_samples == 1 and (options.log_attention or _wishes(opened, "log_attention")):
        watch(opened, writing.ids[0])
    if speculation is not None:
        notes.print(f"[dim]{speculation.tally.sentence()}[/]", highlight=False, soft_wrap=True)


def _check_tokens(opened: OpenCheckpoint, adapter: Path) -> None:
    """Refuse adapters that were taught tokens which the tokenizer of their base can neither read nor write."""
    from tiny_transformer.models.token_rows import learnt_tokens

    known = opened.tokenizer.vocab_size
    if unknown := sorted({i for ids in learnt_tokens(opened.model).values() for i in ids if i >= known}):
        raise UserError(
            f"the adapters were taught tokens that the tokenizer of {opened.path} does not know: ids {short(unknown)}",
            where=str(adapter),
            remedy=f"take their own tokenizer: --ckpt {adapter} if it is a run of ours, or tiny-transformer merge",
        )


def _wishes(opened: OpenCheckpoint, *keys: str) -> list[str]:
    """Which of these keys of `training` the run's config sets."""
    with suppress(UserError):  # a config of another version
        if opened.run_config is not None:
            return [key for key in keys if getattr(opened.run_config.training, key)]
    return []


def _tell_left_out(opened: OpenCheckpoint, notes: Console, *keys: str) -> None:
    """Say which wishes of the run's config are not for this way of writing."""
    for key in _wishes(opened, *keys):
        told = f"training.{key} of the run's config is not used here: it is for one text of one prompt"
        notes.print(f"[dim]{told}[/]", highlight=False, soft_wrap=True)


def _speculation(opened: OpenCheckpoint, options: GenerateRequest) -> Speculation | None:
    """How the text is drafted. Who asks for the compiled step is not given the drafter of the run's config instead."""
    wants_engine = options.engine == "fast" and options.speculative is None
    speculation = (
        None if wants_engine else speculation_of(opened, options.speculative, options.num_draft_tokens or NUM_DRAFTED)
    )
    if speculation is None and options.num_draft_tokens is not None:
        remedy = "--speculative ngram, or leave it out"
        raise UserError("--num_draft_tokens is given, and nothing drafts", where="command line", remedy=remedy)
    return speculation


def check_prompt(opened: OpenCheckpoint, prompt: str) -> None:
    """Raise UserError for a prompt that the model cannot read; no weights are read for that."""
    vocab_size = opened.config.vocab_size or opened.tokenizer.vocab_size
    prompt_ids = encode_prompt(opened.tokenizer, prompt)
    check_prompts([prompt_ids], vocab_size=vocab_size, context_length=opened.config.max_position_embeddings)


def _choose(opened: OpenCheckpoint, engine: str, num_tokens: int, notes: Console) -> None:
    """Choose who computes the tokens of one text."""
    sentence = choose_engine(opened.model, engine, num_tokens=num_tokens)
    notes.print(f"[dim]{escape(sentence)}[/]", highlight=False, soft_wrap=True)


def _say(opened: OpenCheckpoint, settings: SamplingConfig, notes: Console) -> None:
    notes.print(f"[dim]{escape(opened.sentence)}; seed {settings.seed}[/]", highlight=False, soft_wrap=True)


def run_chat(options: ChatRequest, settings: SamplingConfig, notes: Console) -> None:
    """Answer one question, or talk until the end of the input; with a model that was not taught to, continue text.

    Raises:
        UserError: see `run_generate`; a system prompt for a model that has no place for one.
    """
    opened = open_checkpoint(options.checkpoint, device=options.device)
    _say(opened, settings, notes)
    _tell_left_out(opened, notes, "log_attention", "sample_drafter")
    turns = TURNS if options.question is None else 1
    _choose(opened, options.engine, turns * settings.max_new_tokens, notes)
    if opened.template is None:
        notes.print("[dim]this model was not taught to chat: it continues text[/]", highlight=False)
        if options.system:
            raise UserError("this model has no place for a system prompt", remedy="leave out --system")
        partner: Conversation | RunningText = RunningText(opened, settings)
    else:
        partner = Conversation(opened, settings, options.system, runs_template=options.runs_template)
    if options.question is None:
        talk(partner, notes)
        return
    answered = False
    for piece in partner.ask(given_prompt(options.question)):
        show(piece)
        answered = True
    show("\n")
    if not answered:
        notes.print(f"[dim]({NO_ANSWER})[/]", highlight=False)


def talk(partner: Conversation | RunningText, notes: Console) -> None:
    """A session at the terminal: answers to standard output, everything else to `notes`."""
    prompting = input if sys.stdin.isatty() else _unprompted
    tell = lambda line: notes.print(escape(line), style="dim", highlight=False, soft_wrap=True)  # noqa: E731
    Session(partner, read=prompting, show=show, tell=tell).run()


def _unprompted(_: str) -> str:
    """The next line of an input that is no terminal."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _write(writing: Writing, prompt: str, options: GenerateRequest) -> None:
    """Print the prompt with each continuation, the first one piece by piece where that is asked for."""
    rows = [""] * options.num_samples
    if options.stream:
        show(prompt)
    for row, piece in writing:
        if options.stream and row == 0:  # the other rows are written beside it and shown after it
            show(piece)
        else:
            rows[row] += piece
    for row, text in enumerate(rows):
        head = "" if options.stream and row == 0 else prompt
        show(("\n---\n\n" if row else "") + head + text + "\n")


def _elect(writing: Writing, prompt: str, vote: Vote, seed: int, as_json: bool, notes: Console) -> None:
    """Print the continuation that wins, and the tally beside it."""
    texts = [continuation.text for continuation in writing.all()]
    election = vote.elect(prompt, texts)
    if as_json:
        told = {"answer": election.answer, "tally": election.tally(), "scores": list(election.scores), "samples": texts}
        show_json({"prompt": prompt, "text": texts[election.winner], "sample": election.winner, **told, "seed": seed})
    else:
        show(prompt + texts[election.winner] + "\n")
    for index, problem in election.problems:
        notes.print(f"[yellow]text {index + 1} was not judged: {escape(problem)}[/]", highlight=False, soft_wrap=True)
    notes.print(f"[dim]{escape(election.sentence())}[/]", highlight=False, soft_wrap=True)


def _answer(opened: OpenCheckpoint, options: GenerateRequest, settings: SamplingConfig, notes: Console) -> None:
    """Answer a file of prompts, into a file with a bar or to standard output."""
    prompts = read_prompts(options.prompts or Path(STANDARD_INPUT))
    sizes: dict[str, Any] = {"num_samples": options.num_samples, "batch_size": options.batch_size or BATCH_SIZE}
    file = None if options.out is None else AnswerFile(options.out)
    if file is not None and not options.is_seed_chosen:
        settings = file.with_seed(settings)
    _say(opened, settings, notes)
    if replaced := ", ".join(dict.fromkeys(key for prompt in prompts for key in prompt.replaced)):
        told = f"{replaced}: of the prompts' lines not repeated, for the answers have keys of that name"
        notes.print(f"[yellow]{escape(told)}[/]", highlight=False, soft_wrap=True)
    if file is None:
        for answers in answer_prompts(opened, prompts, settings, **sizes):
            for answer in answers:
                show_json(answer)
        return
    total = len(prompts) * options.num_samples
    columns = (TextColumn("writing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task("writing", total=None)
        try:
            before = answer_file(
                opened,
                prompts,
                settings,
                file,
                **sizes,
                tell=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except KeyboardInterrupt:
            done = f"{int(progress.tasks[task].completed):,} of {total:,} answers in {escape(str(options.out))}"
            notes.print(f"stopped: {done}; the same command goes on", highlight=False, soft_wrap=True)
            raise
    there = f", {before:,} of them from before" if before else ""
    notes.print(f"{total:,} answers in {escape(str(options.out))}{there}", highlight=False, soft_wrap=True)


def _prompt_of(checkpoint: Path) -> str:
    """A prompt that fits what the model has read."""
    with suppress(UserError):  # a checkpoint that stands alone, or a config of another version
        prompts = load_run_config(checkpoint.resolve().parent / "config.yaml").training.sample_prompts
        return prompts[0] if prompts else DEFAULT_PROMPT
    return DEFAULT_PROMPT


def show(text: str) -> None:
    """Text to standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def show_json(value: dict[str, Any]) -> None:
    """One JSON object, a line, to standard output, at once."""
    show(json.dumps(value, ensure_ascii=False) + "\n")
