"""Every family, every preset, tied and untied, float32 and bfloat16, ours and imported: both versions of transformers
open the directory, compute our logits and write our greedy text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from open_in_transformers import NEW_TOKENS, PROMPT, open_all
from safetensors.torch import load_file

from tiny_transformer.config.presets import PRESETS
from tiny_transformer.config.shapes import LlamaConfig, ModelConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig
from tiny_transformer.generation.rows import Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.interop.hf import import_hf
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.tokenizers import load_tokenizer, make_tokenizer

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 0, "atol": 2e-5}
SHAPE = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
}
NEXT = {
    **SHAPE,
    "head_dim": 16,
    "full_attention_interval": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8}
FAMILIES: dict[str, tuple[type, dict]] = {
    "llama": (LlamaConfig, SHAPE),
    "mistral": (LlamaConfig, {**SHAPE, "sliding_window": 6}),  # shorter than the prompt
    "stablelm": (LlamaConfig, {**SHAPE, "norm_type": "layernorm"}),
    "olmo2": (Olmo2Config, SHAPE),
    "qwen2": (LlamaConfig, {**SHAPE, "qkv_bias": True}),
    "llama3": (LlamaConfig, {**SHAPE, "head_dim": 16, "rope_scaling": LLAMA3}),
    "yarn": (Qwen3Config, {**SHAPE, "head_dim": 16, "rope_scaling": YARN}),
    "qwen3": (Qwen3Config, {**SHAPE, "head_dim": 16}),
    "qwen3-window": (Qwen3Config, {**SHAPE, **WINDOW}),
    "qwen3_next": (Qwen3NextConfig, {**NEXT, **EXPERTS}),
    "qwen3_5_text": (Qwen3NextConfig, {**NEXT, "num_experts": 0}),
}
NOT_IN_4_57 = {"qwen3_5_text": "Qwen3.5 came after it"}
# The two small presets are as they are; of the others the width is cut to 8 features a head, all layers kept.
WHOLE = ("tiny", "small")


def matrix() -> dict[str, tuple[ModelConfig, torch.dtype]]:
    """name -> shape and data type."""
    found: dict[str, tuple[ModelConfig, torch.dtype]] = {}
    for tied in (True, False):
        word = "tied" if tied else "untied"
        for name, (kind, shape) in FAMILIES.items():
            for dtype in (torch.float32, torch.bfloat16):
                found[f"{name} {word} {str(dtype).removeprefix('torch.')}"] = (
                    kind(**shape, tie_word_embeddings=tied),
                    dtype,
                )
        for name, preset in PRESETS.items():
            shape = {**preset["model"], "vocab_size": 257, "tie_word_embeddings": tied}
            if name not in WHOLE:
                shape |= {"hidden_size": 8 * shape["num_attention_heads"], "intermediate_size": 64}
            found[f"preset {name} {word}"] = (LlamaConfig(**shape), torch.float32)
    return found


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers")
    module.utils.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="module")
def directories(tmp_path_factory, transformers) -> Path:
    """The matrix on disk; and of each untied bfloat16 family a copy in transformers' shards, imported again."""
    root = tmp_path_factory.mktemp("matrix")
    tokenizer = make_tokenizer("byte")
    for name, (config, dtype) in matrix().items():
        model = build_model(config, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
        (root / name).mkdir()
        save_model(model.to(dtype), root / name, eos_token_id=tokenizer.end_id)
        tokenizer.save(root / name)
        if name.endswith("untied bfloat16"):
            shards = tmp_path_factory.mktemp("shards") / "it"
            theirs = transformers.AutoModelForCausalLM.from_pretrained(root / name)
            theirs.save_pretrained(shards, max_shard_size="15KB")
            tokenizer.save(shards)
            assert len(list(shards.glob("*.safetensors"))) > 2
            import_hf(shards, root / f"{name} imported")
            for file in ("model.safetensors", "config.json"):
                assert (root / f"{name} imported" / file).read_bytes() == (root / name / file).read_bytes(), name
    return root


def compare(directories: Path, theirs: dict[str, tuple[torch.Tensor, list[int], str]]) -> None:
    settings = SamplingConfig(temperature=0, max_new_tokens=NEW_TOKENS)
    texts = set()
    for name, (logits, ids, words) in theirs.items():
        tokenizer = load_tokenizer(directories / name)
        model = load_model(directories / name, dtype=torch.float32)
        prompt = tokenizer.encode(PROMPT)
        written = [step[0] for step in Generation(model, [prompt], settings, end_ids=[])]
        ends = written.index(tokenizer.end_id) + 1 if tokenizer.end_id in written else NEW_TOKENS
        assert ids == [*prompt, *written[:ends]], name
        assert words == complete(model, tokenizer, [PROMPT], settings)[0], name
        with torch.no_grad():
            ours = model(torch.tensor([ids]))[0]
        assert ours.abs().max() > 0.1, name
        torch.testing.assert_close(logits, ours, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        texts.add(tuple(ids))
    assert len(texts) > len(theirs) / 4  # not all the same few tokens again and again


def test_transformers_5_computes_our_logits_and_writes_our_text(directories, transformers):
    assert transformers.__version__.startswith("5."), transformers.__version__
    theirs = open_all(transformers, directories)
    assert theirs.keys() == {path.name for path in directories.iterdir() if path.is_dir()}
    assert len(theirs) == 4 * len(FAMILIES) + 2 * len(PRESETS) + len(FAMILIES)
    compare(directories, theirs)


def test_transformers_4_57_computes_our_logits_and_writes_our_text(directories, repository, tmp_path):
    old = repository / ".cache" / "transformers-4.57"
    if not (old / "transformers").is_dir():
        pytest.skip("transformers 4.57 is not installed beside the environment (make test does it)")
    known = {path for path in directories.iterdir() if path.name.split()[0] not in NOT_IN_4_57}
    for path in known:
        (tmp_path / path.name).symlink_to(path)
    here, models = Path(__file__).parent, Path(__file__).parent.parent / "models"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{old}:{models}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(here / "open_in_transformers.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, texts = load_file(tmp_path / "logits.safetensors"), json.loads((tmp_path / "texts.json").read_text())
    assert logits.keys() == {path.name for path in known}
    compare(directories, {name: (logits[name], *texts[name]) for name in logits})
