"""Supervised fine-tuning as a stage: conversations, cross-entropy of the tokens of answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

from rich.console import Console
from rich.table import Table
from torch import Tensor

from tiny_transformer.config.secrets import last_parts
from tiny_transformer.config.stages import FinetuneConfig
from tiny_transformer.data.batches import ExampleBatches, TokenBatch, batches_in_order
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.loss import evaluate_split
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.vocabulary import load_grown_weights
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.parallel.sharing import Sharing, local_part
from tiny_transformer.stages.answers import show_answers
from tiny_transformer.stages.chat import ChatStage, new_token_ids
from tiny_transformer.stages.chat_data import ChatData, open_chat_data
from tiny_transformer.stages.examples import show_rows
from tiny_transformer.stages.resume_check import DATA
from tiny_transformer.stages.stage import Request, RunResult
from tiny_transformer.tokenizers import load_tokenizer
from tiny_transformer.training.contract import Evaluation
from tiny_transformer.training.losses import language_modelling_loss


class Finetuning(ChatStage[TokenBatch]):
    """Learn to answer as in conversations.

    Args:
        data: the conversations, with the completed config.
    """

    checks = ("diverged", "rate_too_high", "loss_scale_collapsed", "overfitting", "slowed_down", "overhead")
    adds_tokens = True

    def __init__(self, data: ChatData) -> None:
        super().__init__(data.config, data.start)
        self.data, self.new_tokens = data, data.start.new_ids
        base = data.config.init_from
        if base is not None:  # a run that goes on has a tokenizer of its own
            with suppress(UserError):  # a base that is gone or damaged is told where its weights are asked for
                self.new_tokens = new_token_ids(self.template, self.tokenizer, load_tokenizer(base))
        self.train_rows, self.val_rows = data.rows(data.train), data.rows(data.val)

    @classmethod
    def open(cls, request: Request, run_dir: Path, hardware: Hardware, processes: Processes, console: Console) -> Self:
        """See `Stage`; every process reads the records."""
        return cls(open_chat_data(request, cast(FinetuneConfig, request.config), run_dir, console))

    def batches(self, rank: int, world_size: int) -> ExampleBatches:
        """Rows of packed conversations."""
        training = self.config.training
        rows = training.examples_per_step
        return ExampleBatches(
            self.train_rows, global_batch_size=rows, seed=training.seed, rank=rank, world_size=world_size
        )

    def loss(self, model: CausalLM, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the tokens of answers, and what else the model wants to be trained on."""
        return language_modelling_loss(model, batch)

    def evaluation_batches(self) -> Iterator[TokenBatch]:
        """The validation conversations in order."""
        return batches_in_order(self.val_rows, self.config.training.micro_batch_size)

    def evaluate(
        self, model: CausalLM, batches: Iterable[TokenBatch], hardware: Hardware, sharing: Sharing
    ) -> Evaluation:
        """The loss on held-out answers; its nats per token decide which checkpoint is the best."""
        loss = evaluate_split(model, batches, num_bytes=self.data.val.num_bytes, hardware=hardware, sharing=sharing)
        return Evaluation(loss.nats_per_token, {"val_loss": loss.nats_per_token, "val_perplexity": loss.perplexity})

    def load_first_weights(self, model: CausalLM) -> None:
        """Those of `init_from`; new control tokens begin as the mean of the words."""
        base = self.config.init_from
        if base is None or not self.new_tokens or self.config.lora.enabled:
            super().load_first_weights(model)
        else:
            load_grown_weights(model, base, self.new_tokens, local_part)

    def fingerprints(self) -> dict[str, str]:
        """Tokens, mask and tokenizer by their hashes."""
        return {DATA: self.data.train.fingerprint, **super().fingerprints()}

    def facts(self) -> dict[str, Any]:
        """The tokenizer, the template, the size of the data."""
        train, val = self.data.train, self.data.val
        return {
            **super().facts(),
            "data": {
                "source": last_parts(self.config.data.source),
                "template": self.template.name,
                "train_tokens": len(train),
                "train_targets": train.num_targets,
                "train_conversations": len(train.examples),
                "val_tokens": val.num_targets,
                "val_documents": len(val.examples),
                "val_text": val.fingerprint,
            },
        }

    def describe_data(self, total_steps: int) -> str:
        """The conversations, what was left out or cut, and how often the run sees them."""
        data, train = self.data, self.data.train
        rows, batch = (
            len(self.train_rows),
            self.config.training.examples_per_step,
        )
        parts = [
            f"{self.config.data.source}, {len(train.examples):,} conversations and {len(data.val.examples):,} held "
            f"out ({self.template.name}), {train.num_targets:,} tokens of answers in {rows:,} rows of "
            f"{self.config.data.seq_len:,}; this run sees {total_steps * batch / rows:.2f} times that"
        ]
        if data.start.new_ids:
            names = ", ".join(map(self.tokenizer.spelling, data.start.new_ids))
            parts.append(f"new control tokens {names} begin as the mean of all words")
        parts += data.reading.left_out()
        cuts = [store.cut for store in (train, data.val)]
        if cut := sum(c.num_truncated for c in cuts):
            parts.append(f"{cut:,} conversations are longer than a row and cut: their ends are not learnt")
        if lost := sum(c.num_lost for c in cuts):
            parts.append(f"{lost:,} left out, whose answers begin after the end of a row")
        return "; ".join(parts)

    def show_figures(self, result: RunResult, console: Console) -> None:
        """The loss on held-out answers, a few of the model's own, and how many it ended itself."""
        show_answers(result, self.data, console)

    def show_batch(self, micro_batches: Sequence[TokenBatch]) -> Table:
        """Each row: its number in the epoch and the answers that are learnt."""
        return show_rows(micro_batches, self.tokenizer, only_targets=True)
