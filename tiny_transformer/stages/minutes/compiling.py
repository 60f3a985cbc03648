"""Whether `--minutes` compiles the model: what compiling saves in the time left, against what compiling takes.

Both are measured, on the model that was chosen. Measuring means compiling once, so it is not tried in short runs, nor
where compiling a single operation shows that it would take too long. The run compiles again: what the compiler then
finds in its cache makes that quicker, and is counted by compiling a second fresh model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.hardware import Hardware

TRY_FROM = 600.0  # seconds left; below, trying costs about as much as it can gain (docs/LOG.md)
MODEL_IN_PROBES = 4.0  # compiling a small model takes about so many times as long as one operation
MOST_GAIN = 0.3  # of a step's time, that compiling is hoped to save


@dataclass(frozen=True)
class Trial:
    """What was measured, in seconds: a step as it is, a step compiled, and compiling where the cache is warm."""

    plain: float
    compiled: float
    compiling: float

    def pays(self, seconds_left: float) -> bool:
        """Whether more steps fit the time left with compiling than without."""
        return (seconds_left - self.compiling) / self.compiled > seconds_left / self.plain

    def sentence(self, seconds_left: float) -> str:
        """What was found, and so decided."""
        saved = (1 - self.compiled / self.plain) * seconds_left
        verdict = "is" if self.pays(seconds_left) else "is not"
        return (
            f"The model {verdict} compiled: a step takes {self.compiled:.2g} s instead of {self.plain:.2g}, "
            f"which saves {max(0.0, saved):.0f} s of {seconds_left:.0f}, and compiling takes {self.compiling:.0f}."
        )


def decide_compiling(
    config: RunConfig,
    step_seconds: Callable[[RunConfig], float],
    hardware: Hardware,
    console: Console,
    seconds_left: Callable[[], float],
) -> RunConfig:
    """The config with `compile` decided, told in a sentence; as it is where its author has set that, where it cannot be
    (`final_dropout`), and in short runs.

    Args:
        config: complete but for this.
        step_seconds: the time of a step of a fresh model of a config, compiled where it says so.
        hardware: only where there is a CPU or CUDA.
        console: where the decision is told.
        seconds_left: of the run's minutes, now.
    """
    training = config.training
    is_open = "compile" not in training.model_fields_set and training.final_dropout is None
    if not is_open or hardware.device.type not in ("cpu", "cuda") or seconds_left() < TRY_FROM:
        return config
    try:
        probe = _seconds_of(lambda: compile_one_operation(hardware.device))
        if MODEL_IN_PROBES * probe > MOST_GAIN * seconds_left():
            sentence = f"The model is not compiled: one operation alone took {probe:.0f} s to compile."
            console.print(sentence, style="dim", highlight=False)
            return config
        compiling = training.model_copy(update={"compile": True})
        candidate = config.model_copy(update={"training": compiling})
        step_seconds(candidate)  # fills the cache
        begun = time.monotonic()
        compiled = step_seconds(candidate)
        took = time.monotonic() - begun
        trial = Trial(step_seconds(config), compiled, took)
    except Exception as error:  # whatever a compiler may lack, the run needs none
        reason = str(error).strip().partition("\n")[0][:120]
        sentence = f"The model is not compiled: {type(error).__name__}: {reason}"
        console.print(sentence, style="dim", highlight=False, markup=False)
        return config
    left = seconds_left()
    console.print(trial.sentence(left), style="dim", highlight=False, markup=False)
    return candidate if trial.pays(left) else config


def compile_one_operation(device: torch.device) -> None:
    """Compile something small, forward and backward."""
    numbers = torch.ones(64, 64, device=device, requires_grad=True)
    torch.compile(lambda x: (2 * x + 1).relu().sum())(numbers).backward()


def _seconds_of(work: Callable[[], None]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun
