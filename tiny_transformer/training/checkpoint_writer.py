"""What a training run writes into its directory besides weights: config.yaml, run_info.json, checkpoints.

A checkpoint is a Hugging Face model directory with the trainer's state beside the weights; `storage` makes it appear
whole or not at all.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tiny_transformer import __version__
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.config.secrets import without_secrets
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.sharing import Sharing
from tiny_transformer.storage import RunDirectory, Staging, StepLog, atomic_write
from tiny_transformer.storage.replaced import drop_replaced
from tiny_transformer.storage.runs import CONFIG_FILE
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.patience import at_once
from tiny_transformer.training.state import TrainState, save_state


@dataclass(frozen=True)
class CheckpointWriter:
    """Publishes checkpoints of one run.

    Attributes:
        run: the run directory, locked by this process.
        log: brought to the disk before each checkpoint, so that no checkpoint outlives its own log; None in processes
            that do not write.
        model, optimizers: what is saved.
        write: puts the model's files into a directory: `write(model, directory, weights)`.
        identity: what a resumed run is compared with, see `resume_check`.
        facts: what run_info.json says besides the counters.
        plan: the plan in force.
        patiently: does work that writes, and waits while the disk is full.
        keep: how many of the newest checkpoints stay.
        sharing: puts the tensors together that processes have parts of; the first process writes them.
    """

    run: RunDirectory
    log: StepLog | None
    model: CausalLM
    optimizers: Optimizers
    write: Callable[[CausalLM, Staging, dict[str, Tensor]], None]
    identity: dict[str, Any]
    facts: Callable[[], dict[str, Any]]
    keep: int
    sharing: Sharing
    plan: Callable[[], dict[str, Any] | None] = lambda: None
    patiently: Callable[[Callable[[], None]], None] = at_once

    def __call__(self, state: TrainState, status: str, is_best: bool) -> None:
        """Publish the state as it stands, move `last` (and `best`), then prune.

        Raises:
            UserError: IO, the system refuses, or what was read back is not what was written; also when the run
                directory, its lock or its log are not the ones that were opened.
        """
        weights = self.sharing.collect(self.model.state_dict())
        memories = self.sharing.collect(self.optimizers.state())
        if self.log is None:
            return
        self.patiently(lambda: self._publish(state, status, weights, memories))
        for name in ("last", "best") if is_best else ("last",):
            self.patiently(partial(self.run.point, name, state.step))
        drop_replaced(self.run)
        self.run.prune(self.keep)

    def _publish(
        self, state: TrainState, status: str, weights: dict[str, torch.Tensor], memories: dict[str, torch.Tensor]
    ) -> None:
        assert self.log is not None  # the caller asked
        self.run.check_ours()
        log = asdict(self.log.sync())
        with self.run.publish_step(state.step) as staging:
            self.write(self.model, staging, weights)
            save_state(staging, state, memories, self.identity, self.plan())
            info = {**run_info(state, status, self.facts()), "log": log}
            staging.write("run_info.json", json.dumps(info, indent=2) + "\n")


def restore_links(run: RunDirectory, state: TrainState) -> None:
    """Let `last` and `best` lead where the checkpoint that is taken up says: the run may have been killed after that
    checkpoint was published and before the marks were moved, or copied by a program that does not keep links."""
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


def environment() -> dict[str, Any]:
    """The versions a run was made with."""
    return {"tiny_transformer": __version__, "torch": torch.__version__, "python": platform.python_version()}


def write_config(run_dir: Path, config: RunConfig, command: list[str]) -> None:
    """Save the resolved config with the command and versions that made it, and where its relative paths begin."""
    versions = ", ".join(f"{name} {version}" for name, version in environment().items())
    header = f"# {shlex.join(without_secrets(command))}\n# {versions}, {time.strftime('%Y-%m-%d %H:%M')}\n"
    home = os.path.relpath(Path.cwd(), run_dir.resolve())
    if home.isprintable():
        header += f"# started in {home}; relative paths are meant from there\n"
    body = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    atomic_write(run_dir / CONFIG_FILE, header + body, makes_parents=False)
