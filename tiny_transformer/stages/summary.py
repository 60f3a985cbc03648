"""What a run says: before its first step what is about to happen, after the last how it ended."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tiny_transformer.config.schema import RunConfig, TrainingConfig
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.errors import UserError, in_words
from tiny_transformer.evaluation.floor import check_split
from tiny_transformer.evaluation.loss import perplexity_in_words
from tiny_transformer.evaluation.tables import written_json
from tiny_transformer.evaluation.written import read_stories, write_stories
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.reports.diagnosis.diagnose import diagnose_run
from tiny_transformer.reports.outcome import outcome_of
from tiny_transformer.reports.report import write_report
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.stages.samples import keep_samples, samples_before
from tiny_transformer.stages.stage import RunResult
from tiny_transformer.storage import RunDirectory, atomic_write
from tiny_transformer.storage.runs import NOT_FINITE_FILE, WRITTEN_FILE
from tiny_transformer.training.nonfinite import NotFiniteError
from tiny_transformer.training.plan import Plan

NUM_STORIES = 30  # that a finished model writes, to be read
FEW_STEPS = 100  # with fewer a small model has hardly left its random beginning


def announce(
    run: Path, plan: Plan, config: RunConfig, data: str, num_parameters: int, device: str, console: Console
) -> None:
    """Say what is about to happen, and when a run is too short to learn much."""
    model, training = config.model, config.training
    rows = {
        "model": f"{model.model_type}, {num_parameters / 1e6:.2f} M parameters: {model.num_hidden_layers} layers of "
        f"{model.hidden_size}, {_heads(model)}",
        "data": data,
        "plan": f"{plan.reason}; {config.tokens_per_step:,} tokens a step",
        "rate": rate_in_words(plan, training),
        "device": device,
        "run": str(run),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(text))
    console.print(table)
    if plan.asked.minutes is not None and plan.asked.steps is None and plan.total_steps < FEW_STEPS:
        console.print(
            f"only {plan.total_steps:,} steps fit: each is one lesson, and a model that writes needs some hundreds. "
            "Give it more minutes, a smaller model or batch, or stop what else keeps this machine busy "
            "(the plan is corrected on the way)",
            highlight=False,
        )


def rate_in_words(plan: Plan, training: TrainingConfig) -> str:
    """What moves the weights, and what of the config it does not follow."""
    asked, warmup = training.warmup_steps, f"{plan.warmup_steps} steps warm-up"
    if asked is not None and asked > plan.warmup_steps:
        warmup += f" (half the run: not the {asked:,} asked for)"
    unused = training.optimizer != "muon" and "muon_learning_rate" in training.model_fields_set
    is_other = training.muon_learning_rate != type(training).model_fields["muon_learning_rate"].default
    note = "; muon_learning_rate says nothing without optimizer=muon" if unused and is_other else ""
    return f"{training.optimizer}, {warmup}, {training.schedule} decay{note}"


def _heads(model: Any) -> str:
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    if heads == groups:
        return f"{heads} heads of {model.head_dim}"
    return f"{heads} query heads share {groups} key/value heads of {model.head_dim}"


def finish(outcome: RunResult, console: Console) -> None:
    """Show how a run ended and what went wrong, and write samples.json, report.html and loss.svg into it.

    The model is saved by now, and nothing here may hide that: what fails is told in a line, and the rest goes on.
    """
    stage = outcome.stage
    shown = {"figures": stage.show_figures, "samples": write_samples, "knowledge": stage.show_knowledge}
    if outcome.status == "stopped":
        console.print(
            f"stopped at step {outcome.state.step:,} and saved; continue with --resume --out_dir {outcome.run_dir}",
            markup=False,
            highlight=False,
        )
        shown = {}
    for what, show in shown.items():
        with surviving(what, console):
            show(outcome, console)
    show_report(outcome.run_dir, console)
    console.print(f"model   {outcome.run_dir}/last   (a Hugging Face model directory)", markup=False, highlight=False)


@contextmanager
def surviving(what: str, console: Console) -> Generator[None]:
    """Tell what fails in the block, and go on."""
    try:
        yield
    except Exception as error:
        more = ". The run is not harmed; please report this line."
        if isinstance(error, UserError):
            more = f" ({error.remedy})" if error.remedy else ""
        with suppress(OSError):  # nobody may be reading any more
            console.print(Text(f"\nno {what}: {in_words(error)}{more}"))


def show_report(run_dir: Path, console: Console) -> None:
    """What went wrong and what to do, as at the top of the report (nothing for a healthy run), and the report."""
    with surviving("diagnosis", console):
        for finding in diagnose_run(read_run(run_dir)):
            console.print(Text.assemble("\n", (finding.what, "bold yellow"), " ", finding.remedy))
    with surviving("report", console):
        console.print(f"\nreport  {write_report(run_dir)}", markup=False, highlight=False)


def tell_not_finite(error: NotFiniteError, console: Console) -> None:
    """After a run that ended in numbers that are none: keep where, and write the report that says why."""
    with surviving("report", console):
        atomic_write(error.run_dir / NOT_FINITE_FILE, error.to_json())
        show_report(error.run_dir, console)


def show_losses(result: RunResult, config: RunConfig, dataset: Dataset, console: Console) -> None:
    """A small table: the best validation loss, the floor, and the distance between them."""
    state, floor = result.state, dataset.meta.val.floor
    if result.status == "stopped_early":
        console.print(
            f"\nstopped early at step {state.step:,}: {state.evaluations_without_gain} evaluations in a row brought no "
            "lower validation loss (training.early_stopping_patience)",
            highlight=False,
        )
    best = outcome_of(read_run(result.run_dir))
    loss, bits = best.val_loss, best.val_bits_per_byte
    if loss is None or bits is None:
        console.print(
            f"\nfinished: training loss {state.metrics['loss']:.3f} nats per token (no evaluation: set eval_steps)",
            highlight=False,
        )
        return
    part = config.training.eval_tokens
    title = "validation" if part is None else f"validation (its first {part:,} tokens)"
    if best.last_val_loss is not None and best.last_val_loss > loss:
        title += f"; best at step {best.val_step:,.0f}, the last is {best.last_val_loss:.3f}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("", "nats per token", "bits per byte", "perplexity"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("this model", f"{loss:.3f}", f"{bits:.3f}", perplexity_in_words(loss))
    if floor:
        least, least_bits = floor["nats_per_token"], floor["bits_per_byte"]
        table.add_row("best possible", f"{least:.3f}", f"{least_bits:.3f}", perplexity_in_words(least))
        table.add_row("still to learn", f"{loss - least:.3f}", f"{bits - least_bits:.3f}", "")
    console.print()
    console.print(table)
    if part is None:
        _ring_if_too_good(loss, config, dataset, console)
    console.print(
        f"{state.step:,} steps, {state.num_tokens:,} tokens, {state.elapsed_seconds / 60:.1f} minutes of training",
        highlight=False,
    )


def _ring_if_too_good(loss: float, config: RunConfig, dataset: Dataset, console: Console) -> None:
    """The alarm of `evaluation.floor`, for a loss on the whole split."""
    meta = dataset.meta.val
    unscored = 1 if config.data.packing == "concat" else meta.num_documents  # nothing predicts a first token
    num_scored = meta.num_tokens - unscored
    check = check_split(loss * num_scored, num_scored, meta, dataset.tokenizer.vocab_size)
    if check is not None and check.rings:
        console.print(f"[bold yellow]warning[/]: {check.warning()}", highlight=False)


def write_samples(outcome: RunResult, console: Console) -> None:
    """Let the trained model continue the config's prompts; print them and keep them in samples.json."""
    training = outcome.stage.config.training
    run = RunDirectory(outcome.run_dir)
    checkpoint = run.resolve("best") or run.resolve("last")
    if checkpoint is None or not training.sample_prompts:
        return
    opened = OpenCheckpoint(checkpoint.path, device=str(outcome.hardware.device))
    settings = SamplingConfig(temperature=0.8, top_p=0.95, max_new_tokens=training.sample_tokens, seed=training.seed)
    texts = complete(opened.model, opened.tokenizer, list(training.sample_prompts), settings, opened.end_ids)
    for prompt, text in zip(training.sample_prompts, texts, strict=True):
        shown = Text.assemble((prompt, "bold"), text)
        console.print(Panel(shown, title="a sample", title_align="left", border_style="dim"))
    samples = [
        {"prompt": prompt, "text": text, "step": checkpoint.step, "settings": settings_dict(settings)}
        for prompt, text in zip(training.sample_prompts, texts, strict=True)
    ]
    keep_samples(outcome.run_dir, [*samples_before(outcome.run_dir, outcome.state.step + 1), *samples])


def show_written_stories(outcome: RunResult, console: Console) -> None:
    """Let the trained model write stories, say in words what it gets right, and keep the figures for the report."""
    run = RunDirectory(outcome.run_dir)
    checkpoint = run.resolve("best") or run.resolve("last")
    if checkpoint is None or not outcome.stage.config.training.sample_prompts:
        return
    opened = OpenCheckpoint(checkpoint.path, device=str(outcome.hardware.device))
    texts = write_stories(opened.model, opened.tokenizer, NUM_STORIES, end_ids=opened.end_ids)
    written = written_json(read_stories(texts), NUM_STORIES)
    atomic_write(outcome.run_dir / WRITTEN_FILE, json.dumps(written, indent=2) + "\n", makes_parents=False)
    console.print(
        Text.assemble(
            "\n",
            (str(written["in_words"]), "bold"),
            f" (tiny-transformer evaluate {run.path} --stories 100 shows the figures)",
        )
    )


def settings_dict(settings: SamplingConfig) -> dict[str, float | int | None]:
    """The settings worth keeping beside a sample."""
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        **({} if settings.top_k is None else {"top_k": settings.top_k}),
        "seed": settings.seed,
    }
