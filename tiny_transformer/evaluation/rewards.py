"""How good a model's answers to held-out questions are: the verifier's reward of the likeliest answer to each."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiny_transformer.generation.rollouts import Rollout, roll_out
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.tokenizers import Tokenizer

Z = 1.96  # of an interval that holds 95 %


@dataclass(frozen=True)
class QuestionBatch:
    """Questions to be answered.

    Attributes:
        prompts: their tokens.
        sample_ids: (B,) int64, which questions of the split they are.
    """

    prompts: tuple[tuple[int, ...], ...]
    sample_ids: Tensor

    @property
    def num_targets(self) -> int:
        """The questions."""
        return len(self.prompts)

    def to(self, device: torch.device | str) -> QuestionBatch:
        """The same; a prompt goes to the device when it is read."""
        return self


@dataclass(frozen=True)
class RewardFigures:
    """What answers came to.

    Attributes:
        answers: one to each question.
        rewards: of each.
    """

    answers: list[Rollout]
    rewards: list[float]

    @property
    def mean(self) -> float:
        """The mean reward."""
        return math.fsum(self.rewards) / max(1, len(self.rewards))

    @property
    def ended(self) -> float:
        """The share of answers that the model ended itself."""
        return sum(one.reason == "end" for one in self.answers) / max(1, len(self.answers))

    @property
    def length(self) -> float:
        """Tokens of an answer, on average."""
        return sum(len(one.ids) for one in self.answers) / max(1, len(self.answers))


def evaluate_rewards(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    reward: Callable[[int, str], float],
    *,
    end_ids: Collection[int],
    max_new_tokens: int,
    rows_at_once: int,
) -> RewardFigures:
    """Let a model answer greedily; its mode is put back.

    Args:
        model, tokenizer: a model with its own tokenizer.
        prompts: tokens of the questions.
        reward: of an answer's text: `reward(place in prompts, text)`.
        end_ids: tokens that end an answer.
        max_new_tokens: of an answer.
        rows_at_once: written side by side.
    """
    settings = SamplingConfig(temperature=0.0, max_new_tokens=max_new_tokens)
    keys = [0] * len(prompts)
    answers = roll_out(model, tokenizer, prompts, settings, end_ids=end_ids, keys=keys, rows_at_once=rows_at_once)
    return RewardFigures(answers, [reward(place, one.text) for place, one in enumerate(answers)])


def interval_of(rewards: Sequence[float]) -> tuple[float, float]:
    """What holds the expected reward with 95 %: Wilson's interval where rewards are 0 and 1, else the normal one."""
    count = max(1, len(rewards))
    mean = math.fsum(rewards) / count
    if set(rewards) <= {0.0, 1.0}:
        centre, spread = mean + Z * Z / (2 * count), Z * math.sqrt(mean * (1 - mean) / count + (Z / (2 * count)) ** 2)
        return (centre - spread) / (1 + Z * Z / count), (centre + spread) / (1 + Z * Z / count)
    variance = math.fsum((reward - mean) ** 2 for reward in rewards) / max(1, count - 1)
    return mean - Z * math.sqrt(variance / count), mean + Z * math.sqrt(variance / count)
