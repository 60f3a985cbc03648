"""Learning from rewards as a stage (GRPO): the model's own answers, judged by a verifier, group against group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from rich.console import Console
from rich.table import Table
from torch import Tensor

from tiny_transformer.config.secrets import last_parts
from tiny_transformer.config.stages import AlignConfig
from tiny_transformer.evaluation.rewards import QuestionBatch
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import load_model
from tiny_transformer.models.adapters import without_adapters
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import CHAT_TEMPLATE
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.parallel.sharing import Sharing
from tiny_transformer.stages import question_answers as questions
from tiny_transformer.stages.question_data import QuestionData, open_question_data, policy_settings, round_settings
from tiny_transformer.stages.reference import weights_hash
from tiny_transformer.stages.resume_check import BASE, DATA, TOKENIZER
from tiny_transformer.stages.stage import Beginning, Request, RunResult, Stage
from tiny_transformer.storage import Staging
from tiny_transformer.tokenizers.chat import Marks
from tiny_transformer.training.contract import Batch, Evaluation
from tiny_transformer.training.policy import PolicyBatch, policy_loss, written_log_probs
from tiny_transformer.training.rollout_store import RolloutStore
from tiny_transformer.training.rollouts import Author, RolloutBatches


class Rewarding(Stage[Batch]):
    """Learn to answer so that a verifier is content.

    Args:
        data: the questions, with the completed config.
        console: takes what must be said on the way.
    """

    example = "answer"
    checks = (
        *("diverged", "loss_scale_collapsed", "slowed_down", "overhead"),
        *("unjudged", "no_signal", "rewards_stuck", "lengths_growing", "same_words", "kl_running_away"),
    )

    def __init__(self, data: QuestionData, console: Console) -> None:
        super().__init__(data.config, data.tokenizer)
        self.data, self.console, self.settings = data, console, policy_settings(data.config)
        self.steps_per_round = data.config.grpo.updates_per_round
        self.rounds = RolloutBatches(len(data.train.asked), round_settings(data.config))

    @classmethod
    def open(cls, request: Request, run_dir: Path, hardware: Hardware, processes: Processes, console: Console) -> Self:
        """See `Stage`; every process reads the questions."""
        return cls(open_question_data(request, cast(AlignConfig, request.config), run_dir), console)

    def begin(self, beginning: Beginning) -> None:
        """Let the model write: it is the author of the batches, and what it was at first their reference."""
        data, model = self.data, beginning.model
        settings = round_settings(data.config)
        author = Author(
            *(model, self.tokenizer, beginning.hardware, data.train.asked, data.train.prompts, data.end_ids),
            *(data.judge, settings, self._reference(beginning)),
        )
        store = RolloutStore(beginning.run_dir, beginning.writes, beginning.patiently)
        tell = partial(self.console.print, highlight=False, markup=False)
        self.rounds.begin(author, store, beginning.processes, tell)

    @property
    def _loads_reference(self) -> bool:
        return self.settings.kl_weight > 0 and not self.config.lora.enabled

    def _reference(self, beginning: Beginning) -> Callable[[Tensor, Tensor], Tensor] | None:
        model, aside = beginning.model, without_adapters
        if self.settings.kl_weight == 0:
            return None
        if self._loads_reference:
            model, aside = load_model(cast(Path, self.config.init_from), device=beginning.hardware.device), nullcontext

        def log_probs(input_ids: Tensor, is_written: Tensor) -> Tensor:
            with aside(model):
                return written_log_probs(model, input_ids, is_written, self.settings.temperature)

        return log_probs

    def batches(self, rank: int, world_size: int) -> RolloutBatches:
        """Answers to the training questions, written when they are asked for; see `begin`."""
        settings = round_settings(self.data.config)
        self.rounds = RolloutBatches(len(self.data.train.asked), settings, rank=rank, world_size=world_size)
        return self.rounds

    def loss(self, model: CausalLM, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The clipped objective; see `policy_loss`."""
        return policy_loss(model, cast(PolicyBatch, batch), self.settings)

    def evaluation_batches(self) -> Iterator[QuestionBatch]:
        """The first validation questions, in order."""
        return questions.question_batches(self.data)

    def evaluate(self, model: CausalLM, batches: Iterable[Batch], hardware: Hardware, sharing: Sharing) -> Evaluation:
        """The mean reward of the likeliest answers to held-out questions; every process answers all of them."""
        figures = questions.answer_questions(model, self.data, cast(Iterable[QuestionBatch], batches))
        told = {"val_reward": figures.mean, "val_answer_tokens": figures.length, "val_ended": figures.ended}
        return Evaluation(-figures.mean, told)

    def save(self, model: CausalLM, directory: Staging, weights: dict[str, Tensor]) -> None:
        """A model directory, with the chat template of the base."""
        template = self.data.template
        own = self.tokenizer.end_id
        self.save_model(model, directory, weights, (own, *sorted(self.data.end_ids - {own})))
        if template is not None:
            directory.write(CHAT_TEMPLATE, template.jinja(Marks.of(self.tokenizer)))

    def fingerprints(self) -> dict[str, str]:
        """Questions and answers as they are asked, the tokenizer, and the base where it is the reference; adapters
        know their base themselves."""
        base = {BASE: weights_hash(cast(Path, self.config.init_from))} if self._loads_reference else {}
        return {DATA: self.data.fingerprint, TOKENIZER: self.tokenizer.fingerprint, **base}

    def facts(self) -> dict[str, Any]:
        """The tokenizer and the size of the data."""
        data = self.data
        return {
            **super().facts(),
            "data": {
                "source": last_parts(self.config.data.source),
                "template": None if data.template is None else data.template.name,
                "train_questions": len(data.train.asked),
                "val_documents": len(data.val.asked),
            },
        }

    def describe_data(self, total_steps: int) -> str:
        """The questions, the rounds, the divisor of the loss."""
        return questions.describe(self.data, total_steps)

    def show_figures(self, result: RunResult, console: Console) -> None:
        """The best checkpoint's reward on held-out questions, with an interval, and a few of its answers."""
        questions.show_rewards(result, self.data, console)

    def show_batch(self, micro_batches: Sequence[Batch]) -> Table:
        """Each answer: its question, its reward, what it counts, and its text."""
        return questions.show_rollouts(cast(Sequence[PolicyBatch], micro_batches), self.tokenizer)
