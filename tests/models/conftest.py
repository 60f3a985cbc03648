"""The table of models that the contract and the parity tests run over."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from exact_delta_rule import exact_chunk_rule, replacements

from tiny_transformer.config.shapes import LlamaConfig, ModelConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig
from tiny_transformer.models import build_model

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
}

# Widths that differ wherever two could be confused; a hybrid with one attention layer in the middle.
NEXT = {
    **TINY,
    "head_dim": 16,
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}

# Scaled positions, of a short original context: 17 tokens already tell the kinds apart.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_SET = {**YARN, "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 0.9}

CONFIGS = {
    "llama-rmsnorm": LlamaConfig(**TINY),
    "llama-untied-bias": LlamaConfig(**TINY, tie_word_embeddings=False, attention_bias=True),
    "llama-layernorm": LlamaConfig(**TINY, norm_type="layernorm"),
    "llama-window": LlamaConfig(**TINY, sliding_window=5),
    "llama-mqa": LlamaConfig(**{**TINY, "num_key_value_heads": 1}),
    "llama-mha": LlamaConfig(**{**TINY, "num_key_value_heads": 4}),
    "llama-wide-heads": LlamaConfig(**TINY, head_dim=12),
    "llama-qkv-bias": LlamaConfig(**TINY, qkv_bias=True),
    "llama-layernorm-qkv-bias": LlamaConfig(**TINY, norm_type="layernorm", qkv_bias=True),
    "llama-linear": LlamaConfig(**TINY, rope_scaling={"rope_type": "linear", "factor": 3.0}),
    "llama-llama3": LlamaConfig(**{**TINY, "head_dim": 16}, rope_scaling=LLAMA3),
    "llama-yarn": LlamaConfig(**{**TINY, "head_dim": 16}, rope_scaling=YARN_SET),
    "qwen3-yarn": Qwen3Config(**{**TINY, "head_dim": 16}, rope_scaling=YARN),
    "llama-window-yarn": LlamaConfig(**{**TINY, "head_dim": 16}, sliding_window=5, rope_scaling=YARN),
    "llama-qkv-bias-yarn": LlamaConfig(**TINY, qkv_bias=True, rope_scaling=YARN),
    "llama-layernorm-linear": LlamaConfig(
        **TINY, norm_type="layernorm", rope_scaling={"rope_type": "linear", "factor": 3.0}
    ),
    "olmo2-yarn": Olmo2Config(**TINY, rope_scaling=YARN),
    "next-yarn": Qwen3NextConfig(
        **{**NEXT, "full_attention_interval": 1}, num_experts=0, rope_scaling=YARN, partial_rotary_factor=0.5
    ),
    "olmo2-gqa": Olmo2Config(**TINY),
    "olmo2-untied-bias": Olmo2Config(**TINY, tie_word_embeddings=False, attention_bias=True, rms_norm_eps=1e-3),
    "qwen3-gqa": Qwen3Config(**TINY),
    "qwen3-untied": Qwen3Config(**TINY, tie_word_embeddings=False),
    "qwen3-head-dim": Qwen3Config(**TINY, head_dim=12, attention_bias=True),
    "qwen3-late-window": Qwen3Config(**TINY, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "next-sparse": Qwen3NextConfig(**NEXT, **EXPERTS),
    "next-mixed": Qwen3NextConfig(
        **NEXT, **EXPERTS, mlp_only_layers=(1,), tie_word_embeddings=False, partial_rotary_factor=0.5
    ),
    "next-second-head": Qwen3NextConfig(**NEXT, **EXPERTS, num_nextn_predict_layers=1, attention_bias=True),
    "next-dense": Qwen3NextConfig(**NEXT, num_experts=0, num_nextn_predict_layers=1),
}


def shaken_model(config: ModelConfig, *, seed: int = 0, **arguments):
    """A model of which every parameter, norms and biases too, has left its initial value; logits are of size one."""
    model = build_model(config, seed=seed, **arguments)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.15, generator=generator).to(parameter.dtype))
    return model.eval()


@pytest.fixture(scope="session")
def all_configs() -> dict[str, ModelConfig]:
    """The whole table by name."""
    return CONFIGS


@pytest.fixture(scope="session")
def shake():
    """`shake(config, seed=0, **build_model arguments)`: a model with every parameter off its initial value."""
    return shaken_model


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Each model and variant in turn."""
    return CONFIGS[request.param]


@pytest.fixture
def model(config):
    """Each model and variant in turn, shaken, in evaluation mode."""
    return shaken_model(config)


@pytest.fixture(scope="module")
def transformers():
    """transformers 5, without its progress bars, with an exact delta rule."""
    module = pytest.importorskip("transformers")
    module.utils.logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in replacements(module):
            patch.setattr(owner, name, exact_chunk_rule)
        yield module


@pytest.fixture
def input_ids() -> torch.Tensor:
    """Three rows of 17 tokens."""
    return torch.randint(0, TINY["vocab_size"], (3, 17), generator=torch.Generator().manual_seed(5))
