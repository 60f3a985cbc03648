"""Small random models whose next token is far from obvious."""

from __future__ import annotations

import pytest
import torch

from tiny_transformer.config.model import LlamaConfig, Qwen3Config
from tiny_transformer.models import build_model

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
    """Each kind of model in turn, in float64: equal ways to compute a logit then differ by nothing that matters."""
    return build_model(CONFIGS[request.param], seed=1, dtype=torch.float64).eval()


@pytest.fixture(scope="session")
def qwen3():
    """One model, where the kind does not matter."""
    return build_model(CONFIGS["qwen3"], seed=2).eval()
