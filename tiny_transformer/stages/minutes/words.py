"""What the minutes of a run buy, said in a sentence; the arithmetic behind it on request."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiny_transformer.stages.minutes import autopilot
from tiny_transformer.stages.minutes.autopilot import Choice, Corpus
from tiny_transformer.training.plan import in_minutes

# How a model writes, by the excess that the law predicts for it. Read off our own runs (docs/LOG.md): 19 was word
# salad, 14 told stories that lose their hero, 10 kept a paragraph together with lapses. Harder texts than children's
# stories need more.
SALAD, LINES, PASSAGES = "word salad in the right words", "readable lines that lose their thread", "short passages"
LEVELS = ((9.0, PASSAGES), (16.0, LINES), (math.inf, SALAD))
LONGER = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 240, 480, 960, 1920)  # minutes worth naming


def level_of(choice: Choice) -> str:
    """How the model of a choice will write, roughly."""
    return next(name for limit, name in LEVELS if choice.best.excess <= limit)


def promise(minutes: float, choice: Choice, at_minutes: Callable[[float], Choice]) -> str:
    """What these minutes buy, and how many the next better thing takes.

    Args:
        minutes: of this run.
        choice: what they buy.
        at_minutes: the choice for another number of minutes.
    """
    level = level_of(choice)
    if asked := choice.length.of(choice.best):
        return f"{asked}, as asked, buy about this on simple text: {level}."
    words = f"{in_minutes(minutes)} {'buys' if minutes == 1 else 'buy'} about this on simple text: {level}"
    place = [name for _, name in LEVELS].index(level)
    if place == 0:
        return f"{words}."
    better = LEVELS[place - 1][1]
    limit = LEVELS[place - 1][0]
    enough = next((m for m in LONGER if m > minutes and at_minutes(m).best.excess <= limit), None)
    if enough is not None:
        time = f"{enough} minutes" if enough < 120 else f"{enough // 60} hours"
        return f"{words}; {better} take about {time}."
    if choice.best.is_cut or at_minutes(LONGER[-1]).best.is_cut:
        return f"{words}; {better} need more text than this."
    return f"{words}; {better} are out of reach of this machine."


def tell(
    choice: Choice,
    corpus: Corpus,
    *,
    minutes: float,
    at_minutes: Callable[[float], Choice],
    console: Console,
) -> None:
    """The promise and what will be trained."""
    best, shape = choice.best, choice.best.candidate.model
    console.print(Text(promise(minutes, choice, at_minutes)))
    size = f"{best.candidate.parameters / 1e6:.2f} M parameters"
    if "hidden_size" in shape:
        size += f" ({shape['hidden_size']} wide, {shape['num_hidden_layers']} layers)"
    passes = f"{best.passes:.1f} times the text" if best.passes >= 0.1 else f"{best.passes:.0%} of the text"
    sequences = f"{best.rows} sequence{'s' * (best.rows != 1)} of {choice.seq_len} tokens"
    reads = f"about {best.steps:,} steps of {sequences} each, {best.tokens:,} tokens, {passes}"
    console.print(Text(f"So the model gets {size} and takes {reads}. --explain shows why."), style="dim")
    took = best.steps * best.step_seconds / 60
    if choice.length.of(best) and took < minutes / 2:
        console.print(
            Text(f"They take about {in_minutes(math.ceil(10 * took) / 10)}: the rest of the time is not used.")
        )
    if best.is_cut:
        console.print(Text(_cut(choice)))
    elif best.passes > autopilot.MANY_PASSES:
        console.print(Text(_few(corpus)))
    console.print()


def explain(choice: Choice, corpus: Corpus, *, minutes: float, set_by_hand: set[str], console: Console) -> None:
    """The options beside the one taken, and a reason for each part of the choice."""
    best = choice.best
    title = f"what {in_minutes(minutes)} {'buys' if minutes == 1 else 'buy'} on this machine"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("", "width x layers", "parameters", "tokens a step", "steps", "tokens", "passes", "excess"):
        table.add_column(name, justify="right" if name else "left")
    place = choice.options.index(best)
    for option in choice.options[max(0, place - 2) : place + 3]:
        shape = option.candidate.model
        name = f"{shape.get('hidden_size', 'yours')} x {shape['num_hidden_layers']}"
        batch = option.rows * choice.seq_len
        cells = (f"{option.candidate.parameters / 1e6:.2f} M", f"{batch:,}", f"{option.steps:,}", f"{option.tokens:,}")
        mark, style = ("->", "bold") if option is best else ("", "dim")
        table.add_row(mark, name, *cells, f"{option.passes:.2f}", f"{option.excess / best.excess:.2f}", style=style)
    reasons = Table.grid(padding=(0, 2))
    reasons.add_column(style="dim")
    reasons.add_column(overflow="fold")
    for name, text in _reasons(choice, corpus, set_by_hand).items():
        reasons.add_row(name, Text(text))
    console.print(table, reasons, "", sep="\n")


def _reasons(choice: Choice, corpus: Corpus, set_by_hand: set[str]) -> dict[str, str]:
    best = choice.best
    per_parameter = best.tokens / best.candidate.parameters
    reasons = {
        "size": "a larger model learns more from each token and sees fewer of them. `excess` is how far the law of "
        "Hoffmann 2022 and Muennighoff 2023 predicts the loss to be above the best possible; the chosen model's is 1, "
        f"at {per_parameter:.1f} tokens a parameter",
        "batch": f"{best.rows} x {choice.seq_len} tokens: near 0.58 D^0.571 tokens for a run over D of them "
        "(Step Law, Li 2025). Small batches mean more steps",
        "rate": "the same for every width, as Muon's updates are (Yang 2023); straight to zero over the last 60 %",
    }
    if len(choice.options) == 1:
        reasons["size"] = "as you set it"
    if {"micro_batch_size", "grad_accum_steps"} & set_by_hand:
        reasons["batch"] = f"{best.rows} x {choice.seq_len} tokens, as you set it"
    if {"learning_rate", "muon_learning_rate", "optimizer"} & set_by_hand:
        reasons["rate"] = "as far as you set it, yours"
    if best.passes > autopilot.MANY_PASSES:
        reasons["text"] = f"{_few(corpus)} (Xue 2023)"
    if best.is_cut:
        reasons["length"] = _cut(choice)
    return reasons


def _few(corpus: Corpus) -> str:
    return (
        f"{corpus.train_tokens:,} tokens are not many: beyond {autopilot.MANY_PASSES} passes, repeated tokens count "
        "for less, so a tenth of the activations is dropped out"
    )


def _cut(choice: Choice) -> str:
    minutes = math.ceil(choice.best.steps * choice.best.step_seconds / 6) / 10
    return (
        f"{autopilot.MOST_PASSES} passes over the text take about {in_minutes(minutes)}, and more would teach nothing: "
        "the run ends there. More text would make use of the rest"
    )
