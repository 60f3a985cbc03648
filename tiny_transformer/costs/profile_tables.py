"""A profile as tables of 80 columns, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiny_transformer.interop.portability import BASIS, in_words

if TYPE_CHECKING:
    from tiny_transformer.costs.profile import Profile

PARTS = ("embedding", "attention", "feed-forward", "experts", "norms", "head", "MTP head")
KINDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer's memory",
    "activations": "activations",
    "logits": "logits and loss",
    "cache": "key/value cache",
}
NOTHING = "-"
UNSTEADY = 1.3  # a quiet machine's tries are within a few percent of each other


def print_profile(profile: Profile, console: Console) -> None:
    """Parameters, arithmetic, memory, time, tokens, and which programs open the model."""
    console.print(Text(f"{profile.name}: {profile.model}", style="bold"))
    console.print(Text(f"vocabulary of {profile.vocab_size:,} ({profile.vocab_source})"))
    for table in (_parameters(profile), _arithmetic(profile), _memory(profile), _time(profile), _readers(profile)):
        console.print()
        console.print(table)


def _table(title: str, *headings: str, caption: str = "") -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption or None,
        caption_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=any(headings),
        width=78,
    )
    table.add_column("", ratio=1)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, min_width=10)
    return table


def _parameters(profile: Profile) -> Table:
    total = sum(profile.parameters.values())
    table = _table("Parameters", "", "")
    for part in PARTS:
        count = profile.parameters.get(part, 0)
        if count:
            table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    if "head" not in profile.parameters:
        table.add_row("head", "", "(embedding)")
    table.add_row("total", f"{total:,}", "", style="bold")
    if profile.active_parameters != total:
        table.add_row(
            "at work on one token", f"{profile.active_parameters:,}", f"{profile.active_parameters / total:.1%}"
        )
    return table


def _arithmetic(profile: Profile) -> Table:
    caption = (
        "A multiplication and an addition are two operations. Attention is counted for every pair of tokens, as "
        "PyTorch's counter does for attention written out; `causal` is what is left when none looks ahead."
    )
    table = _table("Operations per token", "matrices", "attention", "total", "causal", caption=caption)
    for name, products in (("forward", profile.forward), ("forward and backward", profile.training)):
        matrices, attention = products["matrices"], products["attention"]
        causal = quantity(matrices + products["causal_attention"]) if "causal_attention" in products else NOTHING
        figures = (matrices, attention, matrices + attention)
        table.add_row(name, *(quantity(figure) for figure in figures), causal)
    return table


def _memory(profile: Profile) -> Table:
    batch, training = profile.batch, sum(profile.training_memory.values())
    accumulated = f", {batch['grad_accum_steps']} of them" if batch["grad_accum_steps"] > 1 else ""
    per_token, program = size(profile.cache_bytes_per_token), size(profile.program_memory)
    caption = (
        f"Training: tensors at the highest point of a step, {batch['micro_batch_size']} x {batch['seq_len']:,} tokens"
        f"{accumulated}, not compiled; `each` is a kind's own highest point. Generating: while a prompt of "
        f"{batch['seq_len']:,} tokens is read, in float32; a token of context takes {per_token} of cache. The program "
        f"itself takes {program} more, and on a CPU gaps between tensors 10 to 35 % more: expect "
        f"{size(profile.program_memory + 1.25 * training)} while training."
    )
    table = _table("Memory", "training", "each", "generating", caption=caption)
    for kind, label in KINDS.items():
        values = [memory.get(kind, 0) for memory in _memories(profile)]
        table.add_row(label, *(size(value) if value else NOTHING for value in values))
    table.add_row("total", size(training), "", size(sum(profile.generation_memory.values())), style="bold")
    return table


def _memories(profile: Profile) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    return profile.training_memory, profile.most_memory, profile.generation_memory


def _time(profile: Profile) -> Table:
    per_step = profile.batch["micro_batch_size"] * profile.batch["grad_accum_steps"] * profile.batch["seq_len"]
    share = profile.tokens / profile.suggested_tokens
    caption = (
        "An estimate: operations at the speed just measured, then memory traffic at the speed just measured, nothing "
        "at once, nothing compiled. Expect it to be right within a factor of two; training measures real steps."
    )
    if profile.unsteadiness > UNSTEADY:
        caption = (
            f"The speed was unsteady: the middle try took {profile.unsteadiness:.1f} times as long as the fastest, so "
            f"something else is running here. While it does, expect times up to that much longer. {caption}"
        )
    table = _table("Time", "", caption=caption)
    rows: Sequence[tuple[str, str]] = (
        ("device", profile.device),
        ("it multiplies matrices at", f"{quantity(profile.product_speed)} operations/s"),
        ("and moves memory at", f"{size(profile.memory_speed)}/s"),
        ("a step uses of the multiplying speed", f"{profile.utilisation:.0%}"),
        (f"a step of {per_step:,} tokens takes", duration(profile.step_seconds)),
        ("tokens per second", f"{profile.tokens_per_second:,.0f}"),
        (f"this run ({profile.length_source})", f"{profile.steps:,} steps, {quantity(profile.tokens)} tokens"),
        ("takes", duration(profile.seconds)),
        ("20 tokens per parameter at work would be", f"{quantity(profile.suggested_tokens)} tokens"),
        ("this run sees of them", f"{share:.0%}" if share < 10 else f"{share:,.0f} times as many"),
        ("all of them would take", duration(profile.suggested_tokens / profile.tokens_per_second)),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _readers(profile: Profile) -> Table:
    table = Table(
        title="Opens in",
        title_justify="left",
        title_style="bold",
        caption=BASIS,
        caption_justify="left",
        box=None,
        pad_edge=False,
        show_header=False,
        width=78,
    )
    table.add_column(min_width=17)
    table.add_column(ratio=1, overflow="fold")
    for reader, reason in profile.readers.items():
        table.add_row(reader, Text(in_words(reason)))
    return table


def quantity(value: float) -> str:
    """A number in at most four characters and a unit: `1.05 M`."""
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value / factor < 999.5 else f"{value / factor:,.0f} {unit}"
    return f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Bytes, in powers of ten: `41.9 MB`."""
    return quantity(num_bytes) + ("B" if num_bytes >= 1e3 else " B")


def duration(seconds: float) -> str:
    """A time in the two units a person would use."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 86400:,.0f} days"
