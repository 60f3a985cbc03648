"""What a pretraining run came to: its loss on held-out text beside the best possible; the alarm if it is too good."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.evaluation.floor import check_split
from tiny_transformer.evaluation.loss import num_targets, perplexity_in_words
from tiny_transformer.reports.outcome import outcome_of
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.stages.stage import RunResult
from tiny_transformer.training.plan import in_steps


def show_losses(result: RunResult, config: RunConfig, dataset: Dataset, console: Console) -> None:
    """A small table: the best validation loss, the floor, and the distance between them."""
    state, floor = result.state, dataset.meta.val.floor
    if result.status == "stopped_early":
        console.print(
            f"\nstopped early at step {state.step:,}: no lower validation loss in {state.evaluations_without_gain} "
            "evaluations in a row (training.early_stopping_patience)",
            highlight=False,
        )
    best = outcome_of(read_run(result.run_dir))
    loss, bits, trained = best.val_loss, best.val_bits_per_byte, best.train_loss
    if loss is None or bits is None:
        console.print(
            f"\nfinished: training loss {state.metrics['loss'] if trained is None else trained:.3f} nats per token "
            "(no evaluation: set eval_steps)",
            highlight=False,
        )
        return
    title = "validation" if best.val_part is None else f"validation (its first {best.val_part:,.0f} tokens)"
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
    if best.val_part is None:
        _ring_if_too_good(loss, config, dataset, console)
    console.print(
        f"{in_steps(state.step)}, {state.num_tokens:,} tokens, {state.elapsed_seconds / 60:.1f} minutes of training",
        highlight=False,
    )


def _ring_if_too_good(loss: float, config: RunConfig, dataset: Dataset, console: Console) -> None:
    """The alarm of `evaluation.floor`, for a loss on the whole split."""
    meta = dataset.meta.val
    num_scored = num_targets(meta, config.data.packing)
    check = check_split(loss * num_scored, num_scored, meta, dataset.tokenizer.vocab_size)
    if check is not None and check.rings:
        console.print(f"[bold yellow]warning[/]: {check.warning()}", highlight=False)
