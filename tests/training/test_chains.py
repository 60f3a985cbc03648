"""Chains of stops and kills in one process: row D20 of the reliability table.

A link of a chain takes the run up from the disk alone, trains to a random step, and there is either asked to stop (and
saves) or falls dead (and does not). After the last link weights, optimizer, counters and log must have the SHA-256 of a
run that was never disturbed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_helpers import reward_tree, write_questions
from run_helpers import TINY, evaluation, log_without_clock, run_tiny
from tuning_helpers import tune, tuning_tree, write_labels, write_pairs, write_talks

from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.hardware import Hardware
from tiny_transformer.stages import run as stage
from tiny_transformer.training import loop
from tiny_transformer.training import plan as planning
from tiny_transformer.training import state as train_state

NUM_CHAINS = int(os.environ.get("RESUME_CHAINS", "48"))
SEED = int(os.environ.get("RESUME_SEED", "20261121"))
OWN_OF_A_START = {"elapsed_seconds", "seconds", "counts"}  # readings of the clock, and how often it was read
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
NEXT: dict[str, Any] = {
    **SHAPE,
    "model_type": "qwen3_next",
    "full_attention_interval": 2,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 3,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_nextn_predict_layers": 1,
}
# What is changed from the tiny run: settings of training, and under other names the model, the data, the arithmetic.
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"arithmetic": torch.bfloat16},
    "fp16": {"arithmetic": torch.float16},
    "accumulation": {"micro_batch_size": 1, "grad_accum_steps": 3},
    "dropout": {"dropout": 0.3},
    "fading dropout": {"dropout": 0.3, "final_dropout": 0.0},
    "muon": {"optimizer": "muon"},
    "documents": {"packing": "documents"},
    "experts": {"model": NEXT, "optimizer": "muon", "dropout": 0.1},
    "llama with a window": {"model": {**SHAPE, "model_type": "llama", "sliding_window": 6}},
    "linear": {"schedule": "linear", "decay_fraction": 0.6},
    "wsd": {"schedule": "wsd"},
    "constant": {"schedule": "constant", "max_tokens": 430, "steps": None},
    "minutes": {"max_train_minutes": 0.02, "steps": None},
    "early stopping": {"early_stopping_patience": 2, "eval_steps": 1},
    "checkpointing": {"gradient_checkpointing": True, "dropout": 0.1},
    "finetune": {"stage": "finetune", "dropout": 0.1},
    "adapters": {"stage": "finetune", "lora": {"enabled": True, "rank": 2, "dropout": 0.2, "quantize": "int8"}},
    "classify": {"stage": "classify", "dropout": 0.1},
    "rewards": {"stage": "align", "grpo": {}, "dropout": 0.1, "micro_batch_size": 8},
    "rewards, two updates a round": {"stage": "align", "grpo": {"updates_per_round": 2}, "micro_batch_size": 8},
    "dpo": {"stage": "align", "dropout": 0.1, "sample_tokens": 8},
    "orpo with adapters": {
        "stage": "align",
        "align": {"method": "orpo"},
        "lora": {"enabled": True, "rank": 2, "dropout": 0.2, "quantize": "int8"},
        "sample_tokens": 8,
    },
}


class Killed(BaseException):
    """As if the process were gone."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few stories."""
    data_dir = tmp_path_factory.mktemp("chains") / "data"
    prepare(DataConfig(source="stories", tokenizer="byte", max_bytes=9_000, val_fraction=0.05, seq_len=16), data_dir)
    return data_dir


def count_up(rng: random.Random) -> Iterator[float]:
    """A clock that goes by a few milliseconds each time it is read: on a busy machine no run would get far."""
    now = 0.0
    while True:
        now += rng.uniform(0.001, 0.008)
        yield now


class Chains:
    """Runs of one variant."""

    def __init__(self, variant: str, data_dir: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        changes = dict(VARIANTS[variant])
        monkeypatch.setitem(TINY, "model", changes.pop("model", SHAPE))
        monkeypatch.setitem(TINY, "data", {"seq_len": 16, "packing": changes.pop("packing", "concat")})
        hardware = Hardware(torch.device("cpu"), changes.pop("arithmetic", None))
        monkeypatch.setattr("tiny_transformer.stages.launch.choose_hardware", lambda *asked: hardware)
        monkeypatch.setattr("tiny_transformer.stages.run.measure_seconds", lambda *_, **__: 0.02)
        if "early_stopping_patience" in changes:
            monkeypatch.setattr(stage.Run, "evaluate", lambda run: evaluation(1.0 + abs(run.state.step - 5)))
        short: dict[str, Any] = {"steps": 9, "micro_batch_size": 3, "save_steps": 3, "eval_steps": 4, "dropout": 0.0}
        self.options = {**short, "optimizer": "adamw", **changes}
        self.is_planned_by_the_clock = "max_train_minutes" in changes
        if self.is_planned_by_the_clock:
            clock = count_up(random.Random(SEED))
            for module in (loop, train_state):
                monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
        self.data_dir, self.directory, self.patch = data_dir, directory, monkeypatch
        self.whole: str | None = None
        self.stage, self.lora = self.options.pop("stage", "pretrain"), self.options.pop("lora", {})
        self.grpo = self.options.pop("grpo", None)
        self.section = {"template": "plain"} | self.options.pop("align", {}) if self.stage == "align" else {}
        if self.stage != "pretrain":
            write = {"classify": write_labels, "align": write_pairs}.get(self.stage, write_talks)
            write = write if self.grpo is None else write_questions
            self.base, self.talks = directory / "base", write(directory / "talks.jsonl", count=16)
            run_tiny(data_dir, self.base, steps=1, eval_steps=None)

    def run(self, name: str, *, resume: bool = False) -> str:
        """One start; its status."""
        if self.grpo is not None:
            tree = reward_tree(self.base, self.talks, self.directory / name, training=self.options, grpo=self.grpo)
            return tune(tree, resume=resume)[0].status
        if self.stage != "pretrain":
            tree = tuning_tree(self.base, self.talks, self.directory / name, training=self.options)
            tree |= {
                "stage": self.stage,
                "lora": self.lora,
                "data": {"source": str(self.talks), "seq_len": 32, "val_fraction": 0.2},
            }
            if self.stage == "align":
                tree |= {"align": self.section}
            elif self.lora:
                tree |= {"finetune": {"template": "plain"}}  # no new tokens, and short
            return tune(tree, resume=resume)[0].status
        return run_tiny(self.data_dir, self.directory / name, resume=resume, **self.options).status

    def link(self, name: str, step: int, *, kill: bool, resume: bool) -> str:
        """One start that ends at a step, if it comes so far."""
        inner = loop.train

        def until(job: loop.Job, state: Any, _: object) -> str:
            def stop() -> bool:
                if state.step >= step and kill:
                    raise Killed
                return state.step >= step

            return inner(job, state, stop)

        with self.patch.context() as patch:
            patch.setattr(stage, "train", until)
            try:
                return self.run(name, resume=resume)
            except Killed:
                return "killed"

    def chain(self, rng: random.Random) -> Counter[str]:
        """One to three links, and the end; how the links ended."""
        shutil.rmtree(self.directory / "chain", ignore_errors=True)
        step, resume, ends = 0, False, Counter[str]()
        for _ in range(rng.randint(1, 3)):
            step += rng.randint(1, 4)
            ends[self.link("chain", step, kill=rng.random() < 0.5, resume=resume)] += 1
            resume = True
        self.run("chain", resume=True)
        assert self.fingerprint("chain") == self.undisturbed(), (ends, step)
        return ends

    def undisturbed(self) -> str:
        """The fingerprint of a run that nothing happened to; a plan made by the clock is that of the chain."""
        if self.is_planned_by_the_clock:
            shutil.rmtree(self.directory / "whole", ignore_errors=True)
            (self.directory / "whole").mkdir()
            shutil.copy(self.directory / "chain/config.yaml", self.directory / "whole/config.yaml")
            plan = planning.read_plan(self.directory / "chain")
            assert plan is not None
            (self.directory / "whole" / planning.FILE).write_text(replace(plan, is_fixed=True).to_json())
            self.run("whole", resume=True)
            return self.fingerprint("whole")
        if self.whole is None:
            self.run("whole")
            self.whole = self.fingerprint("whole")
        return self.whole

    def fingerprint(self, name: str) -> str:
        """SHA-256 of the weights, the optimizer's state, the counters and the log."""
        run_dir, digest = self.directory / name, hashlib.sha256()
        for link in ("last", "best"):
            for file in sorted((run_dir / link / "trainer_state").glob("*.safetensors")):
                digest.update(file.read_bytes())
            (weights,) = (run_dir / link).glob("*model.safetensors")  # adapters leave their base where it is
            digest.update(weights.read_bytes())
            state = json.loads((run_dir / link / "trainer_state/state.json").read_text())
            if self.is_planned_by_the_clock:  # `undisturbed` fixes it
                state["plan"] = {k: v for k, v in state["plan"].items() if k not in ("is_fixed", "sha256")}
            digest.update(json.dumps({k: v for k, v in state.items() if k not in OWN_OF_A_START}).encode())
        digest.update(json.dumps(log_without_clock(run_dir)).encode())
        return digest.hexdigest()


@pytest.fixture(params=VARIANTS)
def chains(
    request: pytest.FixtureRequest, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Chains]:
    """Chains of one variant."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Chains(request.param, data, tmp_path, monkeypatch)
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_chain_of_stops_and_kills_ends_like_an_undisturbed_run(
    chains: Chains, request: pytest.FixtureRequest
) -> None:
    """Three chains of each of all variants; RESUME_CHAINS=500 for the full number."""
    place = list(VARIANTS).index(request.node.callspec.params["chains"])
    rng, count = random.Random(SEED + place), len(range(place, NUM_CHAINS, len(VARIANTS)))
    ends = sum((chains.chain(rng) for _ in range(count)), Counter[str]())
    print(f"{count} chains, links ended {dict(ends)}")
