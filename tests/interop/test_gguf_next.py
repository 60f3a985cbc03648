"""GGUF files of Qwen3-Next and of the dense Qwen3.5 hybrids: turned back head by head, they are the model's tensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tiny_transformer.config.shapes import Qwen3NextConfig
from tiny_transformer.errors import UserError
from tiny_transformer.interop.command import run_export
from tiny_transformer.interop.gguf.exporting import export_gguf
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.tokenizers import make_tokenizer

gguf = pytest.importorskip("gguf")

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "full_attention_interval": 2,
    "max_position_embeddings": 48,
    "rope_theta": 5000.0,
    "partial_rotary_factor": 0.5,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "num_nextn_predict_layers": 1,
}
CONFIGS = {
    "qwen3next": Qwen3NextConfig(
        **SHAPE, num_experts=3, moe_intermediate_size=24, shared_expert_intermediate_size=40, tie_word_embeddings=False
    ),
    "qwen35": Qwen3NextConfig(**SHAPE, num_experts=0, intermediate_size=48),
}
NAMES = {  # of tensors that are written as they are
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "linear_attn.norm": "ssm_norm",
}
NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def export(name: str, folder: Path, kind: str = "f32") -> tuple[Qwen3NextConfig, dict, dict, dict]:
    """The config, the model's tensors, the file's keys, the file's tensors."""
    config, directory = CONFIGS[name], folder / "m"
    directory.mkdir()
    model = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.15, generator=generator))
    save_model(model, directory)
    make_tokenizer("byte", texts=["cats"]).save(directory)
    export_gguf(directory, folder / "m.gguf", kind=kind)
    reader = gguf.GGUFReader(folder / "m.gguf")
    keys = {key: field.contents() for key, field in reader.fields.items()}
    state = {key: tensor.numpy() for key, tensor in load_model(directory).state_dict().items()}
    return config, state, keys, {tensor.name: tensor for tensor in reader.tensors}


def their_place(name: str, head: int) -> int:
    """Where value head `head` of ours stands: qwen35 puts the first head of each key head first, then the second."""
    key_head, which = divmod(head, 3)
    return head if name == "qwen3next" else which * 2 + key_head


def delta_rule_back(name: str, found: dict, place: str) -> dict[str, np.ndarray]:
    """The tensors of one delta-rule layer in Hugging Face's layout, put together row by row."""
    qkv, z, conv = (found.pop(f"{place}.{part}.weight") for part in ("attn_qkv", "attn_gate", "ssm_conv1d"))
    order = [their_place(name, head) for head in range(6)]
    rows = [8 * head + i for head in order for i in range(8)]
    back = {
        "A_log": np.log(-found.pop(f"{place}.ssm_a"))[order],
        "dt_bias": found.pop(f"{place}.ssm_dt.bias")[order],
        "conv1d.weight": np.concatenate([conv[:32], conv[32:][rows]])[:, None],
        "out_proj.weight": found.pop(f"{place}.ssm_out.weight")[:, rows],
    }
    if name == "qwen35":
        beta, alpha = found.pop(f"{place}.ssm_beta.weight"), found.pop(f"{place}.ssm_alpha.weight")
        three = {"in_proj_z.weight": z[rows], "in_proj_b.weight": beta[order], "in_proj_a.weight": alpha[order]}
        return back | three | {"in_proj_qkv.weight": np.concatenate([qkv[:32], qkv[32:][rows]])}
    packed = []
    for key_head in range(2):
        packed += [qkv[8 * key_head :][:8], qkv[16 + 8 * key_head :][:8]]
        packed += [qkv[32 + 24 * key_head :][:24], z[24 * key_head :][:24]]
    return back | {
        "in_proj_qkvz.weight": np.concatenate(packed),
        "in_proj_ba.weight": found.pop(f"{place}.ssm_ba.weight"),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_turned_back_is_the_models(name, tmp_path):
    config, state, keys, tensors = export(name, tmp_path)
    assert keys["general.architecture"] == name
    found = {key: np.array(tensor.data) for key, tensor in tensors.items()}
    back = {"model.embed_tokens.weight": found.pop("token_embd.weight")}
    back["model.norm.weight"] = found.pop("output_norm.weight") - 1
    back["lm_head.weight"] = back["model.embed_tokens.weight"] if name == "qwen35" else found.pop("output.weight")
    for i, kind in enumerate(config.layer_types):
        place, ours = f"blk.{i}", f"model.layers.{i}"
        for old, new in NORMS.items():
            if f"{place}.{new}.weight" in found:
                back[f"{ours}.{old}.weight"] = found.pop(f"{place}.{new}.weight") - 1
        for old, new in NAMES.items():
            if f"{place}.{new}.weight" in found:
                back[f"{ours}.{old}.weight"] = found.pop(f"{place}.{new}.weight")
        if kind == "linear_attention":
            parts = delta_rule_back(name, found, place)
            back |= {f"{ours}.linear_attn.{part}": value for part, value in parts.items()}
        if name == "qwen3next":
            back[f"{ours}.mlp.shared_expert_gate.weight"] = found.pop(f"{place}.ffn_gate_inp_shexp.weight")[None]
            for part in ("gate", "up", "down"):
                for expert, value in enumerate(found.pop(f"{place}.ffn_{part}_exps.weight")):
                    back[f"{ours}.mlp.experts.{expert}.{part}_proj.weight"] = value
    assert not found
    assert back.keys() == {key for key in state if not key.startswith("mtp.")}
    for key, value in back.items():
        assert value.shape == state[key].shape, key
        # One is added and taken off again, or an exponential and a logarithm: one rounding each. Others are exact.
        inexact = key.endswith(("norm.weight", "A_log")) and "linear_attn.norm" not in key
        np.testing.assert_allclose(value, state[key], rtol=0, atol=3e-7 if inexact else 0, err_msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_reads_back(name, tmp_path):
    _, _, keys, _ = export(name, tmp_path)
    expected = {
        "block_count": 4,
        "embedding_length": 32,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
        "attention.recurrent_layers": [True, False, True, False],
        "full_attention_interval": 2,
        "rope.dimension_count": 8,
        "rope.freq_base": 5000.0,
        "ssm.conv_kernel": 3,
        "ssm.state_size": 8,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 6,
        "ssm.inner_size": 48,
    }
    if name == "qwen3next":
        expected |= {"expert_count": 3, "expert_used_count": 2}
        expected |= {"expert_feed_forward_length": 24, "expert_shared_feed_forward_length": 40}
    else:
        expected |= {"feed_forward_length": 48, "rope.dimension_sections": [2, 1, 1, 0]}
    assert {key: keys.get(f"{name}.{key}") for key in expected} == expected
    assert f"{name}.nextn_predict_layers" not in keys  # the MTP head is left out, and nothing says it is there


@pytest.mark.parametrize("name", CONFIGS)
def test_convolutions_and_routers_are_exact_in_every_kind(name, tmp_path):
    _, _, _, tensors = export(name, tmp_path, kind="q8_0")
    matrices = {key for key, tensor in tensors.items() if len(tensor.shape) > 1 and tensor.tensor_type.name == "F32"}
    routers = {f"blk.{i}.ffn_gate_inp.weight" for i in range(4)} if name == "qwen3next" else set()
    assert matrices == {"blk.0.ssm_conv1d.weight", "blk.2.ssm_conv1d.weight"} | routers
    assert tensors["blk.1.attn_q.weight"].tensor_type.name == "Q8_0"


def test_a_shape_that_llama_cpp_computes_differently_is_refused(tmp_path):
    directory = tmp_path / "m"
    directory.mkdir()
    save_model(build_model(Qwen3NextConfig(**{**SHAPE, "rms_norm_eps": 1e-5}), seed=0), directory)
    make_tokenizer("byte", texts=["cats"]).save(directory)
    with pytest.raises(UserError, match="no GGUF file of this shape: it adds rms_norm_eps"):
        export_gguf(directory, tmp_path / "m.gguf")


@pytest.mark.parametrize("num_heads", [0, 1])
def test_the_command_says_that_a_second_head_is_left_out(tmp_path, num_heads):
    config = Qwen3NextConfig(**{**SHAPE, "num_nextn_predict_layers": num_heads}, num_experts=0)
    save_model(build_model(config, seed=0), tmp_path)
    make_tokenizer("byte").save(tmp_path)
    screen = io.StringIO()
    run_export(tmp_path, kind="f32", out=tmp_path / "m.gguf", overwrite=False, console=Console(file=screen, width=400))
    assert ("the MTP head (mtp.*) is left out" in screen.getvalue()) == bool(num_heads)
