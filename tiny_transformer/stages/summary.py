"""What a run says: before its first step what is about to happen, after the last how it ended."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tiny_transformer.config.schema import RunConfig, TrainingConfig
from tiny_transformer.config.shapes import ModelConfig
from tiny_transformer.errors import UserError, command_line, in_words, plain
from tiny_transformer.evaluation.tables import written_json
from tiny_transformer.evaluation.written import read_stories, write_stories
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.reports.diagnosis.diagnose import diagnose_run
from tiny_transformer.reports.report import write_report
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.stages.samples import keep_samples, samples_before
from tiny_transformer.stages.stage import RunResult
from tiny_transformer.storage import RunDirectory, atomic_write
from tiny_transformer.storage.replaced import waits_to_be_put_back
from tiny_transformer.storage.runs import NOT_FINITE_FILE, WRITTEN_FILE
from tiny_transformer.training.nonfinite import NotFiniteError
from tiny_transformer.training.plan import Plan, in_steps

NUM_STORIES = 30  # that a finished model writes, to be read
FEW_STEPS = 100  # with fewer a small model has hardly left its random beginning


def announce(
    run: Path,
    plan: Plan,
    config: RunConfig,
    data: str,
    num_parameters: int,
    device: str,
    console: Console,
    target: str = "token",
) -> None:
    """Say what is about to happen, and when a run is too short to learn much; `target`: see `Stage`."""
    model, training = config.model, config.training
    rows = {
        "model": f"{model.model_type}, {num_parameters / 1e6:.2f} M parameters: {model.num_hidden_layers} layers of "
        f"{model.hidden_size}, {_heads(model)}{_window(model, config.data.seq_len)}",
        "data": data,
        "plan": f"{plan.reason}; {batch_in_words(config, target)} a step",
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
        few = "a model needs some hundreds before it can write. Give it more minutes, a smaller model or batch"
        if config.init_from is not None:
            few = "they change a model little. Give it more minutes or a smaller batch"
        console.print(
            f"there is time for {in_steps(plan.total_steps)} only: {few}, or close what else keeps this machine busy "
            "(the plan is corrected on the way)",
            highlight=False,
        )


def batch_in_words(config: RunConfig, target: str) -> str:
    """What one update reads: tokens, or what the loss is a mean over and how many tokens that counts as."""
    tokens = f"{config.tokens_per_step:,} tokens"
    if target == "token":
        return tokens
    examples = config.training.examples_per_step
    counted = f", counted as {tokens}," if config.training.max_tokens is not None else ""
    return f"{examples:,} {target}s{counted}"


def rate_in_words(plan: Plan, training: TrainingConfig) -> str:
    """What moves the weights, and what of the config it does not follow."""
    asked, warmup = training.warmup_steps, f"{in_steps(plan.warmup_steps)} warm-up"
    if asked is not None and asked > plan.warmup_steps:
        warmup += f" (half the run, instead of the {asked:,} asked for)"
    decay = "no decay" if training.schedule == "constant" else f"{training.schedule} decay"
    idle = [f"{name} has no effect {why}" for name, why in overruled(training).items()]
    return "; ".join([f"{training.optimizer}, {warmup}, {decay}", *idle])


def overruled(training: TrainingConfig) -> dict[str, str]:
    """The keys that are set to something else than their default and have no effect, each with what overrules it."""
    is_constant = training.schedule == "constant"
    reasons = {
        "muon_learning_rate": (training.optimizer != "muon", "without optimizer=muon"),
        "warmup_fraction": (training.warmup_steps is not None, "beside warmup_steps"),
        "decay_fraction": (is_constant, "with schedule=constant"),
        "final_rate_fraction": (is_constant, "with schedule=constant"),
        "eval_tokens": (training.eval_steps is None, "without evaluation"),
    }
    fields = type(training).model_fields
    return {
        name: why for name, (holds, why) in reasons.items() if holds and getattr(training, name) != fields[name].default
    }


def _heads(model: ModelConfig) -> str:
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    if heads == groups:
        return f"{heads} heads of {model.head_dim}"
    return f"{heads} query heads share {groups} key/value heads of {model.head_dim}"


def _window(model: ModelConfig, seq_len: int) -> str:
    """How far back tokens see where that is not as far as the text goes, and in how many layers."""
    windows = [window for _, window in model.attention_lengths(seq_len) or () if window is not None]
    if not windows:
        return ""
    share = "" if len(windows) == model.num_hidden_layers else f" in {len(windows)} of the layers"
    return f"; a token sees the last {windows[0]:,}{share}"


def finish(outcome: RunResult, console: Console) -> None:
    """Show how a run ended and what went wrong, and write samples.json, report.html and loss.svg into it.

    The model is saved by now, and nothing here may hide that: what fails is told in a line, and the rest goes on.
    """
    stage = outcome.stage
    shown = {"figures": stage.show_figures, "samples": write_samples, "knowledge": stage.show_knowledge}
    if stage.config.training.quantize is not None:
        shown["quantized checkpoint"] = _quantize
    if outcome.status == "stopped":
        go_on = command_line("tiny-transformer", "train", "--resume", "--out_dir", outcome.run_dir)
        words = f"stopped at step {outcome.state.step:,} and saved; to continue: {go_on}"
        console.print(words, markup=False, highlight=False, soft_wrap=True)
        shown = {}
    for what, show in shown.items():
        with surviving(what, console):
            show(outcome, console)
    show_report(outcome.run_dir, console)
    name = "last" if outcome.state.best_step is None else "best"
    form = "a Hugging Face model directory"
    if outcome.stage.adapters:
        form = "adapters as PEFT has them; tiny-transformer merge makes one model of them and their base"
    model = f"model   {plain(outcome.run_dir)}/{name}   ({form})"
    console.print(model, markup=False, highlight=False, soft_wrap=True)


def _quantize(outcome: RunResult, console: Console) -> None:
    """Write the best checkpoint once more, as `training.quantize` asks."""
    from tiny_transformer.quantization.command import QuantizeOptions, run_quantize

    kind = outcome.stage.config.training.quantize or ""
    run_quantize(QuantizeOptions(kind, outcome.run_dir, replace=True), console, console)


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
        console.print(f"\nreport  {plain(write_report(run_dir))}", markup=False, highlight=False, soft_wrap=True)


def tell_not_finite(error: NotFiniteError, console: Console) -> None:
    """After a run that ended in numbers that are none: keep where, and write the report that says why. One that has
    saved nothing and was to replace another leaves no trace, since the other is about to be put back."""
    if waits_to_be_put_back(error.run_dir):
        console.print("nothing was saved before the run diverged, so the previous run is put back", highlight=False)
        error.remedy = error.ways_out
        return
    with surviving("report", console):
        atomic_write(error.run_dir / NOT_FINITE_FILE, error.to_json())
        show_report(error.run_dir, console)


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
    written = {"step": checkpoint.step, **written_json(read_stories(texts), NUM_STORIES)}
    atomic_write(outcome.run_dir / WRITTEN_FILE, json.dumps(written, indent=2) + "\n", makes_parents=False)
    figures = command_line("tiny-transformer", "evaluate", run.path, "--stories", 100)
    words = Text.assemble("\n", (str(written["in_words"]), "bold"), f" ({figures} shows the figures)")
    console.print(words, soft_wrap=True)


def settings_dict(settings: SamplingConfig) -> dict[str, float | int | None]:
    """The settings worth keeping beside a sample."""
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        **({} if settings.top_k is None else {"top_k": settings.top_k}),
        "seed": settings.seed,
    }
