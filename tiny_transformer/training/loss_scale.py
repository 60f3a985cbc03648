"""The loss scale of fp16 training: small gradients would round to zero there, so the loss is multiplied by a large
number before the backward pass and the gradient is divided by it afterwards.

The scale is as large as it can be: a gradient that overflows is computed again at half the scale, and after many steps
without one the scale is doubled. The scale is a power of two, so scaling itself rounds nothing. Other precisions keep
the scale at 1. Source: Micikevicius et al., "Mixed precision training", 2018.
"""

from __future__ import annotations

from tiny_transformer.training.state import TrainState

FIRST_SCALE = 2.0**16
STEPS_UNTIL_DOUBLED = 2000


def first_loss_scale(precision: str) -> float:
    """Where a run in this precision starts."""
    return FIRST_SCALE if precision == "fp16" else 1.0


def lower_loss_scale(state: TrainState) -> bool:
    """Halve the scale; false when it is 1, so that the gradient itself, not the scale, must be wrong."""
    if state.loss_scale <= 1.0:
        return False
    state.loss_scale /= 2
    state.steps_at_loss_scale = 0
    return True


def count_step_at_loss_scale(state: TrainState) -> None:
    """One more step without overflow; from time to time a larger scale is tried."""
    if state.loss_scale == 1.0:
        return
    state.steps_at_loss_scale += 1
    if state.steps_at_loss_scale == STEPS_UNTIL_DOUBLED:
        state.loss_scale *= 2
        state.steps_at_loss_scale = 0
