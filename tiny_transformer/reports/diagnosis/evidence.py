"""What a diagnosis is made from: the rows of a log, the settings and the facts of a run, read without trusting them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tiny_transformer.reports.charts import column, smoothed
from tiny_transformer.reports.run_reader import number, section

MIN_ROWS = 10  # a curve of fewer points says nothing
Curve = tuple[np.ndarray, np.ndarray]  # steps and values, (N,) float64 each


@dataclass(frozen=True)
class Finding:
    """Something that went wrong, in plain words.

    Attributes:
        key: its name in the program.
        what: what is seen, with the numbers.
        remedy: what to do about it.
    """

    key: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Evidence:
    """One run.

    Attributes:
        log: rows with increasing `step`.
        config: the resolved settings.
        info: run_info.json of its newest checkpoint.
        state: `finished`, `stopped`, `running`, ...; see `run_files.state_of`.
    """

    log: list[dict[str, Any]]
    config: dict[str, Any]
    info: dict[str, Any]
    state: str = "finished"

    def curve(self, key: str) -> Curve:
        """Steps and values of one figure."""
        return column(self.log, key)

    def setting(self, key: str) -> float | None:
        """A number from the section `training`."""
        return number(section(self.config, "training"), key)

    @cached_property
    def loss(self) -> Curve:
        """Of next tokens alone, where a model is trained on more."""
        steps, values = self.curve("next_token_loss")
        return (steps, values) if len(steps) else self.curve("loss")

    @cached_property
    def smooth_loss(self) -> Curve:
        """The loss without its jumps from step to step."""
        steps, values = self.loss
        return steps, smoothed(values)

    @cached_property
    def jitter(self) -> float:
        """How much the loss differs from one logged step to the next, as a standard deviation, late in the run (where
        it falls slowly). From the median, so that single spikes do not count; of differences, which have sqrt(2) times
        the deviation of single values."""
        _, values = self.loss
        late = np.abs(np.diff(values[len(values) // 2 :]))
        return float(np.median(late) / 0.6745 / np.sqrt(2)) if len(late) else 0.0

    def by_part(self, key: str, *, blocks_only: bool = False) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Steps (N,), the names of P parts, and their figures (N, P); NaN where a row lacks one."""
        rows = [(number(row, "step"), section(row, key)) for row in self.log if section(row, key)]
        names = [str(name) for name in (rows[-1][1] if rows else {}) if not blocks_only or "layers." in str(name)]
        table = [[_or_nan(number(figures, name)) for name in names] for _, figures in rows]
        return np.array([step for step, _ in rows], dtype=float), names, np.array(table).reshape(len(rows), len(names))

    @cached_property
    def uniform_nats(self) -> float | None:
        """The loss of a blind guess."""
        words = number(section(self.info, "tokenizer"), "vocab_size")
        return float(np.log(words)) if words and words > 1 else None


def time_spent(log: list[dict[str, Any]]) -> dict[str, float]:
    """Where the time went up to the last row, in seconds by kind."""
    last = section(log[-1], "seconds") if log else {}
    return {str(kind): spent for kind in last if (spent := number(last, kind)) is not None and spent >= 0}


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
