"""The peers of `train.py`: the same shape in other people's code, each behind one function that makes training steps.

`transformers` and `litgpt` come from the package index (`make peers`). nanoGPT is not a package; its model and settings
are rebuilt from what its repository publishes (commit 3adf61e): learned positions, LayerNorm without biases, GELU
feed-forward of four times the width, tied embeddings, output projections initialised smaller by sqrt(2 layers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """One of the shapes that are compared; `hidden` for the peers with a feed-forward of their own."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int
    seq_len: int
    batch: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def tokens(self) -> int:
        """In one step."""
        return self.batch * self.seq_len

    @property
    def flops_per_token(self) -> float:
        """6 x weights of matrix products, and the causal half of attention, forward and backward."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        weights = self.layers * (attention + 3 * self.hidden * self.feed_forward) + self.vocab * self.hidden
        return 6 * weights + 6 * self.layers * self.seq_len * self.hidden


SHAPES = {
    "tiny": Shape(hidden=64, layers=2, heads=2, kv_heads=1, feed_forward=192, vocab=512, seq_len=64, batch=4),
    "a": Shape(hidden=256, layers=6, heads=8, kv_heads=4, feed_forward=768, vocab=4096, seq_len=256, batch=16),
    "demo": Shape(hidden=128, layers=2, heads=4, kv_heads=2, feed_forward=384, vocab=2048, seq_len=512, batch=4),
    "124M": Shape(hidden=768, layers=12, heads=12, kv_heads=12, feed_forward=2048, vocab=50304, seq_len=1024, batch=16),
    "283M": Shape(hidden=640, layers=18, heads=4, kv_heads=1, feed_forward=2048, vocab=151646, seq_len=512, batch=16),
    "b": Shape(hidden=512, layers=8, heads=8, kv_heads=8, feed_forward=1536, vocab=16384, seq_len=512, batch=4),
}

Batches = Iterator[tuple[Tensor, Tensor]]  # input ids and labels, (B, T) each


class NanoGPT(nn.Module):
    """nanoGPT's model: (B, T) ids and labels to the mean loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.places = nn.Embedding(shape.seq_len, shape.hidden)
        self.blocks = nn.ModuleList(NanoBlock(shape.hidden, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden, bias=False)
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.head.weight = self.tokens.weight
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                narrower = math.sqrt(2 * shape.layers) if name.endswith("out.weight") else 1.0
                nn.init.normal_(weight, std=0.02 / narrower)

    def logits(self, ids: Tensor) -> Tensor:
        """(B, T) to (B, T, V)."""
        hidden = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(ids).flatten(0, 1).float(), labels.flatten())


class NanoBlock(nn.Module):
    """Attention and a GELU feed-forward."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, bias=False) for _ in range(2))
        self.qkv, self.attention_out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.up, self.feed_out = nn.Linear(hidden, 4 * hidden, bias=False), nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv(self.norms[0](hidden)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        hidden = hidden + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.feed_out(F.gelu(self.up(self.norms[1](hidden))))


def nanogpt_optimizer(model: nn.Module, learning_rate: float = 1e-3) -> torch.optim.Optimizer:
    """AdamW as nanoGPT sets it for small models: betas 0.9 and 0.99, decay 0.1 on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=True)


class HuggingFace(nn.Module):
    """transformers' Qwen3 behind the same call."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = transformers_model(shape)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(input_ids=ids).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def transformers_model(shape: Shape) -> Any:
    """A Qwen3 as `transformers` builds it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.seq_len,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return Qwen3ForCausalLM(config)


class LitGPT(nn.Module):
    """litgpt's Qwen3 behind the same call."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from litgpt.model import GPT, Config

        config = Config.from_name(
            "Qwen3-0.6B",
            n_embd=shape.hidden,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_query_groups=shape.kv_heads,
            head_size=shape.head_dim,
            intermediate_size=shape.feed_forward,
            vocab_size=shape.vocab,
            padded_vocab_size=shape.vocab,
            block_size=shape.seq_len,
        )
        self.model = GPT(config)
        self.model.lm_head.weight = self.model.transformer.wte.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(ids).flatten(0, 1).float(), labels.flatten())


def plain_steps(
    model: nn.Module, batches: Batches, *, device: torch.device, dtype: torch.dtype | None, compiled: bool
) -> Callable[[], None]:
    """A function that makes one training step: the loop a careful person writes.

    Args:
        model: ids and labels to the mean loss.
        batches: what to train on.
        device: where.
        dtype: autocast to this type; None: fp32.
        compiled: with torch.compile.
    """
    model = model.to(device).train()
    optimizer = nanogpt_optimizer(model)
    call = torch.compile(model) if compiled else model

    def step() -> None:
        ids, labels = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = call(ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step
