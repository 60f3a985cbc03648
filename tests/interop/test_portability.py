"""What is said about other programs is true of them: each shape is opened in mlx-lm where it is installed, logits too.

transformers has its own tests (models/test_parity.py), llama.cpp too (test_llama_cpp.py), and vLLM where it is
installed (test_vllm.py); otherwise its rules are read from its sources, and `BASIS` says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_transformer.config.shapes import LlamaConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig
from tiny_transformer.interop.gguf.tokenizer import name_refusal
from tiny_transformer.interop.portability import portability, refusal
from tiny_transformer.models import build_model, save_model
from tiny_transformer.tokenizers.make import byte_tokenizer, char_tokenizer

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
NEXT = {
    **SHAPE,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
DENSE = {k: v for k, v in NEXT.items() if "expert" not in k and "moe" not in k}
# shape -> the programs that do not open it, each with a word of the reason
TABLE = {
    "llama": (LlamaConfig(**SHAPE), {}),
    "llama untied bias": (LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True), {}),
    "llama wide heads": (LlamaConfig(**SHAPE, head_dim=16), {}),
    "llama odd heads": (LlamaConfig(**SHAPE, head_dim=12), {"vLLM": "12"}),
    "llama window": (LlamaConfig(**SHAPE, sliding_window=5), {"llama.cpp": "sliding_window 5", "mlx-lm": "5"}),
    "llama idle window": (LlamaConfig(**SHAPE, sliding_window=64), {}),
    "qwen2": (LlamaConfig(**SHAPE, qkv_bias=True), {}),
    "llama linear": (LlamaConfig(**SHAPE, rope_scaling={"rope_type": "linear", "factor": 3.0}), {}),
    "llama llama3": (LlamaConfig(**SHAPE, head_dim=16, rope_scaling=LLAMA3), {}),
    "llama yarn": (LlamaConfig(**SHAPE, head_dim=16, rope_scaling=YARN), {}),
    "llama yarn factor": (
        LlamaConfig(**SHAPE, head_dim=16, rope_scaling={**YARN, "attention_factor": 0.9}),
        {"llama.cpp": "attention_factor", "mlx-lm": "attention_factor"},
    ),
    "qwen3 llama3": (Qwen3Config(**SHAPE, head_dim=16, rope_scaling=LLAMA3), {"llama.cpp": "llama3 in its llama"}),
    "qwen3 yarn": (Qwen3Config(**SHAPE, head_dim=16, rope_scaling=YARN), {}),
    "layernorm": (LlamaConfig(**SHAPE, norm_type="layernorm"), {"mlx-lm": "head of its own"}),
    "layernorm untied": (LlamaConfig(**SHAPE, norm_type="layernorm", tie_word_embeddings=False), {}),
    "olmo2": (Olmo2Config(**SHAPE), {}),
    "olmo2 bias": (Olmo2Config(**SHAPE, attention_bias=True), {"llama.cpp": "has no bias"}),
    "qwen3": (Qwen3Config(**SHAPE), {}),
    "qwen3 untied heads": (Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=False), {}),
    "qwen3 bias": (
        Qwen3Config(**SHAPE, attention_bias=True),
        {"vLLM": "o_proj", "llama.cpp": "o_proj", "mlx-lm": "o_proj"},
    ),
    "qwen3 window": (
        Qwen3Config(**SHAPE, **WINDOW),
        {"vLLM": "sliding_window 4", "llama.cpp": "sliding_window 4", "mlx-lm": "sliding_window 4"},
    ),
    "next": (Qwen3NextConfig(**NEXT), {}),
    "next MTP head": (Qwen3NextConfig(**NEXT, num_nextn_predict_layers=1), {}),
    "next widths": (
        Qwen3NextConfig(**{**NEXT, "linear_value_head_dim": 64}),
        {"llama.cpp": "linear_key_head_dim is 32 and linear_value_head_dim 64"},
    ),
    "next epsilon": (Qwen3NextConfig(**NEXT, rms_norm_eps=1e-3), {"llama.cpp": "1e-6 belongs"}),
    "next bias": (Qwen3NextConfig(**NEXT, attention_bias=True), {"vLLM": "bias", "llama.cpp": "bias on o_proj"}),
    "next dense layer": (Qwen3NextConfig(**NEXT, mlp_only_layers=(1,)), {"llama.cpp": "layers [1]"}),
    "next every second layer": (Qwen3NextConfig(**NEXT, decoder_sparse_step=2), {"llama.cpp": "layers [0, 2]"}),
    "next loose weights": (Qwen3NextConfig(**NEXT, norm_topk_prob=False), {"llama.cpp": "norm_topk_prob"}),
    "next other pattern": (
        Qwen3NextConfig(**NEXT, layer_types=("full_attention", *["linear_attention"] * 3)),
        {"mlx-lm": "not layer_types"},
    ),
    "next dense": (
        Qwen3NextConfig(**DENSE, num_experts=0),
        {"mlx-lm": "qwen3_5_text", "transformers 4.57": "no qwen3_5_text"},
    ),
}
# Shapes that no test opens: too large, or told by the readers' sources alone.
READ = {
    "one kind of layer": (Qwen3NextConfig(**{**NEXT, "full_attention_interval": 1}), "all are full_attention"),
    "other kind of layer": (Qwen3NextConfig(**{**NEXT, "num_hidden_layers": 3}), "all are linear_attention"),
    "many experts": (Qwen3NextConfig(**{**NEXT, "num_experts": 1025}), "1024 experts, not 1025"),
    "many layers": (Qwen3Config(**{**SHAPE, "num_hidden_layers": 513}), "512 layers, not 513"),
}

OPEN_ALL = """
import sys, json, numpy, mlx.core as mx
from pathlib import Path
from mlx_lm.utils import load_model
from safetensors.numpy import load_file, save_file
root = Path(sys.argv[1])
ids = mx.array(load_file(root / "ids.safetensors")["ids"])
logits, refused = {}, {}
for directory in sorted(p for p in root.iterdir() if p.is_dir()):
    try:
        logits[directory.name] = numpy.array(load_model(directory)[0](ids).astype(mx.float32))
    except Exception as error:
        refused[directory.name] = repr(error)[:200]
save_file(logits, root / "logits.safetensors")
(root / "refused.json").write_text(json.dumps(refused))
"""


@pytest.mark.parametrize("name", TABLE)
def test_each_program_is_named_with_its_reason(name):
    config, expected = TABLE[name]
    verdicts = {verdict.reader: verdict for verdict in portability(config)}
    assert list(verdicts) == ["transformers 5", "transformers 4.57", "vLLM", "vLLM on a CPU", "llama.cpp", "mlx-lm"]
    del verdicts["vLLM on a CPU"]  # see below
    assert {reader for reader, verdict in verdicts.items() if not verdict.opens} == expected.keys()
    for reader, verdict in verdicts.items():
        assert expected.get(reader, "") in str(verdict.reason)
        assert verdict.opens or "; set " in str(verdict.reason)  # what to change is said
        assert str(verdict).startswith(f"{reader}: yes, " if verdict.opens else f"{reader}: no: ")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Qwen3Config(**SHAPE, head_dim=32), None),
        (LlamaConfig(**SHAPE, head_dim=80), None),
        (Qwen3Config(**SHAPE, head_dim=16), "head_dim 16; set head_dim 32"),
        (Olmo2Config(**SHAPE), "head_dim 8; set head_dim 32"),
        (Qwen3Config(**SHAPE, head_dim=32, attention_bias=True), "no bias on o_proj"),
        (Qwen3NextConfig(**{**NEXT, "head_dim": 32}), "linear_value_head_dim 64"),
        (
            Qwen3NextConfig(**{**NEXT, "head_dim": 32, "linear_key_head_dim": 64, "linear_value_head_dim": 64}),
            "bfloat16 alone",
        ),
    ],
)
def test_what_vllm_does_on_a_cpu_is_told_apart(config, words):
    told = refusal(config, "vLLM on a CPU")
    assert told is None if words is None else words in str(told) and "; set " in str(told)


def test_transformers_4_57_knows_the_types_that_are_said_to_open_there(repository: Path):
    known = repository / ".cache" / "transformers-4.57" / "transformers" / "models" / "auto" / "configuration_auto.py"
    if not known.is_file():
        pytest.skip("transformers 4.57 is not installed beside the environment (make test does it)")
    text = known.read_text(encoding="utf-8")
    verdicts = {config.to_hf()["model_type"]: refusal(config, "transformers 4.57") for config, _ in TABLE.values()}
    assert verdicts.keys() == {"llama", "mistral", "olmo2", "stablelm", "qwen2", "qwen3", "qwen3_next", "qwen3_5_text"}
    assert {name for name, reason in verdicts.items() if not reason} == {n for n in verdicts if f'"{n}"' in text}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("char", "it works on characters"),
        ("bpe:sentencepiece", "no pieces for all bytes"),
        ("somebody/something", "not known yet"),
        ("bpe", None),
        ("byte", None),
        ("gpt2", None),
        ("bpe:own", None),
    ],
)
def test_the_tokenizer_named_in_the_config_is_judged(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    byte_tokenizer().save(tmp_path / "own")
    byte_tokenizer().save(tmp_path / "sentencepiece")
    content = json.loads((tmp_path / "sentencepiece" / "tokenizer.json").read_text())
    content["model"]["byte_fallback"] = True
    (tmp_path / "sentencepiece" / "tokenizer.json").write_text(json.dumps(content))
    reason = name_refusal(name, tmp_path / "data")
    assert (reason is None) if words is None else (words in str(reason) and name in str(reason))
    verdicts = {verdict.reader: verdict.reason for verdict in portability(Qwen3Config(**SHAPE, head_dim=32), reason)}
    assert verdicts.pop("llama.cpp") == reason and set(verdicts.values()) == {None}


def test_the_tokenizer_of_prepared_data_counts(tmp_path):
    char_tokenizer("abc").save(tmp_path)
    assert "works on characters" in str(name_refusal("bpe", tmp_path))


@pytest.mark.parametrize("name", READ)
def test_llama_cpp_is_not_given_what_stops_it(name):
    config, reason = READ[name]
    told = str(refusal(config, "llama.cpp"))
    assert reason in told and "; set " in told


@pytest.mark.slow
def test_mlx_opens_what_is_said_and_computes_something_else_or_nothing_otherwise(repository: Path, tmp_path: Path):
    mlx = repository / ".cache" / "mlx"
    if not (mlx / "mlx_lm").is_dir():
        pytest.skip("mlx-lm is not installed beside the environment (make mlx does it)")
    ids = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(9))
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    expected = {}
    for name, (config, _) in TABLE.items():
        model = build_model(config, seed=0).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
            expected[name] = model(ids)
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name, eos_token_id=3)
    environment = {**os.environ, "PYTHONPATH": str(mlx), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OPEN_ALL, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, refused = load_file(tmp_path / "logits.safetensors"), json.loads((tmp_path / "refused.json").read_text())
    for name, (_, reasons) in TABLE.items():
        if "mlx-lm" in reasons:
            assert name in refused or (logits[name] - expected[name]).abs().max() > 1e-2, name
        else:
            assert name in logits, (name, refused.get(name))
            torch.testing.assert_close(
                logits[name], expected[name], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n} {m}"
            )
