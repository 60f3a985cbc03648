"""Heads that begin by looking at the token before."""

from __future__ import annotations

import pytest
import torch

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.shapes import DecoderConfig, LlamaConfig, Qwen3Config
from tiny_transformer.errors import UserError
from tiny_transformer.inspection.observe import observe
from tiny_transformer.models import build_model

WIDE = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
SHAPES: dict[str, DecoderConfig] = {
    "qwen3": Qwen3Config(**WIDE, num_attention_heads=4, num_key_value_heads=2),
    "every head its own keys": Qwen3Config(**WIDE, num_attention_heads=4, num_key_value_heads=4),
    "slow turns": Qwen3Config(**WIDE, num_attention_heads=4, num_key_value_heads=2, rope_theta=1e6),
    "fast turns": Qwen3Config(**WIDE, num_attention_heads=4, num_key_value_heads=2, rope_theta=100),
    "wide heads": Qwen3Config(**WIDE, num_attention_heads=2, num_key_value_heads=1, head_dim=128),
    "narrow heads": Qwen3Config(**WIDE, num_attention_heads=4, num_key_value_heads=2, head_dim=16),
    "window": LlamaConfig(**WIDE, num_attention_heads=2, num_key_value_heads=2, sliding_window=64),
    "biases": LlamaConfig(**WIDE, num_attention_heads=4, num_key_value_heads=2, attention_bias=True),
    "few words": Qwen3Config(**WIDE | {"vocab_size": 3}, num_attention_heads=4, num_key_value_heads=2),
    "yarn": LlamaConfig(
        **WIDE,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    ),
    "llama": LlamaConfig(**WIDE, num_attention_heads=4, num_key_value_heads=2),
    "llama with LayerNorm": LlamaConfig(**WIDE, num_attention_heads=4, norm_type="layernorm"),
    "untied": LlamaConfig(**WIDE, num_attention_heads=4, tie_word_embeddings=False),
}


def weights_of(shape: DecoderConfig, *, init: bool) -> torch.Tensor:
    """(H, T, T) of the first layer over random tokens."""
    model = build_model(shape, seed=3, previous_token_init=init).eval()
    ids = torch.randint(shape.known_vocab_size, (300,), generator=torch.Generator().manual_seed(0))
    return observe(model, ids.tolist()).attention[0]


@pytest.mark.parametrize("name", SHAPES)
def test_the_first_heads_look_at_the_two_tokens_before(name):
    weights = weights_of(SHAPES[name], init=True)
    assert weights[0].diagonal(-1).min() > 0.8
    assert weights[1].diagonal(-2)[1:].min() > 0.8
    plain = weights_of(SHAPES[name], init=False)
    assert plain[0].diagonal(-1)[100:].max() < 0.05  # otherwise all tokens count alike


def test_a_shared_direction_adds_the_same_number_to_every_logit_of_a_tied_head():
    plain, looking = (build_model(SHAPES["qwen3"], seed=3, previous_token_init=init) for init in (False, True))
    hidden = torch.randn(50, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        before, after = (hidden @ model.lm_head.weight.double().T for model in (plain, looking))
    assert (after - before).mean(dim=1).abs().max() > 0.1
    torch.testing.assert_close(after.softmax(-1), before.softmax(-1), rtol=1e-5, atol=0)


def test_it_draws_after_all_other_weights():
    shape = SHAPES["qwen3"]
    plain, looking = (build_model(shape, seed=3, previous_token_init=init) for init in (False, True))
    changed = {n for (n, a), b in zip(plain.named_parameters(), looking.parameters(), strict=True) if not a.equal(b)}
    first = "model.layers.0.self_attn."
    assert changed == {"model.embed_tokens.weight"} | {
        first + name for name in ("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight")
    }


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"model_type": "olmo2"}, "llama or qwen3, not that of a olmo2"),
        ({"model_type": "qwen3_next"}, "llama or qwen3, not that of a qwen3_next"),
        ({"head_dim": 8}, "head_dim of at least 12 .* not 8"),
        ({"model_type": "llama", "sliding_window": 2}, "look two tokens back, and those of the first layer see 2"),
        ({"use_sliding_window": True, "sliding_window": 1}, "see 1"),
        ({"rope_theta": 1.5}, "rope_theta of at least 2"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "no linear scaling"),
    ],
)
def test_other_first_layers_are_refused_by_name(model, why):
    with pytest.raises(UserError, match=why):
        load_run_config({"model": model, "training": {"steps": 1, "previous_token_init": True}})
