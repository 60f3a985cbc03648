"""Alignment with preference pairs as a stage: DPO against the model as it was at first, ORPO without a reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from rich.console import Console
from rich.table import Table
from torch import Tensor

from tiny_transformer.config.secrets import last_parts
from tiny_transformer.config.stages import AlignConfig
from tiny_transformer.data.chat.pairs import fingerprint
from tiny_transformer.data.preferences import PairBatch, PairBatches, Pairs
from tiny_transformer.evaluation.alarms import TOLD, alarms, rings
from tiny_transformer.evaluation.preferences import distance, evaluate_pairs
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.processes import Processes
from tiny_transformer.parallel.sharing import Sharded, Sharing
from tiny_transformer.stages import reference as references
from tiny_transformer.stages.answers import answer_held_out, with_room
from tiny_transformer.stages.chat import ChatStage
from tiny_transformer.stages.pair_data import PairData, describe, open_pair_data, show_pairs
from tiny_transformer.stages.resume_check import BASE, DATA
from tiny_transformer.stages.stage import Beginning, Request, RunResult
from tiny_transformer.training.contract import Evaluation
from tiny_transformer.training.modifiers import use_blocked_attention
from tiny_transformer.training.plan import in_steps
from tiny_transformer.training.preferences import dpo_loss, orpo_loss

NUM_QUESTIONS = 16  # answered at each evaluation, to see how far the model goes


class Aligning(ChatStage[PairBatch]):
    """Learn which of two answers is preferred.

    Args:
        data: the pairs, with the completed config.
        base: hash of the weights it starts from.
        console: where alarms are told.
    """

    target, rows_per_example = "pair", 2
    checks = (
        *("diverged", "rate_too_high", "loss_scale_collapsed", "overfitting", "slowed_down", "overhead"),
        *("likelihoods_fall", "kl_runs_away", "answers_grow"),
    )

    def __init__(self, data: PairData, base: str, console: Console) -> None:
        super().__init__(data.config, data.start)
        self.data, self.section, self.base, self.console = data, data.config.align, base, console
        self.train, self.val = Pairs(data.train), Pairs(data.val)
        self.written, self.told = None, set[str]()

    @classmethod
    def open(cls, request: Request, run_dir: Path, hardware: Hardware, processes: Processes, console: Console) -> Self:
        """See `Stage`; every process reads the records."""
        data = open_pair_data(request, cast(AlignConfig, request.config), run_dir)
        return cls(data, references.base_hash(request, run_dir), console)

    def begin(self, beginning: Beginning) -> None:
        """Take up what the reference says of the pairs, or ask it: the model as it is before the first step."""
        training, start = self.config.training, self.data.start
        questions = with_room([p.messages for p in self.data.val], start, self.config.model.max_position_embeddings)
        asked = references.Asked(
            train=self.data.train if self.section.method == "dpo" else [],
            val=self.data.val,
            questions=[start.template.prompt_ids(self.tokenizer, question) for question in questions[:NUM_QUESTIONS]],
            settings=SamplingConfig(temperature=1.0, max_new_tokens=training.sample_tokens, seed=training.seed),
            end_id=start.template.end_id(self.tokenizer),
            num_tokens=self.tokenizer.vocab_size,
            rows_at_once=self.rows_per_example * training.micro_batch_size,
        )
        identity = {references.BASE: self.base, references.PAIRS: fingerprint([*self.data.train, *self.data.val])}
        identity["asked"] = repr((self.section.method, asked.settings.max_new_tokens, training.seed))
        tensors = references.kept_reference(beginning.run_dir, identity)
        if tensors is None:
            model = self.build_model(str(beginning.hardware.device))
            self.load_first_weights(model)
            if training.attention == "blocks":
                use_blocked_attention(model)
            beat = partial(beginning.processes.mark, "reference")
            tensors = references.compute_reference(model, asked, beginning.hardware, beat)
            if beginning.writes and beginning.processes.is_first:
                beginning.patiently(lambda: references.keep_reference(tensors, beginning.run_dir, identity))
        found = references.reference_of(tensors, asked)
        self.train, self.val = Pairs(self.data.train, found.train), Pairs(self.data.val, found.val)
        self.written = found.written

    def batches(self, rank: int, world_size: int) -> PairBatches:
        """The training pairs."""
        training, num_pairs = self.config.training, len(self.data.train)
        order = {"seed": training.seed, "rank": rank, "world_size": world_size}
        return PairBatches(lambda: self.train, num_pairs, global_batch_size=training.examples_per_step, **order)

    def loss(self, model: CausalLM, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        """That of the method."""
        return (dpo_loss if self.section.method == "dpo" else orpo_loss)(model, batch, self.section.beta)

    def evaluation_batches(self) -> Iterator[PairBatch]:
        """The held-out pairs in order."""
        return self.val.in_order(self.config.training.micro_batch_size)

    def evaluate(
        self, model: CausalLM, batches: Iterable[PairBatch], hardware: Hardware, sharing: Sharing
    ) -> Evaluation:
        """Loss, margin and accuracy on held-out pairs, how far the model has gone, and alarms; the loss decides which
        checkpoint is the best."""
        figures, count = evaluate_pairs(model, batches, self.loss, hardware=hardware, sharing=sharing)
        if self.written is not None and count == len(self.data.val):  # a few batches alone are there to be timed
            writes = not isinstance(sharing, Sharded)
            figures |= distance(model, self.written, writes=writes, hardware=hardware, sharing=sharing)
        figures |= alarms(figures)
        for name in rings(figures, self.told):
            self.told.add(name)
            self.console.print(f"[bold yellow]alarm[/]: {TOLD[name]} (the report says more)", highlight=False)
        return Evaluation(figures["val_loss"], figures)

    def fingerprints(self) -> dict[str, str]:
        """Pairs, tokenizer and base by their hashes."""
        return {DATA: fingerprint(self.data.train), BASE: self.base, **super().fingerprints()}

    def facts(self) -> dict[str, Any]:
        """The tokenizer, the template, the size of the data."""
        sizes = {"train_pairs": len(self.data.train), "val_documents": len(self.data.val)}
        told = {"source": last_parts(self.config.data.source), "template": self.template.name, **sizes}
        return {**super().facts(), "data": {**told, "val_text": fingerprint(self.data.val)}}

    def describe_data(self, total_steps: int) -> str:
        """The pairs, and what was left out or cut."""
        return describe(self.data, total_steps)

    def show_figures(self, result: RunResult, console: Console) -> None:
        """How the held-out pairs came out, and a few of the model's own answers."""
        figures, state = result.state.metrics, result.state
        words = "not measured (set eval_steps)"
        if "val_accuracy" in figures:
            words = f"{figures['val_accuracy']:.1%} in the right order, margin {figures['val_margin']:.3f}"
        told = f"\n{result.status}: held-out pairs {words}; {in_steps(state.step)}, "
        console.print(f"{told}{state.elapsed_seconds / 60:.1f} minutes".replace("_", " "), highlight=False)
        answer_held_out(result, self.data.start, [pair.messages for pair in self.data.val], console)

    def show_batch(self, micro_batches: Sequence[PairBatch]) -> Table:
        """Each pair: its number in the epoch and how its answers begin."""
        return show_pairs(micro_batches, self.data)
