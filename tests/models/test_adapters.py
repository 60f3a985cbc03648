"""Adapters in PEFT's form: what we write opens in peft with the same logits, what peft writes opens here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_transformer.config.schema import LoraSection
from tiny_transformer.errors import UserError
from tiny_transformer.models import load_model, save_model
from tiny_transformer.models.adapters import CONFIG, WEIGHTS, adapt, load_adapter, load_base_weights, save_adapter
from tiny_transformer.models.swaps import quantize_layers, restore_layers

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture
def base(shake: Any, all_configs: Any, tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    save_model(shake(all_configs["qwen3-gqa"]), tmp_path / "base", eos_token_id=1)
    return tmp_path / "base"


def adapted(base: Path, **settings: Any) -> tuple[Any, LoraSection]:
    """A model whose adapters have learnt something."""
    lora = LoraSection(**{"enabled": True, "rank": 3, "alpha": 5.0, **settings})
    model = load_model(base)
    adapt(model, lora, seed=1)
    load_base_weights(model, base, lora)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.1, generator=generator)
    return model, lora


@torch.no_grad()
def logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    found = model(input_ids)
    return found if torch.is_tensor(found) else found.logits


def write(model: Any, lora: LoraSection, directory: Path) -> Path:
    directory.mkdir()
    save_adapter(model, directory, model.state_dict(), lora=lora, base="base")
    return directory


def test_at_first_nothing_changes_and_only_adapters_learn(base: Path, input_ids: torch.Tensor) -> None:
    lora, model = LoraSection(enabled=True, dropout=0.5), load_model(base)
    expected = logits(model, input_ids)
    told = adapt(model, lora, seed=1)
    load_base_weights(model, base, lora)
    assert torch.equal(logits(model, input_ids), expected)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning and all(name.endswith((".lora_A", ".lora_B")) for name in learning)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{count:,} weights are trained" in told and f"on {len(learning) // 2} layers" in told


@pytest.mark.parametrize(
    ("rslora", "targets"),
    [(False, ("*_proj",)), (True, ("q_proj", "v_proj")), (False, ("layers.0.self_attn.q_proj",))],
)
def test_peft_opens_ours_with_the_same_logits_and_merged_equals_unmerged(
    rslora: bool, targets: tuple[str, ...], base: Path, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, lora = adapted(base, rslora=rslora, targets=targets)
    directory, expected = write(model, lora, tmp_path / "adapter"), logits(model, input_ids)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)
    assert torch.allclose(logits(theirs, input_ids), expected, **CLOSE)
    assert not torch.allclose(logits(load_model(base), input_ids), expected, **CLOSE)
    again = load_model(base)
    load_adapter(again, directory)
    assert torch.allclose(logits(again, input_ids), expected, rtol=0, atol=1e-6)
    restore_layers(again)
    assert torch.allclose(logits(again, input_ids), expected, **CLOSE)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_opens_here_with_the_same_logits(
    rslora: bool, base: Path, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", use_rslora=rslora, task_type="CAUSAL_LM")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(base)
    load_adapter(ours, tmp_path / "theirs")
    assert torch.allclose(logits(ours, input_ids), logits(theirs, input_ids), **CLOSE)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_frozen_weights_may_be_quantized(kind: str, base: Path, input_ids: torch.Tensor, tmp_path: Path) -> None:
    """The adapters are the same file, and come onto whole weights or onto integers."""
    model, lora = adapted(base, quantize=kind)
    directory, expected = write(model, lora, tmp_path / "adapter"), logits(model, input_ids)
    again = load_model(base)
    quantize_layers(again, kind)
    load_adapter(again, directory)
    assert torch.allclose(logits(again, input_ids), expected, rtol=0, atol=1e-6)
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
        ({"use_dora": True}, "use_dora = True is not computed here"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": "8"}, "no rank"),
        ({"r": 4}, "of shape"),
    ):
        (directory / CONFIG).write_text(json.dumps({**good, **change}), encoding="utf-8")
        with pytest.raises(UserError, match=says):
            load_adapter(load_model(base), directory)
    (directory / CONFIG).write_text(json.dumps(good), encoding="utf-8")
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2)}, directory / WEIGHTS)
    with pytest.raises(UserError, match=r"lm_head\.weight is no half of an addition"):
        load_adapter(load_model(base), directory)
    with pytest.raises(UserError, match="the model has adapters already"):
        load_adapter(adapted(base)[0], directory)
    with pytest.raises(UserError, match="holds no adapters"):
        load_adapter(load_model(base), base)


def test_experts_and_the_delta_rule_can_be_adapted(shake: Any, all_configs: Any, tmp_path: Path) -> None:
    model = shake(all_configs["next-second-head"])
    adapt(model, LoraSection(enabled=True, targets=("*.mlp.experts.*", "*in_proj*")), seed=0)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(".experts.0.up_proj.lora_A" in name for name in names) and any("in_proj" in name for name in names)
