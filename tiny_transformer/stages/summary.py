"""What a run says: before its first step what is about to happen, after the last how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tiny_transformer.config.schema import RunConfig, TrainingConfig
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.floor import check_split
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import load_model
from tiny_transformer.reports.diagnosis.diagnose import diagnose_run
from tiny_transformer.reports.report import write_report
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.stages.samples import keep_samples, samples_before
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training.plan import Plan
from tiny_transformer.training.state import TrainState

FEW_STEPS = 100  # with fewer a small model has hardly left its random beginning


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_dir: where it is.
        status: `finished`, `stopped` or `stopped_early`.
        state: its counters and last figures.
        dataset: what it was trained on.
        config: the resolved config.
        hardware: where.
        is_first: whether this process shows and writes the results.
    """

    run_dir: Path
    status: str
    state: TrainState
    dataset: Dataset
    config: RunConfig
    hardware: Hardware
    is_first: bool


def announce(
    run: Path, plan: Plan, config: RunConfig, dataset: Dataset, num_parameters: int, device: str, console: Console
) -> None:
    """Say what is about to happen, and when a run is too short to learn much."""
    model, training, meta = config.model, config.training, dataset.meta
    tokens = config.tokens_per_step
    seen = plan.total_steps * tokens / meta.train.num_tokens
    rows = {
        "model": f"{model.model_type}, {num_parameters / 1e6:.2f} M parameters: {model.num_hidden_layers} layers of "
        f"{model.hidden_size}, {_heads(model)}",
        "data": f"{meta.source}, {meta.train.num_tokens:,} tokens ({dataset.tokenizer.name}, "
        f"{dataset.tokenizer.vocab_size:,} words); this run sees {seen:.2f} times that",
        "plan": f"{plan.reason}; {tokens:,} tokens a step",
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
            "(the plan is corrected in the first third of the run)",
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
    """Show how a run ended and what went wrong, and write samples.json, report.html and loss.svg into it."""
    if outcome.status == "stopped":
        console.print(
            f"stopped at step {outcome.state.step:,} and saved; continue with --resume --out_dir {outcome.run_dir}",
            highlight=False,
            markup=False,
        )
    else:
        show_figures(outcome, console)
        write_samples(outcome, console)
    show_diagnosis(outcome, console)
    try:
        console.print(f"\nreport  {write_report(outcome.run_dir)}", highlight=False, markup=False)
    except UserError as error:
        console.print(f"\nno report: {error.what} ({error.remedy})", highlight=False, markup=False)
    last = f"model   {outcome.run_dir}/last   (a Hugging Face model directory)"
    console.print(last, highlight=False, markup=False)


def show_figures(outcome: RunResult, console: Console) -> None:
    """A small table: validation loss, the floor, and the distance between them."""
    metrics, floor = outcome.state.metrics, outcome.dataset.meta.val.floor
    if "val_loss" not in metrics:
        console.print(
            f"\nfinished: training loss {metrics['loss']:.3f} nats per token (no evaluation: set eval_steps)",
            highlight=False,
        )
        return
    part = outcome.config.training.eval_tokens
    title = "validation" if part is None else f"validation (its first {part:,} tokens)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("", "nats per token", "bits per byte", "perplexity"):
        table.add_column(name, justify="left" if not name else "right")
    loss, bits = metrics["val_loss"], metrics["val_bits_per_byte"]
    table.add_row("this model", f"{loss:.3f}", f"{bits:.3f}", f"{metrics['val_perplexity']:.2f}")
    if floor:
        best, best_bits = floor["nats_per_token"], floor["bits_per_byte"]
        table.add_row("best possible", f"{best:.3f}", f"{best_bits:.3f}", f"{math.exp(best):.2f}")
        table.add_row("still to learn", f"{loss - best:.3f}", f"{bits - best_bits:.3f}", "")
    console.print()
    console.print(table)
    if part is None:
        _ring_if_too_good(loss, outcome, console)
    minutes = outcome.state.elapsed_seconds / 60
    console.print(
        f"{outcome.state.step:,} steps, {outcome.state.num_tokens:,} tokens, {minutes:.1f} minutes of training",
        highlight=False,
    )


def _ring_if_too_good(loss: float, outcome: RunResult, console: Console) -> None:
    """The alarm of `evaluation.floor`, for a loss on the whole split."""
    meta = outcome.dataset.meta.val
    unscored = 1 if outcome.config.data.packing == "concat" else meta.num_documents  # nothing predicts a first token
    num_scored = meta.num_tokens - unscored
    check = check_split(loss * num_scored, num_scored, meta, outcome.dataset.tokenizer.vocab_size)
    if check is not None and check.rings:
        console.print(f"[bold yellow]warning[/]: {check.warning()}", highlight=False)


def show_diagnosis(outcome: RunResult, console: Console) -> None:
    """What went wrong and what to do, as at the top of the report; nothing for a healthy run."""
    for finding in diagnose_run(read_run(outcome.run_dir)):
        console.print(Text.assemble("\n", (finding.what, "bold yellow"), " ", finding.remedy))


def write_samples(outcome: RunResult, console: Console) -> None:
    """Let the trained model continue the config's prompts; print them and keep them in samples.json."""
    training = outcome.config.training
    run = RunDirectory(outcome.run_dir)
    checkpoint = run.resolve("best") or run.resolve("last")
    if checkpoint is None or not training.sample_prompts:
        return
    model = load_model(checkpoint.path, device=str(outcome.hardware.device))
    settings = SamplingConfig(temperature=0.8, top_p=0.95, max_new_tokens=training.sample_tokens, seed=training.seed)
    try:
        texts = complete(model, outcome.dataset.tokenizer, list(training.sample_prompts), settings)
    except UserError as error:  # a prompt that this tokenizer cannot write: no reason to lose the report
        console.print(f"\nno samples: {error.what} (set training.sample_prompts)", highlight=False, markup=False)
        return
    for prompt, text in zip(training.sample_prompts, texts, strict=True):
        shown = Text.assemble((prompt, "bold"), text)
        console.print(Panel(shown, title="a sample", title_align="left", border_style="dim"))
    samples = [
        {"prompt": prompt, "text": text, "step": checkpoint.step, "settings": settings_dict(settings)}
        for prompt, text in zip(training.sample_prompts, texts, strict=True)
    ]
    keep_samples(outcome.run_dir, [*samples_before(outcome.run_dir, outcome.state.step + 1), *samples])


def settings_dict(settings: SamplingConfig) -> dict[str, float | int | None]:
    """The settings worth keeping beside a sample."""
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        **({} if settings.top_k is None else {"top_k": settings.top_k}),
        "seed": settings.seed,
    }
