"""What a run says before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiny_transformer.config.schema import RunConfig, TrainingConfig
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.training.plan import Plan

FEW_STEPS = 100  # with fewer a small model has hardly left its random beginning


def tokens_per_step(config: RunConfig) -> int:
    """Tokens in the batch of one update, all processes together."""
    return config.training.micro_batch_size * config.training.grad_accum_steps * config.data.seq_len


def announce(
    run: Path, plan: Plan, config: RunConfig, dataset: Dataset, num_parameters: int, device: str, console: Console
) -> None:
    """Say what is about to happen, and when a run is too short to learn much."""
    model, training, meta = config.model, config.training, dataset.meta
    tokens = tokens_per_step(config)
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
