"""The same logits as transformers, in both directions and with both of its major versions.

Every parameter is moved off its initial value first, norms and biases too, and rope_theta is not the default: a norm
that is left out, or a rotary base that is not read, would change nothing otherwise. Their delta rule is replaced by an
exact one (`exact_delta_rule.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_transformer.layers.norm import LateCastRMSNorm, RMSNorm
from tiny_transformer.models import load_model, save_model

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
THETA = {"rope_theta": 700.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
HYBRID = {
    **SHAPE,
    "rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.25},
    "head_dim": 16,
    "full_attention_interval": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 3,
}
NEXT = {
    **HYBRID,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
# Written in Hugging Face's words, on purpose not with our `to_hf`: class name -> arguments, for each kind of model.
THEIRS = {
    "llama": ("LlamaConfig", {**SHAPE, **ROPE}),
    "llama-defaults": ("LlamaConfig", {**SHAPE, "tie_word_embeddings": True, "num_key_value_heads": None}),
    "llama-bias": ("LlamaConfig", {**SHAPE, **ROPE, "attention_bias": True, "head_dim": 12, "rms_norm_eps": 1e-3}),
    "llama-linear": ("LlamaConfig", {**SHAPE, "rope_parameters": {**THETA, "rope_type": "linear", "factor": 3.0}}),
    "llama-llama3": ("LlamaConfig", {**SHAPE, "head_dim": 16, "rope_parameters": {**THETA, **LLAMA3}}),
    "llama-yarn": ("LlamaConfig", {**SHAPE, "head_dim": 16, "rope_parameters": {**THETA, **YARN}}),
    "qwen3-yarn": ("Qwen3Config", {**SHAPE, "head_dim": 16, "rope_parameters": {**THETA, **YARN, "beta_fast": 4}}),
    "qwen3-yarn-factor": (
        "Qwen3Config",
        {**SHAPE, "head_dim": 16, "rope_parameters": {**THETA, **YARN, "attention_factor": 0.9, "beta_slow": 0.5}},
    ),
    "qwen2": ("Qwen2Config", {**SHAPE, **ROPE}),
    "qwen2-tied": ("Qwen2Config", {**SHAPE, "tie_word_embeddings": True, "use_sliding_window": False}),
    "mistral": ("MistralConfig", {**SHAPE, **ROPE, "sliding_window": 5}),
    "mistral-full": ("MistralConfig", {**SHAPE, **ROPE, "sliding_window": None, "tie_word_embeddings": True}),
    "stablelm": (
        "StableLmConfig",
        {**SHAPE, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 1.0}},
    ),
    "olmo2": ("Olmo2Config", {**SHAPE, **ROPE}),
    "olmo2-defaults": ("Olmo2Config", {**SHAPE, "tie_word_embeddings": True, "num_key_value_heads": None}),
    "olmo2-bias": ("Olmo2Config", {**SHAPE, **ROPE, "attention_bias": True, "rms_norm_eps": 1e-3}),
    "stablelm-bias": (
        "StableLmConfig",
        {
            **SHAPE,
            "rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 1.0},
            "use_qkv_bias": True,
        },
    ),
    "qwen3": ("Qwen3Config", {**SHAPE, **ROPE, "head_dim": 12, "tie_word_embeddings": True}),
    "qwen3-class-head-dim": ("Qwen3Config", {**SHAPE, "attention_bias": True}),
    "qwen3-window": (
        "Qwen3Config",
        {**SHAPE, **ROPE, "head_dim": 12, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3-next": ("Qwen3NextConfig", NEXT),
    "qwen3-next-mixed": (
        "Qwen3NextConfig",
        {
            **{**NEXT, "rope_parameters": {**NEXT["rope_parameters"], "partial_rotary_factor": 0.5}},
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "mlp_only_layers": [2],
            "norm_topk_prob": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3.5-text": ("Qwen3_5TextConfig", HYBRID),
}


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(9))


def moved_hf_model(transformers, name: str):
    class_name, arguments = THEIRS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, class_name)(**arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def close_to(expected: torch.Tensor) -> dict[str, float]:
    """Bounds of float32 logits: some thirty products in a row, of up to 48 terms each, summed in another order on every
    processor. What is left out or read wrongly changes the second digit."""
    return {"rtol": 0, "atol": 128 * torch.finfo(torch.float32).eps * float(expected.abs().max())}


def hf_logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("name", THEIRS)
def test_their_model_has_the_same_logits_here(transformers, name, ids, tmp_path):
    theirs = moved_hf_model(transformers, name)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    expected = hf_logits(theirs, ids)
    assert expected.abs().max() > 0.5
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), expected, **close_to(expected))


def test_our_model_has_the_same_logits_there(transformers, model, ids, tmp_path):
    save_model(model, tmp_path, eos_token_id=3)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.generation_config.eos_token_id == 3
    with torch.no_grad():
        expected = model(ids)
        torch.testing.assert_close(hf_logits(theirs, ids), expected, **close_to(expected))


def test_their_shards_load_like_one_file(transformers, ids, tmp_path):
    theirs = moved_hf_model(transformers, "qwen3")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with torch.no_grad():
        expected = hf_logits(theirs, ids)
        torch.testing.assert_close(load_model(tmp_path)(ids), expected, **close_to(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_half_precision_rms_norm_equals_theirs_to_the_bit(transformers, family, dtype):
    if family == "qwen3":
        theirs, ours = transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm(32, eps=1e-5), RMSNorm(32, 1e-5)
    else:
        theirs, ours = transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm(32, eps=1e-5), LateCastRMSNorm(32, 1e-5)
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(32, generator=generator))
        ours.weight.copy_(theirs.weight)
        hidden = torch.randn(64, 32, generator=generator).to(dtype)
        assert torch.equal(ours(hidden), theirs(hidden))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_keep_their_dtype_both_ways(transformers, shake, all_configs, ids, tmp_path, dtype):
    model = shake(all_configs["qwen3-gqa"], dtype=dtype)
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == load_model(tmp_path).model.norm.weight.dtype == dtype
    # Compared in float32, where both compute the same up to rounding.
    wide = load_model(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = hf_logits(theirs.float(), ids)
        torch.testing.assert_close(wide(ids), expected, **close_to(expected))


OPEN_ALL = """
import sys, torch, transformers
from pathlib import Path
from exact_delta_rule import exact_chunk_rule, replacements
from safetensors.torch import load_file, save_file
assert transformers.__version__.startswith("4.57"), transformers.__version__
transformers.utils.logging.set_verbosity_error()
for owner, name in replacements(transformers):
    setattr(owner, name, exact_chunk_rule)
root = Path(sys.argv[1])
ids = load_file(root / "ids.safetensors")["ids"]
logits = {}
for directory in sorted(p for p in root.iterdir() if p.is_dir()):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), (directory.name, report)
    with torch.no_grad():
        logits[directory.name] = model.eval()(ids).logits.contiguous()
save_file(logits, root / "logits.safetensors")
"""


def test_our_models_have_the_same_logits_in_transformers_4_57(shake, all_configs, ids, repository, tmp_path):
    old = repository / ".cache" / "transformers-4.57"
    if not (old / "transformers").is_dir():
        pytest.skip("transformers 4.57 is not installed beside the environment (make test does it)")
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    expected = {}
    for name, config in all_configs.items():
        if "transformers 4.57" in {reader for reader, reason in config.refusals().items() if reason}:
            continue
        model = shake(config)
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name)
        with torch.no_grad():
            expected[name] = model(ids)
    # The trap: without the top-level rope_theta this version computes with 10000, and says nothing.
    trap = shutil.copytree(tmp_path / "qwen3-gqa", tmp_path / "trap")
    config = json.loads((trap / "config.json").read_text())
    del config["rope_theta"]
    (trap / "config.json").write_text(json.dumps(config))

    found = run_in_old_transformers(old, tmp_path)
    trapped = found.pop("trap")
    assert found.keys() == expected.keys()
    for name, logits in found.items():
        bounds = close_to(expected[name])
        torch.testing.assert_close(logits, expected[name], **bounds, msg=lambda text, name=name: f"{name}: {text}")
    assert (trapped - expected["qwen3-gqa"]).abs().max() > 1e-2


def run_in_old_transformers(old: Path, root: Path) -> dict[str, torch.Tensor]:
    """Logits of every model directory under `root`, computed by transformers 4.57 in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{old}:{Path(__file__).parent}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", OPEN_ALL, str(root)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(root / "logits.safetensors")
