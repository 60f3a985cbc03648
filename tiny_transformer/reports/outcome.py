"""What a run came to: its key figures, and the outcome in one plain sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tiny_transformer.reports.formats import count, duration, loss
from tiny_transformer.reports.run_reader import RunFiles, next_token_key, number, section, state_of, target_of


@dataclass(frozen=True)
class Outcome:
    """Key figures; None where the run does not tell. Losses are in nats per `target` unless they say otherwise."""

    state: str  # see `state_of`
    step: float | None
    total_steps: float | None
    num_tokens: float | None
    elapsed_seconds: float | None
    num_parameters: float | None
    train_loss: float | None
    val_step: float | None  # of the best evaluation
    val_loss: float | None
    val_bits_per_byte: float | None
    last_val_loss: float | None
    val_part: float | None  # tokens of the held-out text that evaluations read, from its beginning; None for all
    resumable: bool  # whether there is a whole checkpoint
    floor: float | None
    floor_bits_per_byte: float | None
    target: str  # what the loss is a mean over, in one word

    @property
    def gap(self) -> float | None:
        """How far the best validation loss is from the best loss possible."""
        return None if self.val_loss is None or self.floor is None else self.val_loss - self.floor

    @property
    def gap_bits_per_byte(self) -> float | None:
        """How far the validation loss lies above the best possible, in bits per byte; None where one is not known."""
        if self.val_bits_per_byte is None or self.floor_bits_per_byte is None:
            return None
        return self.val_bits_per_byte - self.floor_bits_per_byte

    def sentence(self) -> str:
        """One plain-words sentence or two: how it ended and how good the model is."""
        if self.step is None:
            return "Nothing has been logged or saved yet."
        return f"{self._ending()} {self._quality()}"

    def _ending(self) -> str:
        steps = "1 step" if self.step == 1 else f"{count(self.step)} steps"
        of_all = (
            steps
            if not self.total_steps or self.total_steps <= (self.step or 0)
            else (f"{count(self.step)} of {count(self.total_steps)} steps")
        )
        time = "" if self.elapsed_seconds is None else f" and {duration(self.elapsed_seconds)}"
        if self.state == "stopped":
            return (
                f"Stopped after {of_all}{time}{'; it can be resumed' if self.resumable else ', before any checkpoint'}."
            )
        if self.state == "diverged":
            again = "; it can be resumed from its newest checkpoint" if self.resumable else ", before any checkpoint"
            return f"Diverged at step {count(self.step)}{again}: its numbers stopped being numbers."
        return {
            "finished": f"Finished after {steps}{time}.",
            "finished early": f"Ended early after {of_all}{time}: the validation loss no longer fell.",
            "running": f"Still running: {of_all}{time} so far.",
            "not whole": f"No checkpoint is whole after {steps}{time}.",
        }[self.state]

    def _quality(self) -> str:
        if self.val_loss is None:
            if self.train_loss is None:
                return "No loss was logged."
            nats = f"{loss(self.train_loss)} nats per {self.target}"
            return f"The training loss came to {nats}; held-out text was never evaluated."
        bits = "" if self.val_bits_per_byte is None else f" ({loss(self.val_bits_per_byte)} bits per byte)"
        words = f"On held-out text the loss is {loss(self.val_loss)} nats per {self.target}{bits}"
        if self.gap is None:
            return f"{words}."
        side = "above" if self.gap >= 0 else "below"
        return f"{words}, {loss(abs(self.gap))} {side} the best loss possible."


def evaluated_part(config: dict[str, Any], info: dict[str, Any]) -> float | None:
    """Tokens of the held-out text that a run's evaluations read, in whole batches from its beginning; None where that
    is all of it."""
    training = section(config, "training")
    wanted = number(training, "eval_tokens")
    if wanted is None:
        return None
    batch = max(1.0, (number(training, "micro_batch_size") or 1) * (number(section(config, "data"), "seq_len") or 1))
    read = math.ceil(wanted / batch) * batch
    return None if read >= (number(section(info, "data"), "val_tokens") or math.inf) else read


def outcome_of(run: RunFiles) -> Outcome:
    """The key figures of a run, from its log and, where the log is missing, from its newest whole checkpoint."""
    info = run.newest.info if run.newest else {}
    floor = section(info, "floor")
    newest = (
        info | (run.log[-1] if run.log else {}) | {key: run.not_finite[key] for key in run.not_finite if key == "step"}
    )
    evaluations = [row for row in (*run.log, info) if number(row, "val_loss") is not None]
    best = min(evaluations, key=lambda row: number(row, "val_loss") or 0.0, default={})
    losses = [value for row in run.log if (value := number(row, next_token_key(run.log))) is not None]
    return Outcome(
        state=state_of(run.path, run.checkpoints),
        step=number(newest, "step"),
        total_steps=number(info, "total_steps"),
        num_tokens=number(newest, "num_tokens"),
        elapsed_seconds=number(newest, "elapsed_seconds"),
        num_parameters=number(info, "num_parameters"),
        train_loss=losses[-1] if losses else number(info, "train_loss"),
        val_step=number(best, "step"),
        val_loss=number(best, "val_loss"),
        val_bits_per_byte=number(best, "val_bits_per_byte"),
        last_val_loss=number(evaluations[-1], "val_loss") if evaluations else None,
        val_part=evaluated_part(run.config, info),
        resumable=run.newest is not None,
        floor=number(floor, "nats_per_token"),
        floor_bits_per_byte=number(floor, "bits_per_byte"),
        target=target_of(info),
    )
