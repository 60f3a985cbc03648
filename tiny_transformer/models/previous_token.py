"""First weights that look back: a head of the first layer begins by attending to the token before.

To look something up ("the name that followed 'called' last time") takes two layers: the first writes into each token
what stood before it, the second searches for that. The first part, a *previous-token head*, is where training spends
its first millions of tokens, and nothing can be looked up until it is there. It need not be learnt: RoPE turns a query
at position t and a key at position s against each other by (t - s) times a frequency, so a query and a key that are the
same for every token, the query turned back by one position, score highest at s = t - 1.

"The same for every token" is a direction c that all embeddings share. A shared direction adds the same number to every
logit of a tied head, so it changes no probability. Everything that is set here is trained like any other weight.

Source: Olsson et al., "In-context Learning and Induction Heads", 2022, for the circuit; docs/LOG.md for what it gains.
"""

from __future__ import annotations

import math

import torch

from tiny_transformer.config.shapes import DecoderConfig
from tiny_transformer.layers.rope import rope_frequencies
from tiny_transformer.models.contract import CausalLM

SHARED = 1.5  # length of the shared direction, in lengths of an embedding's random part
LEAD = 6.5  # how much the place looked at scores above its neighbours, so that it gets nearly all the weight
# Wanted frequencies (radians a token), and each one's share of the length: the fast ones tell neighbours apart, the
# slow ones the neighbour from a token that all fast ones have turned round to.
TURNS = {1.0: 2.0, 0.56: 1.5, 0.32: 1.2, 0.18: 1.0, 0.1: 1.0, 0.056: 1.0, 0.03: 1.0}
HEADS = 2  # the first looks one token back, the second two


@torch.no_grad()
def look_back(model: CausalLM, *, generator: torch.Generator) -> None:
    """Let the first heads of the first layer start as previous-token heads, in place.

    Args:
        model: with fresh weights; a Llama or Qwen3 shape (`config.previous_token_init`).
        generator: draws the shared direction.
    """
    config, weights = model.config, dict(model.named_parameters())
    D = config.head_dim
    embedding = weights["model.embed_tokens.weight"]  # (V, C)
    C = embedding.shape[1]
    direction = torch.empty(C).normal_(generator=generator)
    direction -= direction.mean()  # a LayerNorm would take it away
    direction = (direction / direction.norm()).to(embedding)
    embedding += SHARED * config.initializer_range * math.sqrt(C) * direction

    pairs, frequencies, amplitudes = _pairs(config)
    lead_of_one = (amplitudes.square() * (1 - frequencies.cos())).sum()  # of a score whose peak is 1
    length = math.sqrt(LEAD / lead_of_one * math.sqrt(D))  # of query and key: their product over sqrt(D) is the peak
    read = math.sqrt(C) * SHARED / math.sqrt(1 + SHARED**2)  # of the normalised embedding, along the direction
    attention = "model.layers.0.self_attn."
    query, key = weights[attention + "q_proj.weight"], weights[attention + "k_proj.weight"]  # (H D, C), (G D, C)
    group = config.num_attention_heads // config.num_key_value_heads
    heads = range(min(HEADS, config.num_attention_heads))
    for head in heads:
        rows = _constant(pairs, -(head + 1) * frequencies, amplitudes, D).to(query) * length / read
        query[head * D : (head + 1) * D] += torch.outer(rows, direction)
    for head in {head // group for head in heads}:
        rows = _constant(pairs, 0 * frequencies, amplitudes, D).to(key) * length / read
        key[head * D : (head + 1) * D] += torch.outer(rows, direction)
    for name in ("q_norm.weight", "k_norm.weight"):  # they make every head sqrt(D) long, where a family has them
        if (scale := weights.get(attention + name)) is not None:
            scale[torch.cat((pairs, pairs + D // 2))] = length / math.sqrt(D)


def _pairs(config: DecoderConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which pairs of a head's features are used: their indices, their frequencies and their shares of the length (the
    squares add up to 1), (P,) each."""
    frequencies, _ = rope_frequencies(config.head_dim, config.rope_theta, config.rope_numbers())
    chosen: dict[int, float] = {}
    for wanted, amplitude in TURNS.items():
        chosen.setdefault(int((frequencies - wanted).abs().argmin()), amplitude)
    pairs, amplitudes = torch.tensor(list(chosen)), torch.tensor(list(chosen.values()))
    return pairs, frequencies[pairs], amplitudes / amplitudes.norm()


def _constant(pairs: torch.Tensor, angles: torch.Tensor, amplitudes: torch.Tensor, head_dim: int) -> torch.Tensor:
    """One head's vector (D,), of length 1: each pair at its angle."""
    vector = torch.zeros(head_dim)
    vector[pairs] = amplitudes * angles.cos()
    vector[pairs + head_dim // 2] = amplitudes * angles.sin()
    return vector
