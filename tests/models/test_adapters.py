"""Adapters in PEFT's form: what we write opens in peft with the same logits, what peft writes opens here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_transformer.config.schema import LoraSection
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models import load_model, save_model
from tiny_transformer.models.adapter_base import Base, find_base, identity_of
from tiny_transformer.models.adapter_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from tiny_transformer.models.adapters import adapt
from tiny_transformer.models.config_file import BASE_FILE
from tiny_transformer.models.swaps import quantize_layers, restore_layers
from tiny_transformer.models.vocabulary import load_base_weights

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture
def base(shake: Any, all_configs: Any, tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    save_model(shake(all_configs["qwen3-gqa"]), tmp_path / "base", eos_token_id=1)
    return tmp_path / "base"


@torch.no_grad()
def learn(model: Any) -> None:
    """Move every adapter of a model, ours or peft's, off its first value."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.1, generator=generator)
        if "lora_magnitude_vector" in name:
            parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))


def adapted(base: Path, **settings: Any) -> tuple[Any, LoraSection]:
    """A model whose adapters have learnt something."""
    lora = LoraSection(**{"enabled": True, "rank": 3, "alpha": 5.0, **settings})
    model = load_model(base)
    adapt(model, lora, seed=1)
    load_base_weights(model, base, lora)
    learn(model)
    return model, lora


@torch.no_grad()
def logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    found = model(input_ids)
    return found if torch.is_tensor(found) else found.logits


def write(model: Any, lora: LoraSection, directory: Path, base: Path | None = None) -> Path:
    """Save adapters as a checkpoint has them, on a base; by default the one beside it."""
    base = base or directory.parent / "base"
    directory.mkdir()
    known = Base(base, identity_of(load_model(base)))
    save_adapter(model, directory, model.state_dict(), lora=lora, base=known, eos_token_id=1)
    return directory


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", ["none", "int8"])
def test_at_first_nothing_changes_and_only_adapters_learn(
    kind: str, use_dora: bool, base: Path, input_ids: torch.Tensor
) -> None:
    lora, model = LoraSection(enabled=True, dropout=0.5, use_dora=use_dora, quantize=kind), load_model(base)
    if kind != "none":
        quantize_layers(model, kind)
    expected, model = logits(model, input_ids), load_model(base)
    told = adapt(model, lora, seed=1)
    load_base_weights(model, base, lora)
    assert torch.equal(logits(model, input_ids), expected)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    endings = (".lora_A", ".lora_B", ".lora_magnitude_vector")[: 3 if use_dora else 2]
    assert learning and {name[name.rindex(".") :] for name in learning} == set(endings)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{count:,} weights are trained" in told and f"on {len(learning) // len(endings)} layers" in told


@pytest.mark.parametrize(
    ("settings", "targets"),
    [
        ({}, ("*_proj",)),
        ({"rslora": True}, ("q_proj", "v_proj")),
        ({}, ("layers.0.self_attn.q_proj",)),
        ({"use_dora": True}, ("*_proj",)),
        ({"use_dora": True, "rslora": True}, ("v_proj",)),
    ],
)
def test_peft_opens_ours_with_the_same_logits_and_merged_equals_unmerged(
    settings: dict[str, bool], targets: tuple[str, ...], base: Path, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, lora = adapted(base, **settings, targets=targets)
    directory, expected = write(model, lora, tmp_path / "adapter"), logits(model, input_ids)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)
    assert torch.allclose(logits(theirs, input_ids), expected, **CLOSE)
    assert not torch.allclose(logits(load_model(base), input_ids), expected, **CLOSE)
    again = load_model(base)
    load_adapter(again, directory)
    assert torch.allclose(logits(again, input_ids), expected, rtol=0, atol=1e-6)
    whole = load_model(directory)  # the base is named beside the adapters
    assert torch.equal(logits(whole, input_ids), logits(again, input_ids))
    restore_layers(again)
    assert torch.allclose(logits(again, input_ids), expected, **CLOSE)


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "orthogonal"}]
)
def test_what_peft_saves_opens_here_with_the_same_logits(
    settings: dict[str, bool], base: Path, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    learn(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(base)
    load_adapter(ours, tmp_path / "theirs")
    assert torch.allclose(logits(ours, input_ids), logits(theirs, input_ids), **CLOSE)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_frozen_weights_may_be_quantized(
    kind: str, use_dora: bool, base: Path, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    """The adapters are the same file, and come onto whole weights or onto integers."""
    model, lora = adapted(base, quantize=kind, use_dora=use_dora)
    directory, expected = write(model, lora, tmp_path / "adapter"), logits(model, input_ids)
    again = load_model(base)
    quantize_layers(again, kind)
    load_adapter(again, directory)
    assert torch.allclose(logits(again, input_ids), expected, rtol=0, atol=1e-6)
    assert torch.equal(logits(load_model(directory), input_ids), expected)
    plain = load_model(base)
    load_adapter(plain, directory)
    assert not torch.allclose(logits(plain, input_ids), expected, rtol=0, atol=1e-3)


def test_adapters_for_another_model_and_of_other_kinds_are_refused(
    base: Path, shake: Any, all_configs: Any, tmp_path: Path
) -> None:
    model, lora = adapted(base)
    directory = write(model, lora, tmp_path / "adapter")
    with pytest.raises(UserError, match="for another model: its weights are not those"):
        load_adapter(shake(all_configs["qwen3-gqa"], seed=5), directory)
    tensors = load_file(directory / WEIGHTS)
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})  # of another program: it names no base
    with pytest.raises(UserError, match="for another model: "):
        load_adapter(shake(all_configs["qwen3-head-dim"]), directory)
    good = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    for change, says in (
        ({"peft_type": "LOHA"}, "type 'LOHA' are not computed here"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"lora_bias": True}, "lora_bias = True is not computed here"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' is not computed here"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens = "),
        ({"a_key_of_tomorrow": {"a": 1}}, "a_key_of_tomorrow"),
        ({"r": "8"}, "no rank"),
        ({"r": 4}, "of shape"),
    ):
        (directory / CONFIG).write_text(json.dumps({**good, **change}), encoding="utf-8")
        with pytest.raises(UserError, match=says):
            load_adapter(load_model(base), directory)
    (directory / CONFIG).write_text(json.dumps(good), encoding="utf-8")
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2)}, directory / WEIGHTS)
    with pytest.raises(UserError, match=r"lm_head\.weight is no part of an addition"):
        load_adapter(load_model(base), directory)
    with pytest.raises(UserError, match="the model has adapters already"):
        load_adapter(adapted(base)[0], directory)
    with pytest.raises(UserError, match="holds no adapters"):
        load_adapter(load_model(base), base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "use_dora"), [("*in_proj*,out_proj", False), ("*in_proj*", True), ("*.mlp.experts.*,q_proj", False)]
)
def test_adapters_of_experts_and_of_the_delta_rule_open_in_peft(
    targets: str, use_dora: bool, shake: Any, all_configs: Any, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (tmp_path / "base").mkdir()
    save_model(shake(all_configs["next-sparse"]), tmp_path / "base", eos_token_id=1)
    model, lora = adapted(tmp_path / "base", targets=targets, use_dora=use_dora)
    directory, expected = write(model, lora, tmp_path / "adapter"), logits(model, input_ids)
    assert torch.equal(logits(load_model(directory), input_ids), expected)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), directory)
    assert torch.allclose(logits(theirs, input_ids), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(logits(load_model(tmp_path / "base"), input_ids), expected, rtol=0, atol=1e-2)


def test_what_peft_cannot_make_of_experts_is_told(shake: Any, all_configs: Any) -> None:
    def told(targets: str, **settings: bool) -> str:
        lora = LoraSection(**{"enabled": True, "targets": targets, **settings})
        return adapt(shake(all_configs["next-second-head"]), lora, seed=0)

    assert "peft leaves out those of shared experts" in told("*_proj")
    assert "peft refuses DoRA on experts" in told("*.mlp.experts.*", use_dora=True)
    assert "peft" not in told("*.mlp.experts.*") and "peft" not in told("*in_proj*", use_dora=True)


def test_a_checkpoint_of_an_older_version_opens(base: Path, input_ids: torch.Tensor, tmp_path: Path) -> None:
    """It holds base and adapters as one swapped model, and the adapters once more in a folder, for peft."""
    model, lora = adapted(base)
    expected = logits(model, input_ids)
    (tmp_path / "old").mkdir()
    save_model(model, tmp_path / "old", eos_token_id=1)
    (write(model, lora, tmp_path / "new") / BASE_FILE).unlink()
    (tmp_path / "new").rename(tmp_path / "old/adapter")
    assert torch.equal(logits(load_model(tmp_path / "old"), input_ids), expected)
    beside = load_model(base)
    load_adapter(beside, tmp_path / "old")
    assert torch.equal(logits(beside, input_ids), expected)
    with pytest.raises(UserError, match="do not say what they stand on") as refused:
        find_base(tmp_path / "old")
    assert refused.value.exit_code is ExitCode.USAGE  # no damage: a resumed run does not set it aside


@pytest.mark.parametrize(
    ("started_in", "seen"),
    [
        ("home/work", {"~/of-alice/of-a-client/base"}),  # as the command line is noted
        ("home", {"../of-alice/of-a-client/base", "of-alice/of-a-client/base"}),  # all of it below
        ("home/of-alice/x", {"~/of-alice/of-a-client/base", "../of-a-client/base"}),
        ("other", {".../of-a-client/base"}),
    ],
)
def test_adapters_tell_no_more_of_the_disk_than_a_command_does(
    started_in: str, seen: set[str], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / started_in).mkdir(parents=True)
    away = tmp_path / "home/of-alice/of-a-client/base"
    away.parent.mkdir(parents=True, exist_ok=True)
    model, lora = adapted(base.rename(away))
    monkeypatch.chdir(tmp_path / started_in)
    monkeypatch.setenv("HOME", str(tmp_path / ("home" if started_in != "other" else "other")))
    directory = write(model, lora, tmp_path / "home/adapter", away)
    told = json.loads((directory / BASE_FILE).read_text(encoding="utf-8"))
    assert {told["path"], told["path_from_start"]} == seen
    named = json.loads((directory / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert named == told["path_from_start"]
    if started_in == "other":
        with pytest.raises(UserError, match="the base of these adapters is neither at"):
            load_model(directory)
    else:
        load_model(directory)


def test_a_base_that_has_changed_or_gone_is_refused_by_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    base = base.rename(tmp_path / "runs" / "base")
    model, lora = adapted(base)
    directory = write(model, lora, tmp_path / "runs" / "adapter")
    moved = (tmp_path / "runs").rename(tmp_path / "elsewhere")  # both together: the place is seen from the adapters
    base, directory = moved / "base", moved / "adapter"
    assert str(tmp_path) not in (directory / BASE_FILE).read_text(encoding="utf-8")
    load_model(directory)
    config = (base / "config.json").read_text(encoding="utf-8")
    (base / "config.json").write_text(
        config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"base has changed since: rms_norm_eps is 1e-05 in its config\.json"):
        load_model(directory)
    (base / "config.json").write_text(config, encoding="utf-8")
    other = load_model(base)
    with torch.no_grad():
        other.get_submodule("model.layers.1.mlp.up_proj").weight[0, 0] += 1e-3
    save_model(other, base, eos_token_id=1)
    with pytest.raises(UserError, match="base has changed since: its weights are not those") as refused:
        load_model(directory)
    assert f"tiny-transformer merge {directory} --base DIR" in (refused.value.remedy or "")
    base.rename(moved / "gone")
    with pytest.raises(UserError, match=r"the base of these adapters is neither at .*base nor at "):
        load_model(directory)
