"""Each key of a config, changed before a resume: refused, warned about or allowed, as the schema says.

The table of other values is below; what must happen with each is read from the schema, so a new key without another
value, or without a class, is an error here.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import TINY, fingerprint, run_tiny, tiny_request

from tiny_transformer.config.keys import valid_keys
from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import DataConfig, TrainingConfig
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.errors import UserError
from tiny_transformer.stages import run as stage
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.resume_check import DATA, TOKENIZER, check_changes, class_of, identity_of
from tiny_transformer.stages.stage import Request
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training import loop

PRINTS = {DATA: "d", TOKENIZER: "t"}
WINDOW = {"use_sliding_window": True, "sliding_window": 8}
# Another valid value for each key of the tiny run, with whatever else must then change too.
OTHER: dict[str, Any] = {
    "model.model_type": {"model.model_type": "llama"},
    "model.vocab_size": 300,
    "model.hidden_size": 64,
    "model.intermediate_size": 64,
    "model.num_hidden_layers": 3,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 2,
    "model.head_dim": 32,
    "model.max_position_embeddings": 128,
    "model.rope_theta": 500.0,
    "model.rope_scaling": {"model.rope_scaling": {"factor": 2.0, "rope_type": "linear"}},
    "model.rms_norm_eps": 1e-5,
    "model.initializer_range": 0.03,
    "model.tie_word_embeddings": False,
    "model.attention_bias": True,
    "model.use_sliding_window": {f"model.{key}": value for key, value in WINDOW.items()},
    "model.sliding_window": {f"model.{key}": value for key, value in WINDOW.items()},
    "model.max_window_layers": 1,
    "model.layer_types": {
        **{f"model.{key}": value for key, value in WINDOW.items()},
        "model.layer_types": ["sliding_attention", "full_attention"],
    },
    "data.source": "elsewhere.txt",
    "data.text_field": "body",
    "data.max_bytes": 1000,
    "data.val_fraction": 0.5,
    "data.tokenizer": "gpt2",
    "data.vocab_size": 400,
    "data.packing": "documents",
    "data.seq_len": 16,
    "training.steps": 9,
    "training.max_tokens": 1000,
    "training.epochs": {"training.epochs": 0.02, "training.max_tokens": 1140},
    "training.max_train_minutes": 60.0,
    "training.micro_batch_size": {"training.micro_batch_size": 2, "training.grad_accum_steps": 2},
    "training.grad_accum_steps": {"training.micro_batch_size": 1, "training.grad_accum_steps": 4},
    "training.optimizer": "adamw",
    "training.learning_rate": 2e-3,
    "training.muon_learning_rate": 0.02,
    "training.weight_decay": 0.2,
    "training.beta1": 0.8,
    "training.beta2": 0.9,
    "training.grad_clip": 0.5,
    "training.schedule": "linear",
    "training.warmup_steps": 3,
    "training.warmup_fraction": 0.3,
    "training.decay_fraction": 0.5,
    "training.final_rate_fraction": 0.5,
    "training.dropout": 0.2,
    "training.final_dropout": 0.0,
    "training.zero_residual": True,
    "training.previous_token_init": True,
    "training.parallelism": "fsdp",
    "training.deterministic": True,
    "training.lost_rank_seconds": 11,
    "training.precision": "bf16",
    "training.gradient_checkpointing": True,
    "training.compile": True,
    "training.device": "auto",
    "training.seed": 1,
    "training.eval_steps": 3,
    "training.eval_tokens": 200,
    "training.save_steps": 2,
    "training.keep_checkpoints": 3,
    "training.early_stopping_patience": 50,
    "training.log_steps": 2,
    "training.loggers": ["trackio"],
    "training.sample_prompts": ["Once"],
    "training.attention": "blocks",
    "training.quantize": "int8",
    "training.sample_tokens": 7,
    "training.sample_drafter": "ngram",
    "training.log_attention": True,
}
OTHER_ELSEWHERE = {
    "llama": {"norm_type": "layernorm", "sliding_window": 8, "qkv_bias": True},
    "qwen3_next": {
        "partial_rotary_factor": 0.5,
        "full_attention_interval": 3,
        "layer_types": ["full_attention", "linear_attention"],
        "linear_conv_kernel_dim": 3,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 8,
        "num_experts": 8,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [0],
        "router_aux_loss_coef": 0.01,
        "num_nextn_predict_layers": 1,
        "mtp_loss_coef": 0.2,
    },
}
# The same for sections of other stages, and for adapters, which any stage that begins from a model may have.
OTHER_OF_STAGES: dict[str, dict[str, Any]] = {
    "finetune": {
        "finetune.template": "alpaca",
        "finetune.system_prompt": "Be brief.",
        "finetune.skip_bad_rows": True,
        "lora.enabled": True,
        "lora.rank": 2,
        "lora.alpha": 4.0,
        "lora.dropout": 0.1,
        "lora.rslora": True,
        "lora.use_dora": True,
        "lora.targets": ["*.q_proj"],
        "lora.quantize": "int4",
    },
    "classify": {"classify.label_field": "kind", "classify.labels": ["a", "b"], "classify.class_weights": True},
    "align": {
        "align.method": "orpo",
        "align.beta": 0.5,
        "align.template": "alpaca",
        "align.system_prompt": "Be brief.",
        "align.skip_bad_rows": True,
        "grpo.verifier": "regex:x",
        "grpo.verifier_seconds": 2.0,
        "grpo.verifier_failure": "stop",
        "grpo.group_size": 4,
        "grpo.max_new_tokens": 9,
        "grpo.temperature": 2.0,
        "grpo.loss_type": "grpo",
        "grpo.scale_rewards": "none",
        "grpo.kl_weight": 0.1,
        "grpo.clip": 0.1,
        "grpo.clip_high": 0.3,
        "grpo.updates_per_round": 2,
    },
}
NOT_COMPARED = {"out_dir", "init_from", "stage"}  # where the run was found and began; the stage decides the keys
SECTIONS = {"data": DataConfig, "training": TrainingConfig}


def config_with(data_dir: Path, out_dir: Path, changes: dict[str, Any]) -> Request:
    """A resumption of the tiny run with some keys changed."""
    asked = tiny_request(data_dir, out_dir, resume=True).config.model_dump(mode="json", exclude_unset=True)
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return Request(load_run_config(asked, overrides), "tiny", resume=True, command=["test"])


@pytest.fixture(scope="module")
def stopped(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, stopped after four of its twelve steps, and `whole`, the same undisturbed."""
    directory = tmp_path_factory.mktemp("same")
    run_tiny(tiny_data, directory / "whole")
    with pytest.MonkeyPatch.context() as patch:
        inner = loop.train
        patch.setattr(stage, "train", lambda job, state, _: inner(job, state, lambda: state.step >= 4))
        assert run_tiny(tiny_data, directory / "stopped").status == "stopped"
    return directory


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, no measuring, no logger that is not installed."""
    fake = types.ModuleType("trackio")
    fake.__dict__.update(init=lambda **_: None, log=lambda *_, **__: None, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr("tiny_transformer.stages.run.measure_seconds", lambda *_, **__: 0.01)


@pytest.mark.parametrize("key", OTHER)
def test_a_changed_key_does_on_resume_what_the_schema_says(
    key: str, tiny_data: Path, tmp_path: Path, stopped: Path, quick: None
) -> None:
    changes = OTHER[key] if isinstance(OTHER[key], dict) else {key: OTHER[key]}
    run_dir = tmp_path / "r"
    shutil.copytree(stopped / "stopped", run_dir, symlinks=True)
    request, screen = config_with(tiny_data, run_dir, changes), io.StringIO()
    console = Console(file=screen, width=500)
    expected = class_of(key, request.config)
    if expected == "data":
        with pytest.raises(UserError, match="holds different data from what was asked for") as caught:
            launch(request, console)
        assert f"({key.removeprefix('data.')}: " in caught.value.what
        return
    if expected == "refuse":
        with pytest.raises(UserError, match="cannot resume: ") as caught:
            launch(request, console)
        named = caught.value.what.split()[2]
        assert named in changes
        assert f"{named} was " in caught.value.what and f"is now {changes[named]!r}" in caught.value.what
        assert RunDirectory(run_dir).newest_whole()[0].step == 4
        return
    launch(request, console)
    lines = screen.getvalue().splitlines()
    changed = [line for line in lines if line.startswith("changed: ")]
    assert {line.split()[1] for line in changed} == set(changes)
    assert any(line.startswith(f"changed: {key} was ") and f" is now {changes[key]!r}" in line for line in changed)
    assert all(("a different run from the one that was started" in line) == (expected == "warn") for line in changed)
    if expected == "allow":
        assert fingerprint(run_dir) == fingerprint(stopped / "whole")


@pytest.mark.parametrize(("model_type", "key"), [(m, key) for m, keys in OTHER_ELSEWHERE.items() for key in keys])
def test_the_shape_of_every_architecture_is_fixed(model_type: str, key: str) -> None:
    shape = {**TINY["model"], "model_type": model_type}
    before, after = (
        load_run_config({**TINY, "model": {**shape, **more}}) for more in ({}, {key: OTHER_ELSEWHERE[model_type][key]})
    )
    with pytest.raises(UserError, match=rf"cannot resume: model\.{key} was "):
        check_changes(identity_of(before, PRINTS), after, identity_of(after, PRINTS), Path("r"), Console())


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in OTHER_OF_STAGES.items() for key in keys])
def test_what_a_stage_learns_from_and_with_is_fixed(kind: str, key: str) -> None:
    lora = {} if key == "lora.enabled" or not key.startswith("lora.") else {"lora": {"enabled": True}}
    method = {"align": {"method": "grpo"}} if key.startswith("grpo.") else {}
    config = {**TINY, **lora, **method, "stage": kind, "init_from": "elsewhere"}
    before = load_run_config(config)
    after = load_run_config(config, [f"{key}={json.dumps(OTHER_OF_STAGES[kind][key])}"])
    with pytest.raises(UserError, match=rf"cannot resume: {re.escape(key)} was "):
        check_changes(identity_of(before, PRINTS), after, identity_of(after, PRINTS), Path("r"), Console())


def test_the_tables_name_every_key_and_the_schema_gives_each_a_class() -> None:
    of_stages = {key for keys in OTHER_OF_STAGES.values() for key in keys}
    tabled = {*OTHER, *of_stages, *(f"model.{key}" for keys in OTHER_ELSEWHERE.values() for key in keys)}
    assert tabled == set(valid_keys()) - NOT_COMPARED - {"data.data_dir"}
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            assert field.json_schema_extra["on_resume"] in ("refuse", "warn", "allow", "data"), f"{section}.{name}"


def test_data_and_run_may_be_moved(tiny_data: Path, tmp_path: Path, stopped: Path) -> None:
    shutil.copytree(stopped / "stopped", tmp_path / "moved", symlinks=True)
    shutil.copytree(tiny_data, tmp_path / "data")
    run_tiny(tmp_path / "data", tmp_path / "moved", resume=True)
    assert fingerprint(tmp_path / "moved") == fingerprint(stopped / "whole")


def test_other_data_and_another_tokenizer_are_refused(tmp_path: Path, stopped: Path) -> None:
    for tokenizer, named in (("byte", "the data"), ("char", "model.vocab_size")):
        data = tmp_path / tokenizer
        prepare(DataConfig(source="stories", tokenizer=tokenizer, max_bytes=30_000, val_fraction=0.1, seq_len=32), data)
        with pytest.raises(UserError, match=f"cannot resume: {named}"):
            run_tiny(data, stopped / "stopped", resume=True)


def test_a_key_that_an_older_checkpoint_does_not_know_had_its_default() -> None:
    config = load_run_config(TINY)
    identity = identity_of(config, PRINTS)
    old = {key: value for key, value in identity.items() if key != "data.packing"}
    check_changes(old, config, identity, Path("r"), Console())
    other = load_run_config(TINY, ["data.packing=documents"])
    with pytest.raises(UserError, match=r"data\.packing was 'concat' and is now 'documents'"):
        check_changes(old, other, identity_of(other, PRINTS), Path("r"), Console())
