"""The alarms of runs that learn from rewards: each planted fault has its sentence at any log_steps, health has none."""

from __future__ import annotations

import math
from typing import Any

import planted_runs as planted
import pytest

from tiny_transformer.reports.diagnosis.diagnose import diagnose
from tiny_transformer.reports.diagnosis.evidence import Evidence
from tiny_transformer.stages.grpo import Rewarding

LOG_STEPS = (1, 3, 10, 50)


def keys_of(log_steps: int, **figures: Any) -> list[str]:
    """What is found in a run of 200 steps, whose figures are functions of the share of it that is over."""
    healthy: dict[str, Any] = {
        "loss": lambda t: 0.01 * math.cos(50 * t),
        "reward": lambda t: 0.3 + 0.5 * t + 0.05 * math.sin(90 * t),
        "equal_groups": lambda t: 0.2 + 0.3 * t,
        "answer_tokens": lambda t: 20 + 3 * t,
        "ended": lambda t: 0.9,
        "same_words": lambda t: 0.3,
        "unjudged": lambda t: 0.0,
        "kl": lambda t: 0.05 * t,
    }
    log = [
        {"step": s, "num_tokens": 1000 * s, "tokens_per_second": 1000.0}
        | {name: figure(s / 200) for name, figure in (healthy | figures).items()}
        for s in range(1, 201)
    ]
    info = {"checks": list(Rewarding.checks)}
    return [finding.key for finding in diagnose(Evidence(planted.thinned(log, log_steps), {}, info))]


@pytest.mark.parametrize("log_steps", LOG_STEPS)
@pytest.mark.parametrize(
    ("expected", "figures"),
    [
        ([], {}),
        ([], {"reward": lambda t: 0.98, "equal_groups": lambda t: 0.85}),  # nearly all is right from the beginning
        (["rewards stuck"], {"reward": lambda t: 0.3 + 0.05 * math.sin(90 * t)}),
        (["no signal"], {"reward": lambda t: 0.0, "equal_groups": lambda t: 1.0}),
        (["lengths growing"], {"answer_tokens": lambda t: 20 + 100 * t}),
        (["same words"], {"same_words": lambda t: min(1.0, 0.1 + 2 * t)}),
        (["KL running away"], {"kl": lambda t: 3 * t}),
        (["unjudged answers"], {"unjudged": lambda t: 0.1 * (t > 0.6)}),
    ],
)
def test_each_fault_is_told_at_any_log_steps(expected: list[str], figures: dict[str, Any], log_steps: int) -> None:
    assert keys_of(log_steps, **figures) == expected
