"""Small random models whose next token is far from obvious."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tiny_transformer.config.shapes import LlamaConfig, Qwen3Config, Qwen3NextConfig
from tiny_transformer.models import build_model, save_model
from tiny_transformer.tokenizers import make_tokenizer

sys.path.insert(0, str(Path(__file__).parent))

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama_window": LlamaConfig(**SHAPE, sliding_window=6),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=False),
    "qwen3_next": Qwen3NextConfig(
        **SHAPE,
        head_dim=16,
        full_attention_interval=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors gain nothing from threads, and other work shares the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=CONFIGS)
def model(request):
    """Each kind of model in turn, in float64: what differs by more than 1e-9 is no rounding. The models' contract has
    tests in float32."""
    return build_model(CONFIGS[request.param], seed=1, dtype=torch.float64).eval()


@pytest.fixture(scope="session")
def qwen3():
    """One model, where the kind does not matter."""
    return build_model(CONFIGS["qwen3"], seed=2).eval()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small Qwen3 and a byte tokenizer."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer("byte")
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    save_model(build_model(config, seed=0), directory, eos_token_id=tokenizer.end_id)
    tokenizer.save(directory)
    return directory
