"""What a diagnosis is made from: the rows of a log, the settings and the facts of a run, read without trusting them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tiny_transformer.reports.charts import by_part, column, smoothed
from tiny_transformer.reports.run_reader import next_token_key, number, section, target_of

MIN_ROWS = 10  # fewer logged steps can show that something is wrong, not that nothing is
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
        state: `finished`, `stopped`, `running`, ...; see `run_reader.state_of`.
        not_finite: where the run ended because its numbers were none; empty otherwise.
    """

    log: list[dict[str, Any]]
    config: dict[str, Any]
    info: dict[str, Any]
    state: str = "finished"
    not_finite: dict[str, Any] = field(default_factory=dict)

    def curve(self, key: str) -> Curve:
        """Steps and values of one figure."""
        return column(self.log, key)

    def setting(self, key: str) -> float | None:
        """A number from the section `training`."""
        return number(section(self.config, "training"), key)

    @property
    def target(self) -> str:
        """What the loss is a mean over, in one word."""
        return target_of(self.info)

    @property
    def is_muon(self) -> bool:
        """Whether Muon moves the blocks' matrices, with a rate of its own."""
        return section(self.config, "training").get("optimizer") == "muon"

    @cached_property
    def loss(self) -> Curve:
        """Of next tokens alone, where a model is trained on more."""
        return self.curve(next_token_key(self.log))

    @cached_property
    def smooth_loss(self) -> Curve:
        """The loss without its jumps from step to step."""
        steps, values = self.loss
        return steps, smoothed(values)

    @cached_property
    def jitter(self) -> float:
        """How much the loss differs from one logged step to the next, as a standard deviation, late in the run (where
        it falls slowly). From the median, so that single spikes do not count; of differences, which have sqrt(2) times
        the deviation of single values. Few rows tell too little: then it is at least what so many tokens must give."""
        _, values = self.loss
        late = np.abs(np.diff(values[len(values) // 2 :]))
        measured = float(np.median(late) / 0.6745 / np.sqrt(2)) if len(late) else 0.0
        if len(values) >= 2 * MIN_ROWS or not self.tokens_per_step:
            return measured
        return max(measured, float(np.median(values[len(values) // 2 :])) * self.sampling_error)

    @cached_property
    def sampling_error(self) -> float:
        """How unsure the loss of one step is, as a share of itself: the loss of one token spreads about as widely as
        its mean, so that of T tokens by 1 / sqrt(T) of it. 0 where T is not known."""
        return float(1 / np.sqrt(self.tokens_per_step)) if self.tokens_per_step else 0.0

    @cached_property
    def tokens_per_step(self) -> float | None:
        """Targets of one update."""
        steps, tokens = self.curve("num_tokens")
        return float(tokens[-1] / steps[-1]) if len(steps) and steps[-1] >= 1 and tokens[-1] >= 1 else None

    def mean_loss(self, begin: float, end: float) -> float:
        """The mean loss between two shares of the run, (begin, end]; at the logged step nearest to `end` where none
        was logged between them. NaN without any."""
        steps, values = self.loss
        if not len(steps):
            return float("nan")
        inside = (steps > begin * steps[-1]) & (steps <= end * steps[-1])
        return float(values[inside].mean() if inside.any() else values[np.argmin(np.abs(steps - end * steps[-1]))])

    @cached_property
    def end_loss(self) -> float:
        """Where the loss of next tokens came to: of the validation split where it was read late in the run, else the
        mean of the last quarter's steps. NaN without any."""
        steps, values = self.curve("val_loss")
        last = number(self.log[-1], "step") if self.log else None
        if len(steps) and last and steps[-1] > 0.9 * last:
            return float(values[-1])
        return self.mean_loss(0.75, 1.0)

    def by_part(self, key: str, *, blocks_only: bool = False) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Steps (N,), the names of P parts, and their figures (N, P); NaN where a row lacks one."""
        steps, names, table = by_part(self.log, key)
        kept = [place for place, name in enumerate(names) if not blocks_only or "layers." in name]
        return steps, [names[place] for place in kept], table[:, kept]

    @cached_property
    def largest_update(self) -> float:
        """How far one logged update moved the weights of a usual block at most, as a share of their size. What was too
        large for a number is null in the log, and infinite here."""
        largest = 0.0
        for row in self.log:
            ratios = section(row, "update_ratios")
            known = [number(ratios, part) for part in ratios if "layers." in part]
            if known:
                largest = max(largest, float(np.median([math.inf if value is None else value for value in known])))
        return largest

    @cached_property
    def warmup_steps(self) -> float | None:
        """Over which the rate rose; None where neither settings nor the log tell."""
        asked, share = self.setting("warmup_steps"), self.setting("warmup_fraction")
        total = number(self.info, "total_steps") or self.setting("steps")
        if asked is not None:
            return min(asked, total / 2) if total else asked
        if share is not None and total:
            return round(share * total)
        steps, rates = self.curve("learning_rate")
        if len(steps) and (steps[0] <= 2 or rates[0] < 0.9 * rates.max()):
            return 0.0 if rates[0] >= 0.9 * rates.max() else float(steps[np.argmax(rates)])
        return None

    @cached_property
    def uniform_nats(self) -> float | None:
        """The loss of a blind guess."""
        words = number(section(self.info, "tokenizer"), "vocab_size")
        return float(np.log(words)) if words and words > 1 else None


def time_spent(log: list[dict[str, Any]]) -> dict[str, float]:
    """Where the time went up to the last row, in seconds by kind."""
    last = section(log[-1], "seconds") if log else {}
    return {str(kind): spent for kind in last if (spent := number(last, kind)) is not None and spent >= 0}
