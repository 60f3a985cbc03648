"""What a training run writes into its directory besides weights: config.yaml, run_info.json, checkpoints.

A checkpoint is a Hugging Face model directory with the trainer's state beside the weights; `storage` makes it appear
whole or not at all.
"""

from __future__ import annotations

import json
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from tiny_transformer import __version__
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.token_file import Dataset, unigram_nats
from tiny_transformer.models import save_model
from tiny_transformer.parallel.sharing import Sharing
from tiny_transformer.storage import RunDirectory, StepLog, atomic_write
from tiny_transformer.storage.runs import CONFIG_FILE
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.state import TrainState, save_state


@dataclass(frozen=True)
class CheckpointWriter:
    """Publishes checkpoints of one run.

    Attributes:
        run: the run directory, locked by this process.
        log: brought to the disk before each checkpoint, so that no checkpoint outlives its own log; None in processes
            that do not write.
        model, optimizers, tokenizer: what is saved.
        identity: what a resumed run is compared with, see `resume_check`.
        facts: what run_info.json says besides the counters.
        keep: how many of the newest checkpoints stay.
        sharing: puts the tensors together that processes have parts of; the first process writes them.
    """

    run: RunDirectory
    log: StepLog | None
    model: Any
    optimizers: Optimizers
    tokenizer: Tokenizer
    identity: dict[str, Any]
    facts: Callable[[], dict[str, Any]]
    keep: int
    sharing: Sharing

    def __call__(self, state: TrainState, status: str, is_best: bool) -> None:
        """Publish the state as it stands, move `last` (and `best`), then prune."""
        self.sharing.processes.mark("save", state.step)
        weights = self.sharing.collect(self.model.state_dict())
        memories = self.sharing.collect(self.optimizers.state())
        if self.log is None:
            return
        self.log.sync()
        with self.run.publish_step(state.step) as staging:
            directory = Path(staging)
            save_model(self.model, directory, weights, eos_token_id=self.tokenizer.end_id)
            self.tokenizer.save(directory, max_length=self.model.config.max_position_embeddings)
            save_state(directory, state, memories, self.identity)
            info = json.dumps(run_info(state, status, self.facts()), indent=2)
            (directory / "run_info.json").write_text(info + "\n", encoding="utf-8")
        self.run.point("last", state.step)
        if is_best:
            self.run.point("best", state.step)
        self.run.prune(self.keep)


def restore_links(run: RunDirectory, state: TrainState) -> None:
    """Let `last` and `best` lead where the checkpoint that is taken up says: the run may have been killed after that
    checkpoint was published and before the links were moved."""
    steps = [checkpoint.step for checkpoint in run.checkpoints()]
    for name, step in (("last", state.step), ("best", state.best_step)):
        if step in steps:
            run.point(name, step)


def run_info(state: TrainState, status: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What run_info.json says of one checkpoint: where it stands in its run, how good it is, how it was made."""
    metrics = state.metrics
    return {
        "step": state.step,
        "epoch": round(state.step / facts["steps_per_epoch"], 6),
        "status": status,
        "num_tokens": state.num_tokens,
        "train_loss": metrics.get("loss"),
        "val_loss": metrics.get("val_loss"),
        "eval_loss": metrics.get("val_loss"),
        "val_perplexity": metrics.get("val_perplexity"),
        "val_ppl": metrics.get("val_perplexity"),
        "val_bits_per_byte": metrics.get("val_bits_per_byte"),
        "best_val_loss": state.best_val_loss,
        "elapsed_seconds": round(state.elapsed_seconds, 3),
        "seconds": {kind: round(spent, 3) for kind, spent in state.seconds.items()},
        "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    }


def facts_of(dataset: Dataset) -> dict[str, Any]:
    """What run_info.json says of the data and its tokenizer."""
    meta, tokenizer = dataset.meta, dataset.tokenizer
    return {
        "floor": meta.val.floor,
        "tokenizer": {
            "name": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        },
        "data": {
            "source": meta.source,
            "train_tokens": meta.train.num_tokens,
            "val_tokens": meta.val.num_tokens,
            "val_documents": meta.val.num_documents,
            "unigram_nats": round(unigram_nats(dataset.train), 4),
        },
    }


def environment() -> dict[str, Any]:
    """The versions a run was made with."""
    return {"tiny_transformer": __version__, "torch": torch.__version__, "python": platform.python_version()}


def write_config(run_dir: Path, config: RunConfig, command: list[str]) -> None:
    """Save the resolved config with the command and versions that made it."""
    versions = ", ".join(f"{name} {version}" for name, version in environment().items())
    header = f"# {shlex.join(command)}\n# {versions}, {time.strftime('%Y-%m-%d %H:%M')}\n"
    body = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    atomic_write(run_dir / CONFIG_FILE, header + body)
