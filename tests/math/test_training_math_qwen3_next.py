"""docs/TRAINING_MATH_QWEN3_NEXT.md, block by block, against the product."""

from __future__ import annotations

from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from compare import FORWARD, check, check_module, draw, in_float64, near, scrambled
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from tiny_transformer.config.shapes import Qwen3NextConfig
from tiny_transformer.data.batches import TokenBatch
from tiny_transformer.layers.attention import attention_mask
from tiny_transformer.layers.convolution import causal_convolution
from tiny_transformer.layers.delta_rule import delta_rule_in_chunks, delta_rule_recurrently, to_unit_length
from tiny_transformer.layers.experts import Routing, balance_loss
from tiny_transformer.layers.norm import GatedRMSNorm, ZeroCentredRMSNorm
from tiny_transformer.layers.rope import apply_partial_rope, rope_cos_sin
from tiny_transformer.models.qwen3_next import model as architecture
from tiny_transformer.training.losses import language_modelling_loss

EPS = 0.1  # large, so that a wrong place or sign of it shows
T = 6
DOC_IDS = np.array([0, 0, 0, 0, 1, 1])
SEGMENTS = np.array([0, 0, 0, 0, 1, 1])
POSITIONS = np.array([0, 1, 2, 3, 0, 1])
SHAPE = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "partial_rotary_factor": 0.67,
    "layer_types": ("linear_attention", "full_attention"),
    "linear_key_head_dim": 3,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
    "shared_expert_intermediate_size": 3,
    "router_aux_loss_coef": 0.3,
    "num_nextn_predict_layers": 1,
    "mtp_loss_coef": 0.4,
    "rms_norm_eps": EPS,
    "rope_theta": 100.0,
}
CONFIG = Qwen3NextConfig(**SHAPE)
ROTARY = 4


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array)


def product_context(num_tokens: int = T) -> architecture.Context:
    with in_float64():
        positions = tensor(POSITIONS[:num_tokens])[None]
        cos, sin = rope_cos_sin(positions, head_dim=ROTARY, theta=100.0, dtype=torch.float64)
    doc_ids = tensor(DOC_IDS[:num_tokens])[None]
    mask = attention_mask(num_tokens, num_tokens, window=None, doc_ids=doc_ids, device=torch.device("cpu"))
    return architecture.Context(cos, sin, mask, tensor(SEGMENTS[:num_tokens])[None], None)


def page_context(page: ModuleType, num_tokens: int = T) -> dict[str, Any]:
    return {
        "angles": page.rope_angles(POSITIONS[:num_tokens], ROTARY, 100.0),
        "seen": page.visible(DOC_IDS[:num_tokens], T),
        "doc_ids": DOC_IDS[:num_tokens],
        "segments": SEGMENTS[:num_tokens],
        "num_key_heads": 2,
        "experts_per_token": 2,
        "eps": EPS,
        "mtp_coef": 0.4,
        "balance_coef": 0.3,
    }


def test_centred_rmsnorm(qwen3_next: ModuleType) -> None:
    module = ZeroCentredRMSNorm(6, EPS)
    check(
        forward=lambda x, w: qwen3_next.centred_rmsnorm(x, w, EPS),
        backward=lambda dy, x, w: qwen3_next.centred_rmsnorm_backward(dy, x, w, EPS),
        product=lambda x, w: functional_call(module, {"weight": w}, (x,)),
        inputs=[draw(2, 3, 6, seed=1), draw(6, seed=2)],
    )


def test_partial_rope(qwen3_next: ModuleType) -> None:
    context, angles = product_context(), page_context(qwen3_next)["angles"]
    check(
        forward=lambda x: qwen3_next.partial_rope(x, angles),
        backward=lambda dy, x: qwen3_next.partial_rope_backward(dy, angles),
        product=lambda x: apply_partial_rope(x[None], context.cos, context.sin)[0],
        inputs=[draw(T, 2, 6, seed=1)],
    )


def test_gated_attention(qwen3_next: ModuleType) -> None:
    context, c = product_context(), page_context(qwen3_next)
    check_module(
        scrambled(architecture.Qwen3NextAttention(CONFIG, dropout=0.0), seed=5),
        forward=lambda x, w: qwen3_next.gated_attention(x, w, c["angles"], c["seen"], EPS),
        backward=lambda dy, x, w: qwen3_next.gated_attention_backward(dy, x, w, c["angles"], c["seen"], EPS),
        product=lambda module, x: module(x[None], context, None)[0],
        inputs=[draw(T, 8, seed=1)],
    )


def test_router(qwen3_next: ModuleType) -> None:
    module = architecture.Qwen3NextExperts(Qwen3NextConfig(**{**SHAPE, "hidden_size": 5})).double()
    with torch.no_grad():
        module.gate.weight.copy_(torch.eye(5))  # so that the scores are what goes in
    z, chosen = draw(7, 5, seed=1, scale=1.5), []

    def product(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, routing = module(scores[None])
        chosen.append(routing.chosen.numpy())
        return routing.probabilities, routing.weights

    check(
        forward=lambda z: qwen3_next.route(z, 2)[::2],
        change=lambda z_dot, z: qwen3_next.route_change(z_dot, z, 2),
        backward=lambda dp, dweights, z: qwen3_next.route_backward(dp, dweights, z, 2),
        product=product,
        inputs=[z],
    )
    assert np.array_equal(qwen3_next.route(z, 2)[1], chosen[0])


def test_balance_loss(qwen3_next: ModuleType) -> None:
    E, K, layers, tokens = 5, 2, 2, 4
    p = np.exp(draw(layers * tokens, E, seed=1))
    chosen = np.argsort(-draw(layers * tokens, E, seed=2), axis=1)[:, :K]

    def product(p: torch.Tensor) -> torch.Tensor:
        """Each layer's tokens with one of padding among them."""
        routings = []
        for layer in range(layers):
            rows, choices = p[layer * tokens :][:tokens], tensor(chosen[layer * tokens :][:tokens])
            rows = torch.cat((rows[:2], torch.full((1, E), 9.0), rows[2:]))
            choices = torch.cat((choices[:2], torch.zeros((1, K), dtype=torch.int64), choices[2:]))
            routings.append(Routing(rows, choices, torch.ones(tokens + 1, K)))
        return balance_loss(routings, torch.tensor([[0, 0, -1, 0, 1]]))

    check(
        forward=lambda p: qwen3_next.balance_loss(p, chosen),
        backward=lambda dloss, p: qwen3_next.balance_loss_backward(dloss, p, chosen),
        product=product,
        inputs=[p],
    )
    everyone = (np.arange(5)[:, None] + np.arange(K)) % E
    near(qwen3_next.balance_loss(np.full((5, E), 1 / E), everyone), K, FORWARD, "a uniform router's")


def test_experts(qwen3_next: ModuleType) -> None:
    check_module(
        scrambled(architecture.Qwen3NextExperts(CONFIG), seed=5),
        forward=lambda x, w: qwen3_next.experts(x, w, 2)[:2],
        backward=lambda dy, dp, x, w: qwen3_next.experts_backward(dy, dp, x, w, 2),
        product=lambda module, x: with_probabilities(*module(x[None])),
        inputs=[draw(7, 8, seed=1)],
    )


def with_probabilities(out: torch.Tensor, routing: Any) -> tuple[torch.Tensor, torch.Tensor]:
    routing = routing[0] if isinstance(routing, list) else routing
    return out[0], routing.probabilities


def test_convolution(qwen3_next: ModuleType) -> None:
    for num_tokens in (2, T):  # fewer than the taps, and more
        segments = SEGMENTS[-num_tokens:] if num_tokens == 2 else SEGMENTS

        def product(u: torch.Tensor, taps: torch.Tensor, segments=segments) -> torch.Tensor:
            return causal_convolution(u[None], taps[:, None], window=None, segments=tensor(segments)[None])[0]

        check(
            forward=lambda u, taps, segments=segments: qwen3_next.convolution(u, taps, segments),
            backward=lambda dc, u, taps, segments=segments: qwen3_next.convolution_backward(dc, u, taps, segments),
            product=product,
            inputs=[draw(num_tokens, 5, seed=1), draw(5, 4, seed=2)],
        )


def test_unit(qwen3_next: ModuleType) -> None:
    x = draw(2, 3, 4, seed=1) * np.array([1.0, 0.03, 0.03])[:, None]  # so small that eps decides
    check(
        forward=qwen3_next.unit,
        change=qwen3_next.unit_change,
        backward=qwen3_next.unit_backward,
        product=to_unit_length,
        inputs=[x],
    )


def test_gates(qwen3_next: ModuleType) -> None:
    Nv = 4
    shape = {**SHAPE, "hidden_size": 2 * Nv, "linear_num_key_heads": 1}
    module = scrambled(architecture.Qwen3NextGatedDeltaNet(Qwen3NextConfig(**shape)), seed=5)
    with torch.no_grad():
        module.in_proj_ba.weight.copy_(torch.eye(2 * Nv))  # so that b and a are what goes in
    context = product_context()

    def product(b: torch.Tensor, a: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor) -> tuple:
        caught = {}

        def catch(**inputs: Any) -> tuple[torch.Tensor, None]:
            caught.update(inputs)
            return torch.zeros_like(inputs["value"]), None

        with mock.patch.object(architecture, "gated_delta_rule", catch):
            weights = {"A_log": A_log, "dt_bias": dt_bias}
            functional_call(module, weights, (torch.cat((b, a), dim=-1)[None], context, None))
        return caught["beta"][0], caught["log_decay"][0]

    a = draw(T, Nv, seed=2, scale=3)
    a[0, 0], a[0, 1] = 800.0, -800.0  # exp(800) is infinite
    check(
        forward=qwen3_next.gates,
        change=qwen3_next.gates_change,
        backward=qwen3_next.gates_backward,
        product=product,
        inputs=[draw(T, Nv, seed=1), a, draw(Nv, seed=3), draw(Nv, seed=4)],
    )


def delta_inputs(num_tokens: int, seed: int) -> list[np.ndarray]:
    """q, k, v, log_decay, beta and a memory that was there before, for one value head."""
    k = draw(num_tokens, 3, seed=seed + 1)
    return [
        draw(num_tokens, 3, seed=seed),
        k / np.linalg.norm(k, axis=1, keepdims=True),
        draw(num_tokens, 4, seed=seed + 2),
        -np.abs(draw(num_tokens, seed=seed + 3)),
        1 / (1 + np.exp(draw(num_tokens, seed=seed + 4))),
        draw(3, 4, seed=seed + 5),
    ]


def product_delta_rule(form: Any, segments: np.ndarray, **more: Any) -> Any:
    """A form of the product's as a function of one head's arrays."""

    def product(q, k, v, log_decay, beta, state):
        heads = {"query": q[:, None], "key": k[:, None], "value": v[:, None]}
        heads |= {"log_decay": log_decay[:, None], "beta": beta[:, None]}
        batched = {name: x[None] for name, x in heads.items()}
        out, last = form(**batched, state=state[None, None], segments=tensor(segments)[None], **more)
        return out[0, :, 0], last[0, 0]

    return product


def test_delta_rule(qwen3_next: ModuleType) -> None:
    for segments in (SEGMENTS, SEGMENTS + 1):  # the second begins a text with its first token
        check(
            forward=lambda *inputs, segments=segments: qwen3_next.delta_rule(*inputs, segments),
            change=lambda *inputs, segments=segments: qwen3_next.delta_rule_change(*inputs, segments),
            backward=lambda *inputs, segments=segments: qwen3_next.delta_rule_backward(*inputs, segments),
            product=product_delta_rule(delta_rule_recurrently, segments),
            inputs=delta_inputs(T, seed=1),
        )
    _, k, v, log_decay, beta, S = delta_inputs(1, seed=9)
    answers, _ = qwen3_next.delta_rule(k, k, v, log_decay, np.ones_like(beta), S, np.array([0]))
    near(answers, v, FORWARD, "what is read back after writing all of it")


def test_solve(qwen3_next: ModuleType) -> None:
    check(
        forward=qwen3_next.solve,
        change=qwen3_next.solve_change,
        backward=qwen3_next.solve_backward,
        product=lambda A, B: torch.linalg.solve_triangular(A, B, upper=False, unitriangular=True),
        inputs=[draw(5, 5, seed=1, scale=0.5), draw(5, 3, seed=2)],
    )


def test_chunk(qwen3_next: ModuleType) -> None:
    """One chunk is the product's loop over the same tokens; `before` says which text the memory is of."""
    harsh = delta_inputs(T, seed=2)
    harsh[3][2:] = -400.0  # the exponential of a difference of their sums would be infinite
    for segments in (np.zeros_like(SEGMENTS), SEGMENTS + 1, np.array([0, 0, 0, 0, 1, 2])):
        for inputs in (delta_inputs(T, seed=1), harsh):
            check(
                forward=lambda *inputs, segments=segments: qwen3_next.chunk(*inputs, segments, 0),
                backward=lambda *inputs, segments=segments: qwen3_next.chunk_backward(*inputs, segments, 0),
                product=product_delta_rule(delta_rule_recurrently, segments),
                inputs=inputs,
            )


def test_delta_rule_in_chunks(qwen3_next: ModuleType) -> None:
    """Texts that begin inside chunks, and one that fills them all."""
    several = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3])
    inputs = delta_inputs(11, seed=1)
    for segments, L in ((several, 4), (several, 11), (0 * several, 1), (0 * several, 4), (0 * several, 16)):
        for form, more in ((delta_rule_recurrently, {}), (delta_rule_in_chunks, {"chunk_length": L})):
            check(
                forward=lambda *a, s=segments, L=L: qwen3_next.delta_rule_in_chunks(*a, s, L),
                backward=lambda *a, s=segments, L=L: qwen3_next.delta_rule_in_chunks_backward(*a, s, L),
                product=product_delta_rule(form, segments, **more),
                inputs=inputs,
            )


def test_gated_rmsnorm(qwen3_next: ModuleType) -> None:
    module = GatedRMSNorm(4, EPS)
    check(
        forward=lambda x, z, w: qwen3_next.gated_rmsnorm(x, z, w, EPS),
        backward=lambda dy, x, z, w: qwen3_next.gated_rmsnorm_backward(dy, x, z, w, EPS),
        product=lambda x, z, w: functional_call(module, {"weight": w}, (x, z)),
        inputs=[draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2), draw(4, seed=3)],
    )


def test_delta_layer(qwen3_next: ModuleType) -> None:
    context = product_context()
    check_module(
        scrambled(architecture.Qwen3NextGatedDeltaNet(CONFIG), seed=5),
        forward=lambda x, w: qwen3_next.delta_layer(x, w, 2, SEGMENTS, EPS),
        backward=lambda dy, x, w: qwen3_next.delta_layer_backward(dy, x, w, 2, SEGMENTS, EPS),
        product=lambda module, x: module(x[None], context, None)[0],
        inputs=[draw(T, 8, seed=1)],
    )


def test_next_block(qwen3_next: ModuleType) -> None:
    context, c = product_context(), page_context(qwen3_next)
    for layer_type in CONFIG.layer_types:
        module = architecture.Qwen3NextBlock(CONFIG, layer_type=layer_type, is_sparse=True, dropout=0.0)
        check_module(
            scrambled(module, seed=5),
            forward=lambda x, w: qwen3_next.next_block(x, w, c)[:2],
            backward=lambda dy, dp, x, w: qwen3_next.next_block_backward(dy, dp, x, w, c),
            product=lambda module, x: with_probabilities(*module(x[None], context, None)),
            inputs=[draw(T, 8, seed=1)],
        )


def test_draft(qwen3_next: ModuleType) -> None:
    context, c = product_context(), page_context(qwen3_next)
    next_ids = np.array([3, 1, 4, 1, 5, 9])

    def product(module: Any, h: torch.Tensor, E: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = F.embedding(tensor(next_ids), E)[None]
        return with_probabilities(*module(hidden=h[None], embedded=embedded, context=context))

    check_module(
        scrambled(architecture.Qwen3NextMTPHead(CONFIG, dropout=0.0), seed=5),
        forward=lambda h, E, w: qwen3_next.draft(h, next_ids, E, w, c)[:2],
        backward=lambda dy, dp, h, E, w: qwen3_next.draft_backward(dy, dp, h, next_ids, E, w, c),
        product=product,
        inputs=[draw(T, 8, seed=1), draw(11, 8, seed=2)],
    )


class Whole(nn.Module):
    """A model's training loss as a module, so that its weights can be replaced."""

    def __init__(self, model: nn.Module, batch: TokenBatch) -> None:
        super().__init__()
        self.whole, self.batch = model, batch

    def forward(self) -> torch.Tensor:
        return language_modelling_loss(self.whole, self.batch)[0]


def test_next_model(qwen3_next: ModuleType) -> None:
    """Both kinds of layer, routers, MTP head and all four terms of the loss: the gradient of every weight."""
    rng, c = np.random.default_rng(3), page_context(qwen3_next)
    ids, labels = rng.integers(0, 11, T), rng.integers(0, 11, T)
    labels[1] = -100
    batch = TokenBatch(
        input_ids=tensor(ids)[None],
        labels=tensor(labels)[None],
        num_targets=int((labels != -100).sum()),
        sample_ids=torch.arange(1),
        doc_ids=tensor(DOC_IDS)[None],
        positions=tensor(POSITIONS)[None],
    )
    for tied in (True, False):
        config = Qwen3NextConfig(**SHAPE, tie_word_embeddings=tied)
        check_module(
            Whole(scrambled(architecture.Qwen3NextForCausalLM(config), seed=5), batch),
            forward=lambda w: qwen3_next.next_model_loss(ids, labels, w["whole"], c),
            backward=lambda dloss, w: {"whole": qwen3_next.next_model_backward(dloss, ids, labels, w["whole"], c)},
            product=lambda module: module(),
            inputs=[],
        )
