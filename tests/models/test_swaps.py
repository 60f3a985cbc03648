"""Swapped layers: chosen by the model, saved, loaded with equal logits, refused by others, restored."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.layers.linear import LoRALinear, QuantizedLinear
from tiny_transformer.models import load_config, load_model, load_weights, save_model
from tiny_transformer.models.checkpoint import stored_dtypes
from tiny_transformer.models.config_file import end_token_ids, read_config
from tiny_transformer.models.swaps import add_lora, describe_swaps, quantize_layers, quantize_words, restore_layers

CLOSE = {"rtol": 0, "atol": 2e-5}
SWAPS = ["int8", "int4", "lora", "int4 lora", "int4 words"]


def swap(model, kinds: str):
    for kind in kinds.split():
        if kind == "lora":
            add_lora(model, ["q_proj", "v_proj", "*down_proj"], rank=2, alpha=4.0, dropout=0.1)
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("lora_B"):
                        parameter.normal_(0, 0.1, generator=generator)
        elif kind == "words":
            quantize_words(model)
        else:
            quantize_layers(model, kind)
    return model


def logits_of(model, input_ids) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids)


def test_a_model_keeps_the_bits_of_its_head_and_its_routers(model):
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = quantize_layers(model, "int8")
    assert set(names) == {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    kept = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    small = {"lm_head", "gate", "shared_expert_gate", "in_proj_ba", "in_proj_a", "in_proj_b"}
    assert kept == linear - set(names) and "lm_head" in kept
    assert {name.rpartition(".")[2] for name in kept} <= small
    for pattern in model.KEEP_BITS:  # none is there for nothing
        if model.config.model_type != "qwen3_next":
            assert any(fnmatchcase(name, pattern) for name in kept)
    embedding = model.model.embed_tokens.weight
    assert embedding.is_floating_point() and (model.lm_head.weight is embedding) == model.config.tie_word_embeddings


@pytest.mark.parametrize("kinds", SWAPS)
def test_saved_and_loaded_swaps_are_bit_exact(model, input_ids, tmp_path, kinds):
    plain = logits_of(model, input_ids)
    swap(model, kinds)
    expected = logits_of(model, input_ids)
    assert not torch.equal(expected, plain)
    save_model(model, tmp_path, eos_token_id=[1, 2])
    loaded = load_model(tmp_path)
    assert torch.equal(logits_of(loaded, input_ids), expected)
    assert loaded.config == model.config == load_config(tmp_path)
    assert describe_swaps(loaded) == describe_swaps(model)
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in state.items())
    assert end_token_ids(tmp_path) == [1, 2]
    (tmp_path / "generation_config.json").unlink()
    assert end_token_ids(tmp_path) == [1, 2]


def test_names_are_short_where_all_layers_are_swapped(shake, all_configs):
    model = swap(shake(all_configs["next-second-head"]), "int8")
    (record,) = describe_swaps(model)
    assert (record["kind"], record["group_size"]) == ("int8", None)
    assert "model.layers.*.mlp.experts.*.up_proj" in record["names"] and len(record["names"]) < 30
    model = shake(all_configs["qwen3-gqa"])
    add_lora(model, ["layers.1.self_attn.q_proj", "k_proj"], rank=2, alpha=2)
    (record,) = describe_swaps(model)
    assert record["names"] == ["model.layers.*.self_attn.k_proj", "model.layers.1.self_attn.q_proj"]


def test_int8_takes_a_byte_a_weight_and_int4_half(shake, all_configs, tmp_path):
    sizes = {}
    for kind in ("", "int8", "int4"):
        model = swap(shake(all_configs["qwen3-gqa"]), kind)
        (tmp_path / f"{kind}x").mkdir()
        save_model(model, tmp_path / f"{kind}x")
        tensors = load_file(tmp_path / f"{kind}x" / "model.safetensors")
        sizes[kind] = sum(
            t.nbytes for name, t in tensors.items() if name.endswith(("q_proj.weight", "q_proj.quantized"))
        )
    assert sizes[""] == 4 * sizes["int8"] == 8 * sizes["int4"]


def test_a_table_of_words_in_integers_is_saved_once_and_stays_tied(shake, all_configs, input_ids, tmp_path):
    for name, tied in (("qwen3-gqa", True), ("llama-untied-bias", False)):
        model = swap(shake(all_configs[name]), "words")
        assert model.config.tie_word_embeddings == tied
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name)
        stored = {key for key, tensor in load_file(tmp_path / name / "model.safetensors").items() if tensor.ndim == 2}
        assert ("lm_head.quantized" in stored) != tied and "model.embed_tokens.quantized" in stored
        assert not {"lm_head.weight", "model.embed_tokens.weight"} & stored
        loaded = load_model(tmp_path / name, dtype=torch.bfloat16)
        assert logits_of(loaded, input_ids).dtype == torch.bfloat16
        restore_layers(loaded)
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_a_second_head_beside_a_tied_table_of_integers_is_refused(shake, all_configs, tmp_path):
    from safetensors.torch import save_file

    save_model(swap(shake(all_configs["qwen3-gqa"]), "words"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.zeros(61, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"does not have: lm_head\.weight"):
        load_model(tmp_path)


def test_a_narrow_dtype_stays_narrow_and_scales_stay_wide(shake, all_configs, tmp_path):
    model = swap(shake(all_configs["qwen3-head-dim"], dtype=torch.bfloat16), "int8")
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.model.norm.weight.dtype == torch.bfloat16
    layer = loaded.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, QuantizedLinear) and layer.scale.dtype == torch.float32
    assert layer.bias is not None and layer.bias.dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.float32).model.norm.weight.dtype == torch.float32
    assert stored_dtypes(tmp_path)["model.layers.0.self_attn.q_proj.quantized"] == torch.int8


def test_weights_are_loaded_in_place_into_the_same_swaps(shake, all_configs, input_ids, tmp_path):
    model = swap(shake(all_configs["qwen3-gqa"]), "int4 lora")
    save_model(model, tmp_path)
    other = swap(shake(all_configs["qwen3-gqa"], seed=5), "int4 lora")
    load_weights(other, tmp_path)
    assert torch.equal(logits_of(other, input_ids), logits_of(model, input_ids))
    with pytest.raises(UserError, match="missing tensors"):
        load_weights(shake(all_configs["qwen3-gqa"]), tmp_path)


@pytest.mark.parametrize("kinds", SWAPS)
def test_restored_layers_compute_the_same_and_are_ordinary(model, input_ids, tmp_path, kinds):
    names = dict(model.named_parameters()).keys()
    swap(model, kinds)
    expected = logits_of(model, input_ids)
    restore_layers(model)
    torch.testing.assert_close(logits_of(model, input_ids), expected, **CLOSE)
    assert dict(model.named_parameters()).keys() == names and describe_swaps(model) == []
    assert all(parameter.requires_grad for parameter in model.parameters())
    save_model(model, tmp_path)
    assert torch.equal(logits_of(load_model(tmp_path), input_ids), logits_of(model, input_ids))


def test_gradients_reach_every_addition_and_no_frozen_layer(shake, all_configs, input_ids):
    model = swap(shake(all_configs["qwen3-head-dim"]), "int8 lora")
    model(input_ids).square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    added = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert {n for n in moved if "lora_" in n} == {f"{name}.{part}" for name in added for part in ("lora_A", "lora_B")}
    assert not any("base" in name for name in moved)


def test_a_pattern_that_no_layer_has_is_refused(shake, all_configs):
    model = shake(all_configs["qwen3-gqa"])
    with pytest.raises(UserError, match="no linear layer is named qproj") as refused:
        add_lora(model, ["q_proj", "qproj"], rank=2, alpha=2)
    assert "q_proj" in (refused.value.remedy or "")
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    swap(model, "lora")
    with pytest.raises(UserError, match="it is a LoRALinear already"):
        quantize_layers(model, "int8")


@pytest.mark.parametrize(
    ("kind", "numbers", "what"),
    [
        ("int2", {}, "no quantization is called 'int2'"),
        ("lora", {}, "no quantization is called 'lora'"),
        ("int4", {"group_size": 7}, "group_size 7 is not possible"),
        ("int8", {"group_size": 0}, "group_size 0 is not possible"),
        (None, {"rank": 0, "alpha": 1.0}, "rank 0 is not possible"),
        (None, {"rank": 2, "alpha": 1.0, "dropout": 2.0}, "dropout 2.0 is not possible"),
    ],
)
def test_what_cannot_be_is_refused_before_any_layer_is_swapped(shake, all_configs, kind, numbers, what):
    model = shake(all_configs["qwen3-gqa"])
    with pytest.raises(UserError) as refused:
        quantize_layers(model, kind, **numbers) if kind else add_lora(model, ["q_proj"], **numbers)
    assert what in refused.value.what and refused.value.remedy
    assert describe_swaps(model) == []


# --- others, and files of strangers
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", ["int8", "lora"])
def test_transformers_refuses_a_model_with_swapped_layers(transformers, shake, all_configs, tmp_path, kinds):
    save_model(swap(shake(all_configs["qwen3-gqa"]), kinds), tmp_path)
    for name in ("AutoConfig", "AutoModelForCausalLM"):
        with pytest.raises(ValueError, match="does not recognize this architecture"):
            getattr(transformers, name).from_pretrained(tmp_path)


@pytest.fixture
def swapped(shake, all_configs, tmp_path):
    save_model(swap(shake(all_configs["qwen3-gqa"]), "int8 lora"), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"kind": "int3"}, "no known kind"),
        ({"group_size": 0}, "group_size 0 is not possible"),
        ({"group_size": True}, "group_size True is not possible"),
        ({"kind": "int4", "group_size": 7}, "group_size 7 is not possible"),
        ({"group_size": 16}, "has shape"),
        ({"more": 1}, "need names and group_size, and nothing else"),
        ({"names": "model"}, "need names"),
        ({"names": ["x"] * 1001}, "are not at most 1,000 names"),
        ({"names": [""]}, "are not at most"),
        ({"names": ["model.layers.*.self_attn.x_proj"]}, "no linear layer of this model is named"),
        ({"names": ["model.layers.0.self_attn.q_proj"]}, "missing tensors"),
        ({"kind": "lora", "rank": 2, "alpha": 1.0, "dropout": 0.0}, "need names and rank"),
    ],
)
def test_records_are_checked_before_anything_is_built(swapped, change, what):
    config = json.loads((swapped / "config.json").read_text())
    config["swaps"][0] |= change
    (swapped / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as refused:
        load_model(swapped)
    assert what in str(refused.value) and refused.value.exit_code == ExitCode.BAD_DATA


@pytest.mark.parametrize("swaps", [None, [], {}, [3], "x", [{"kind": []}], [{}] * 101])
def test_swaps_of_another_form_are_refused(swapped, swaps):
    config = json.loads((swapped / "config.json").read_text())
    (swapped / "config.json").write_text(json.dumps({**config, "swaps": swaps}))
    with pytest.raises(UserError) as refused:
        load_config(swapped)
    assert refused.value.exit_code == ExitCode.BAD_DATA


def test_a_layer_is_swapped_once(swapped):
    config = json.loads((swapped / "config.json").read_text())
    config["swaps"].append(config["swaps"][0])
    (swapped / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="already"):
        load_model(swapped)


def test_integers_of_another_type_are_refused(swapped):
    from safetensors.torch import save_file

    name = "model.layers.0.self_attn.k_proj.quantized"
    tensors = load_file(swapped / "model.safetensors")
    save_file({**tensors, name: tensors[name].float()}, swapped / "model.safetensors")
    with pytest.raises(UserError, match="has dtype F32; known: I8"):
        load_model(swapped)


def test_an_ordinary_config_has_no_swaps(shake, all_configs, tmp_path):
    save_model(shake(all_configs["qwen3-gqa"]), tmp_path)
    assert read_config(tmp_path)[1] == []
    assert "swaps" not in json.loads((tmp_path / "config.json").read_text())
