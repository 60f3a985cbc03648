"""Qwen3-Next, whole: delta-rule layers, gated attention, sparse experts, decoder, the two heads.

Shapes: B batch, T new tokens, S all tokens (cached and new), C hidden_size, V vocab_size, N = B T. Attention: H query
heads, G key/value heads, D head_dim. Delta rule: Nk key heads, Nv value heads, Dk and Dv their widths.

One block is  h = x + Mixer(norm(x));  y = h + Experts(norm(h)).  The mixer of most layers is a delta rule, whose memory
does not grow with the text; every few layers it is attention, which forgets nothing. Norms are zero-centred. Without
experts (`num_experts` 0) the feed-forward blocks are dense and the names are those of Qwen3.5's text models.
Parameter names are Hugging Face's (`Qwen3NextForCausalLM`, `Qwen3_5ForCausalLM`), `mtp.*` the published checkpoints'.
Sources: transformers' documented behaviour; DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 2.2 (two heads).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn
from torch.nn import functional

from tiny_transformer.config.hf import config_from_hf
from tiny_transformer.config.shapes import Qwen3NextConfig
from tiny_transformer.layers.attention import attend, attention_mask
from tiny_transformer.layers.cache import KeyValueCache, ModelCache, find_place
from tiny_transformer.layers.convolution import causal_convolution
from tiny_transformer.layers.delta_rule import gated_delta_rule, to_unit_length
from tiny_transformer.layers.experts import Routing, balance_loss, expert_load, mix_experts, route
from tiny_transformer.layers.feed_forward import SwiGLU
from tiny_transformer.layers.norm import GatedRMSNorm, ZeroCentredRMSNorm, at_least_float32
from tiny_transformer.layers.recurrent_cache import DeltaInputs, RecurrentCache
from tiny_transformer.layers.rope import apply_partial_rope, rope_cos_sin
from tiny_transformer.models.contract import BackboneOutput


class Context(NamedTuple):
    """Where the tokens stand: cos and sin from `rope_cos_sin`, mask from `attention_mask`, segments and padding (B, T)
    from `find_place`."""

    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor | None
    segments: torch.Tensor | None
    padding: torch.Tensor | None = None


class Qwen3NextAttention(nn.Module):
    """Grouped-query attention; heads normalised, a part of each turned by RoPE, the result gated channel by channel."""

    attend = staticmethod(attend)  # a training run may put `attend_in_blocks` in its place

    def __init__(self, config: Qwen3NextConfig, *, dropout: float) -> None:
        super().__init__()
        C, H, G, D = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.head_dim = D
        self.q_proj = nn.Linear(C, H * 2 * D, bias=config.attention_bias)  # each head's query, then its gate
        self.k_proj = nn.Linear(C, G * D, bias=config.attention_bias)
        self.v_proj = nn.Linear(C, G * D, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * D, C, bias=config.attention_bias)
        self.q_norm = ZeroCentredRMSNorm(D, config.rms_norm_eps)
        self.k_norm = ZeroCentredRMSNorm(D, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, context: Context, cache: KeyValueCache | None) -> torch.Tensor:
        """(B, T, C) to (B, T, C)."""
        B, T, _ = hidden.shape
        query, key, value, gate = self.project(hidden)
        value = value.transpose(1, 2)  # (B, G, T, D)
        query = apply_partial_rope(self.q_norm(query), context.cos, context.sin).transpose(1, 2)  # (B, H, T, D)
        key = apply_partial_rope(self.k_norm(key), context.cos, context.sin).transpose(1, 2)  # (B, G, T, D)
        if cache is not None:
            key, value = cache.append(key=key, value=value)  # (B, G, S, D)
        dropout = self.dropout.p if self.training else 0.0
        mixed = self.attend(query=query, key=key, value=value, mask=context.mask, dropout=dropout)  # (B, H, T, D)
        return self.o_proj((mixed.transpose(1, 2) * gate.sigmoid()).reshape(B, T, -1))

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, C) to queries (B, T, H, D), keys and values (B, T, G, D), gate (B, T, H, D), before all else."""
        shape = hidden.shape[:2]
        query, gate = self.q_proj(hidden).view(*shape, -1, 2 * self.head_dim).chunk(2, dim=-1)
        key, value = (linear(hidden).view(*shape, -1, self.head_dim) for linear in (self.k_proj, self.v_proj))
        return query, key, value, gate


class Qwen3NextGatedDeltaNet(nn.Module):
    """Projections, a short convolution, the gated delta rule, and a norm gated by z."""

    def __init__(self, config: Qwen3NextConfig) -> None:
        super().__init__()
        C, Nk, Nv = config.hidden_size, config.linear_num_key_heads, config.linear_num_value_heads
        self.num_key_heads, self.key_dim = Nk, config.linear_key_head_dim
        self.num_value_heads, self.value_dim = Nv, config.linear_value_head_dim
        self.keys, self.values = keys, values = Nk * self.key_dim, Nv * self.value_dim
        self.is_packed = config.num_experts > 0  # Qwen3-Next's layout; Qwen3.5 has the same rows in four matrices
        if self.is_packed:
            self.in_proj_qkvz = nn.Linear(C, 2 * keys + 2 * values, bias=False)
            self.in_proj_ba = nn.Linear(C, 2 * Nv, bias=False)
        else:
            self.in_proj_qkv = nn.Linear(C, 2 * keys + values, bias=False)
            self.in_proj_z = nn.Linear(C, values, bias=False)
            self.in_proj_b = nn.Linear(C, Nv, bias=False)
            self.in_proj_a = nn.Linear(C, Nv, bias=False)
        channels, taps = 2 * keys + values, config.linear_conv_kernel_dim
        self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels, bias=False)
        self.A_log = nn.Parameter(torch.zeros(Nv))
        self.dt_bias = nn.Parameter(torch.ones(Nv))
        self.norm = GatedRMSNorm(self.value_dim, config.rms_norm_eps)
        self.out_proj = nn.Linear(values, C, bias=False)

    def forward(self, hidden: torch.Tensor, context: Context, cache: RecurrentCache | None) -> torch.Tensor:
        """(B, T, C) to (B, T, C)."""
        window, state = (None, None) if cache is None else (cache.window, cache.state)
        channels, z, b, a = self.project(hidden)
        mixed = causal_convolution(channels, self.conv1d.weight, window=window, segments=context.segments)
        query, key, value = functional.silu(mixed).split((self.keys, self.keys, self.values), dim=-1)
        query, key = (at_least_float32(x).unflatten(-1, (-1, self.key_dim)) for x in (query, key))  # (B, T, Nk, Dk)
        query, key = to_unit_length(query) * self.key_dim**-0.5, to_unit_length(key)
        value = value.unflatten(-1, (-1, self.value_dim))  # (B, T, Nv, Dv)
        a, b, A_log, dt_bias = (at_least_float32(x) for x in (a, b, self.A_log, self.dt_bias))
        beta, log_decay = b.sigmoid(), -A_log.exp() * functional.softplus(a + dt_bias)  # (B, T, Nv)
        inputs = DeltaInputs(channels, key, value, log_decay, beta, context.segments, None)
        if context.padding is not None:
            inputs = inputs.keep(~context.padding)
        out, state = gated_delta_rule(query=query, state=state, **inputs.for_the_rule())  # (B, T, Nv, Dv)
        if cache is not None:
            cache.append(inputs, state=state)
        return self.out_proj(self.norm(out.to(hidden.dtype), z).flatten(2))

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What is convolved, (B, T, queries | keys | values); z (B, T, Nv, Dv); b and a, (B, T, Nv) each."""
        if self.is_packed:  # the rows stand by key head: its query, its key, its value heads' values, their z
            values = self.values // self.num_key_heads
            packed = self.in_proj_qkvz(hidden).unflatten(-1, (self.num_key_heads, -1))  # (B, T, Nk, ...)
            *parts, z = packed.split((self.key_dim, self.key_dim, values, values), dim=-1)
            b, a = self.in_proj_ba(hidden).unflatten(-1, (self.num_key_heads, -1)).chunk(2, dim=-1)
            channels, b, a = torch.cat([part.flatten(2) for part in parts], dim=-1), b.flatten(2), a.flatten(2)
        else:
            channels, z = self.in_proj_qkv(hidden), self.in_proj_z(hidden)
            b, a = self.in_proj_b(hidden), self.in_proj_a(hidden)
        return channels, z.reshape(*z.shape[:2], self.num_value_heads, self.value_dim), b, a

    def make_cache(self, batch_size: int) -> RecurrentCache:
        """Empty, for `batch_size` rows."""
        weight = self.conv1d.weight  # (channels, 1, taps)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        state = weight.new_zeros(batch_size, self.num_value_heads, self.key_dim, self.value_dim, dtype=dtype)
        return RecurrentCache(weight.new_zeros(batch_size, weight.shape[2] - 1, weight.shape[0]), state)


class Qwen3NextExperts(nn.Module):
    """A few of many experts for each token, and one that works on all of them behind a gate."""

    def __init__(self, config: Qwen3NextConfig) -> None:
        super().__init__()
        C, E = config.hidden_size, config.num_experts
        self.num_experts_per_tok, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(C, E, bias=False)
        self.experts = nn.ModuleList(SwiGLU(C, config.moe_intermediate_size) for _ in range(E))
        self.shared_expert = SwiGLU(C, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(C, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """(B, T, C) to (B, T, C), and where the router sent the N = B T tokens."""
        tokens = hidden.flatten(0, 1)  # (N, C)
        routing = route(self.gate(tokens), self.num_experts_per_tok)
        if self.norm_topk_prob:
            routing = routing._replace(weights=routing.weights / routing.weights.sum(dim=-1, keepdim=True))
        out = mix_experts(tokens, routing, self.experts)
        out = out + self.shared_expert_gate(tokens).sigmoid() * self.shared_expert(tokens)
        return out.view_as(hidden), routing


class Qwen3NextBlock(nn.Module):
    """A mixer and a feed-forward block, each on a normalised copy and added back."""

    def __init__(self, config: Qwen3NextConfig, *, layer_type: str, is_sparse: bool, dropout: float) -> None:
        super().__init__()
        C, eps = config.hidden_size, config.rms_norm_eps
        self.is_linear, self.is_sparse = layer_type == "linear_attention", is_sparse
        self.input_layernorm = ZeroCentredRMSNorm(C, eps)
        if self.is_linear:
            self.linear_attn = Qwen3NextGatedDeltaNet(config)
        else:
            self.self_attn = Qwen3NextAttention(config, dropout=dropout)
        self.post_attention_layernorm = ZeroCentredRMSNorm(C, eps)
        self.mlp = Qwen3NextExperts(config) if is_sparse else SwiGLU(C, config.intermediate_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, context: Context, cache: Any) -> tuple[torch.Tensor, list[Routing]]:
        """(B, T, C) to (B, T, C), and its router's decisions, if it has one."""
        mixer = self.linear_attn if self.is_linear else self.self_attn
        hidden = hidden + self.dropout(mixer(self.input_layernorm(hidden), context, cache))
        out, routings = self.mlp(self.post_attention_layernorm(hidden)), []
        if self.is_sparse:
            out, *routings = out
        return hidden + self.dropout(out), routings


class Qwen3NextDecoder(nn.Module):
    """Embedding, blocks and final norm: token ids to hidden states."""

    def __init__(self, config: Qwen3NextConfig, *, dropout: float) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not set: take it from the tokenizer before building a model")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen3NextBlock(config, layer_type=layer_type, is_sparse=config.is_sparse(i), dropout=dropout)
            for i, layer_type in enumerate(config.layer_types)
        )
        self.norm = ZeroCentredRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: torch.Tensor, context: Context, cache: ModelCache | None) -> tuple[torch.Tensor, list]:
        """(B, T) token ids to (B, T, C), and the decisions of all routers, first layer first."""
        hidden, routings = self.dropout(self.embed_tokens(input_ids)), []
        for i, layer in enumerate(self.layers):
            hidden, decisions = layer(hidden, context, None if cache is None else cache[i])
            routings += decisions
        return self.norm(hidden), routings


class Qwen3NextMTPHead(nn.Module):
    """From a token's hidden state and the next token to the hidden state of that next token: one more layer."""

    def __init__(self, config: Qwen3NextConfig, *, dropout: float) -> None:
        super().__init__()
        C, eps, sparse = config.hidden_size, config.rms_norm_eps, config.num_experts > 0
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = ZeroCentredRMSNorm(C, eps), ZeroCentredRMSNorm(C, eps)
        self.fc = nn.Linear(2 * C, C, bias=False)
        block = Qwen3NextBlock(config, layer_type="full_attention", is_sparse=sparse, dropout=dropout)
        self.layers = nn.ModuleList([block])
        self.norm = ZeroCentredRMSNorm(C, eps)

    def forward(
        self, *, hidden: torch.Tensor, embedded: torch.Tensor, context: Context, cache: ModelCache | None = None
    ) -> tuple[torch.Tensor, list]:
        """`hidden` and the next tokens `embedded`, (B, T, C) each, to (B, T, C), and its router's decisions."""
        both = torch.cat((self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)), dim=-1)
        out, routings = self.layers[0](self.fc(both), context, None if cache is None else cache[0])
        return self.norm(out), routings


class Qwen3NextForCausalLM(nn.Module):
    """Token ids to next-token logits.

    Weights start as PyTorch's layers leave them; `models.build_model` gives a reproducible initialisation.

    Args:
        config: the shape; `vocab_size` must be set.
        dropout: share of embeddings, attention weights and residual branches set to zero while training.
    """

    # Linear layers that are never quantized, see `models.swaps`: the head, and what is small and decides much: where
    # tokens go, how fast memories fade and how much is written.
    KEEP_BITS: ClassVar[tuple[str, ...]] = (
        "lm_head",
        "*.mlp.gate",
        "*.shared_expert_gate",
        "*.in_proj_ba",
        "*.in_proj_b",
        "*.in_proj_a",
    )

    def __init__(self, config: Qwen3NextConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.model = config, Qwen3NextDecoder(config, dropout=dropout)
        self.rope_scaling = config.rope_numbers()
        self.lm_head = nn.Linear(config.hidden_size, self.model.embed_tokens.num_embeddings, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.mtp = Qwen3NextMTPHead(config, dropout=dropout) if config.num_nextn_predict_layers else None

    @classmethod
    def from_config(cls, config: Qwen3NextConfig | dict[str, Any], *, dropout: float = 0.0) -> Self:
        """A model from its config, or from the contents of a Hugging Face `config.json`."""
        shape = config_from_hf(config, "config") if isinstance(config, dict) else config
        if not isinstance(shape, Qwen3NextConfig):
            raise ValueError(f"{cls.__name__} needs a Qwen3NextConfig, not a {type(shape).__name__}")
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
            doc_ids: (B, T) document of each token: attention and memory never cross a change of id. Padding is a
                document of its own, -1; with a cache it stands behind a row's tokens and is not kept. None: each row
                is one document, or goes on with the cache's last one.
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
        """Hidden states (B, T, C) after the final norm, auxiliary loss and expert load; arguments of `forward`.

        The auxiliary loss is the routers' balance loss times `router_aux_loss_coef`, to be added to the mean loss per
        token: a scalar, 0 without experts and with a cache (nothing is learnt there).
        """
        context = self._context(input_ids, positions, doc_ids, cache)
        hidden, routings = self.model(input_ids, context, cache)
        if cache is not None or not routings:
            return BackboneOutput(hidden, hidden.new_zeros(()))
        auxiliary_loss = self.config.router_aux_loss_coef * balance_loss(routings, doc_ids)
        return BackboneOutput(hidden, auxiliary_loss, expert_load(routings, doc_ids))

    def draft(
        self,
        *,
        hidden: torch.Tensor,
        next_ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        doc_ids: torch.Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> BackboneOutput:
        """The MTP head: hidden states (B, T, C) with which `lm_head` predicts token t + 2, and the auxiliary loss.

        Args:
            hidden: (B, T, C) from `backbone`, of tokens t.
            next_ids: (B, T) the tokens t + 1.
            positions, doc_ids: (B, T) of the tokens t, as in `forward`.
            cache: from `make_draft_cache`; it holds the tokens t, and is read and extended as in `forward`.
        """
        if self.mtp is None:
            raise ValueError("this model has no MTP head: num_nextn_predict_layers is 0")
        context, embedded = self._context(next_ids, positions, doc_ids, cache), self.model.embed_tokens(next_ids)
        out, routings = self.mtp(hidden=hidden, embedded=embedded, context=context, cache=cache)
        if cache is not None or not routings:
            return BackboneOutput(out, out.new_zeros(()))
        auxiliary_loss = self.config.router_aux_loss_coef * balance_loss(routings, doc_ids)
        return BackboneOutput(out, auxiliary_loss, expert_load(routings, doc_ids))

    def _context(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor | None,
        doc_ids: torch.Tensor | None,
        cache: ModelCache | None,
    ) -> Context:
        place, config = find_place(input_ids, positions, doc_ids, cache), self.config
        dtype = next(self.parameters()).dtype
        theta, head_dim = config.rope_theta, config.rotary_dim
        cos, sin = rope_cos_sin(place.positions, head_dim=head_dim, theta=theta, dtype=dtype, scaling=self.rope_scaling)
        mask = attention_mask(
            input_ids.shape[1],
            place.num_keys,
            window=None,
            doc_ids=place.doc_ids,
            device=input_ids.device,
            query_index=place.query_index,
        )
        return Context(cos, sin, mask, place.segments, place.padding)

    def make_cache(self, batch_size: int, max_len: int, *, fixed: bool = False) -> ModelCache:
        """An empty cache for `batch_size` rows of `max_len` tokens; only the attention layers' part grows with them.

        `fixed` gives every call the same shapes: see `ModelCache`.
        """
        blocks: Any = self.model.layers
        return self._cache_for(blocks, batch_size, max_len, fixed)

    def make_draft_cache(self, batch_size: int, max_len: int) -> ModelCache:
        """An empty cache for `draft`, as `make_cache` is for `forward`.

        Raises:
            ValueError: the model has no MTP head.
        """
        if self.mtp is None:
            raise ValueError("this model has no MTP head: num_nextn_predict_layers is 0")
        return self._cache_for(self.mtp.layers, batch_size, max_len, False)

    def _cache_for(self, blocks: Any, batch_size: int, max_len: int, fixed: bool) -> ModelCache:
        weight, config = next(self.parameters()), self.config
        sizes: dict[str, Any] = {"batch_size": batch_size, "max_len": max_len, "device": weight.device}
        heads: Any = {"num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim}
        layers = [
            b.linear_attn.make_cache(batch_size) if b.is_linear else KeyValueCache(dtype=weight.dtype, **sizes, **heads)
            for b in blocks
        ]
        return ModelCache(layers, **sizes, fixed=fixed)
