"""OLMo 2, whole: attention, block, decoder, language-model head.

Shapes: B batch, T new tokens, S all tokens (cached and new), C hidden_size, V vocab_size, H query heads, G key/value
heads, D head_dim.

One block is  h = x + RMSNorm(Attention(x));  y = h + RMSNorm(SwiGLU(h)).  Against the classic decoder, each norm stands
at the end of its branch and none before it, and the queries of all heads are normalised together before RoPE, as are
the keys. Parameter names are Hugging Face's (`Olmo2ForCausalLM`). Source: OLMo Team, "2 OLMo 2 Furious", 2025,
section 2.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import nn

from tiny_transformer.config.hf import config_from_hf
from tiny_transformer.config.shapes import Olmo2Config
from tiny_transformer.layers.attention import attend, attention_mask
from tiny_transformer.layers.cache import KeyValueCache, ModelCache, find_place
from tiny_transformer.layers.feed_forward import SwiGLU
from tiny_transformer.layers.norm import LateCastRMSNorm
from tiny_transformer.layers.rope import apply_rope, rope_cos_sin
from tiny_transformer.models.contract import BackboneOutput


class Olmo2Attention(nn.Module):
    """Grouped-query attention with RMSNorm over all query heads and over all key heads, then RoPE."""

    attend = staticmethod(attend)  # a training run may put `attend_in_blocks` in its place

    def __init__(self, config: Olmo2Config, *, dropout: float) -> None:
        super().__init__()
        C, D, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.head_dim = D
        self.q_proj = nn.Linear(C, config.num_attention_heads * D, bias=bias)
        self.k_proj = nn.Linear(C, config.num_key_value_heads * D, bias=bias)
        self.v_proj = nn.Linear(C, config.num_key_value_heads * D, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * D, C, bias=bias)
        self.q_norm = LateCastRMSNorm(config.num_attention_heads * D, config.rms_norm_eps)
        self.k_norm = LateCastRMSNorm(config.num_key_value_heads * D, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden: torch.Tensor,
        *,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        cache: KeyValueCache | None,
    ) -> torch.Tensor:
        """(B, T, C) to (B, T, C); cos and sin from `rope_cos_sin`, mask from `attention_mask`."""
        B, T, _ = hidden.shape
        query, key, value = self.project(hidden)
        query = self.q_norm(query.flatten(2)).view_as(query)  # (B, T, H, D), all heads normalised together
        key = self.k_norm(key.flatten(2)).view_as(key)  # (B, T, G, D)
        value = value.transpose(1, 2)  # (B, G, T, D)
        query = apply_rope(query, cos, sin).transpose(1, 2)  # (B, H, T, D)
        key = apply_rope(key, cos, sin).transpose(1, 2)  # (B, G, T, D)
        if cache is not None:
            key, value = cache.append(key=key, value=value)  # (B, G, S, D)
        dropout = self.dropout.p if self.training else 0.0
        mixed = self.attend(query=query, key=key, value=value, mask=mask, dropout=dropout)  # (B, H, T, D)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, C) to queries (B, T, H, D), keys and values (B, T, G, D), before everything else."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (linear(hidden).unflatten(-1, (-1, self.head_dim)) for linear in projections)
        return query, key, value


class Olmo2Block(nn.Module):
    """Attention and feed-forward, the result of each normalised and added back."""

    def __init__(self, config: Olmo2Config, *, dropout: float) -> None:
        super().__init__()
        self.self_attn = Olmo2Attention(config, dropout=dropout)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.post_attention_layernorm = LateCastRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = LateCastRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, **attention: Any) -> torch.Tensor:
        """(B, T, C) to (B, T, C); keyword arguments are those of `Olmo2Attention`."""
        hidden = hidden + self.dropout(self.post_attention_layernorm(self.self_attn(hidden, **attention)))
        return hidden + self.dropout(self.post_feedforward_layernorm(self.mlp(hidden)))


class Olmo2Decoder(nn.Module):
    """Embedding, blocks and final norm: token ids to hidden states."""

    def __init__(self, config: Olmo2Config, *, dropout: float) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not set: take it from the tokenizer before building a model")
        self.config = config
        self.rope_scaling = config.rope_numbers()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Olmo2Block(config, dropout=dropout) for _ in range(config.num_hidden_layers))
        self.norm = LateCastRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor | None,
        doc_ids: torch.Tensor | None,
        cache: ModelCache | None,
    ) -> torch.Tensor:
        """(B, T) token ids to (B, T, C); arguments as in `Olmo2ForCausalLM.forward`."""
        T, device = input_ids.shape[1], input_ids.device
        place = find_place(input_ids, positions, doc_ids, cache)
        hidden = self.dropout(self.embed_tokens(input_ids))  # (B, T, C)
        theta, head_dim = self.config.rope_theta, self.config.head_dim
        cos, sin = rope_cos_sin(
            place.positions, head_dim=head_dim, theta=theta, dtype=hidden.dtype, scaling=self.rope_scaling
        )
        mask = attention_mask(
            T,
            place.num_keys,
            window=None,
            doc_ids=place.doc_ids,
            device=device,
            query_index=place.query_index,
        )
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache[i]
            hidden = layer(hidden, cos=cos, sin=sin, mask=mask, cache=layer_cache)
        return self.norm(hidden)


class Olmo2ForCausalLM(nn.Module):
    """Token ids to next-token logits.

    Weights start as PyTorch's layers leave them; `models.build_model` gives a reproducible initialisation.

    Args:
        config: the shape; `vocab_size` must be set.
        dropout: share of embeddings, attention weights and residual branches set to zero while training.
    """

    KEEP_BITS: ClassVar[tuple[str, ...]] = ("lm_head",)  # linear layers that are never quantized; see `models.swaps`

    def __init__(self, config: Olmo2Config, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = Olmo2Decoder(config, dropout=dropout)
        self.lm_head = nn.Linear(config.hidden_size, self.model.embed_tokens.num_embeddings, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @classmethod
    def from_config(cls, config: Olmo2Config | dict[str, Any], *, dropout: float = 0.0) -> Self:
        """A model from its config, or from the contents of a Hugging Face `config.json`."""
        shape = config_from_hf(config, "config") if isinstance(config, dict) else config
        if not isinstance(shape, Olmo2Config):
            raise ValueError(f"{cls.__name__} needs a Olmo2Config, not a {type(shape).__name__}")
        return cls(shape, dropout=dropout)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        doc_ids: torch.Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> torch.Tensor:
        """Logits (B, T, V) for the token after each of `input_ids`.

        Args:
            input_ids: (B, T) int64.
            positions: (B, T) place of each token in its document; None counts on from the cache, or from 0.
            doc_ids: (B, T) document of each token: attention never crosses a change of id. Padding is a document of its
                own, -1; with a cache it stands behind a row's tokens and is not kept. None: each row is one document,
                or goes on with the cache's last one.
            cache: from `make_cache`; it is read, and extended by these tokens.
        """
        return self.lm_head(self.backbone(input_ids, positions, doc_ids, cache).hidden)

    def backbone(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        doc_ids: torch.Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> BackboneOutput:
        """Hidden states (B, T, C) after the final norm; arguments of `forward`."""
        hidden = self.model(input_ids, positions, doc_ids, cache)
        return BackboneOutput(hidden, hidden.new_zeros(()))

    def make_cache(self, batch_size: int, max_len: int, *, fixed: bool = False) -> ModelCache:
        """An empty cache for `batch_size` rows of `max_len` tokens, in the weights' dtype and on their device.

        `fixed` gives every call the same shapes: see `ModelCache`.
        """
        weight, config = next(self.parameters()), self.config
        sizes: dict[str, Any] = {"batch_size": batch_size, "max_len": max_len, "device": weight.device}
        heads: Any = {"num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim}
        layers = [KeyValueCache(dtype=weight.dtype, **sizes, **heads) for _ in range(config.num_hidden_layers)]
        return ModelCache(layers, **sizes, fixed=fixed)
