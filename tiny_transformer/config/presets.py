"""Named configs: model sizes that can be asked for without writing a file (`--config small`).

The four sizes and the GPT-2 one are a classic decoder with LayerNorm, dropout 0.1 and tied embeddings, in the shapes
that small-GPT tutorials use.
"""

from __future__ import annotations

from typing import Any


def _classic(
    hidden_size: int, heads: int, layers: int, context: int, vocab_size: int | None = None, **training: Any
) -> dict[str, Any]:
    return {
        "model": {
            "model_type": "llama",
            "norm_type": "layernorm",
            "hidden_size": hidden_size,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "num_hidden_layers": layers,
            # 8/3 of the width: three SwiGLU matrices then weigh as much as a classic block's two of four times the
            # width
            "intermediate_size": -(-8 * hidden_size // 3 // 8) * 8,
            "max_position_embeddings": context,
            "tie_word_embeddings": True,
            "vocab_size": vocab_size,
        },
        "data": {"seq_len": context},
        "training": {"dropout": 0.1, "learning_rate": 3e-4, **training},
    }


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _classic(128, 4, 4, 128),
    "small": _classic(256, 8, 6, 256),
    "medium": _classic(512, 8, 12, 512),
    "large": _classic(768, 12, 24, 1024),
    "gpt2": _classic(
        768, 12, 12, 1024, 50_257, learning_rate=2.5e-4, micro_batch_size=12, steps=600_000, warmup_steps=2000
    ),
}
