"""docs/TRAINING_MATH_QWEN3.md, block by block, against the product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from compare import AUTOGRAD, FORWARD, check, check_module, draw, in_float64, near, scrambled
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.data.batches import TokenBatch
from tiny_transformer.layers.attention import attend, attend_slowly, attention_mask, attention_weights
from tiny_transformer.layers.feed_forward import SwiGLU
from tiny_transformer.layers.norm import RMSNorm
from tiny_transformer.layers.rope import apply_rope, rope_cos_sin
from tiny_transformer.models.contract import BackboneOutput
from tiny_transformer.models.qwen3.model import Qwen3Attention, Qwen3Block, Qwen3ForCausalLM
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.muon import Muon, orthogonalise
from tiny_transformer.training.optimizers import Optimizers

EPS = 0.1  # large, so that a wrong place or sign of it shows
T = 6
DOC_IDS = np.array([0, 0, 0, 0, 1, 1])
POSITIONS = np.array([0, 1, 2, 3, 0, 1])
SHAPE = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": EPS,
    "rope_theta": 100.0,
}


def stand_in_of(logits: Callable[..., torch.Tensor]) -> Any:
    """What a loss needs of a model whose logits are computed elsewhere."""
    return SimpleNamespace(
        backbone=lambda *arguments: BackboneOutput(logits(*arguments), torch.zeros(())),
        lm_head=nn.Identity(),
        config=SimpleNamespace(num_mtp_layers=0),
    )


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array)


def batch_of(ids: np.ndarray, labels: np.ndarray, *, with_documents: bool) -> TokenBatch:
    rows = len(ids)
    return TokenBatch(
        input_ids=tensor(ids),
        labels=tensor(labels),
        num_targets=int((labels != -100).sum()),
        sample_ids=torch.arange(rows),
        doc_ids=tensor(np.tile(DOC_IDS, (rows, 1))) if with_documents else None,
        positions=tensor(np.tile(POSITIONS, (rows, 1))) if with_documents else None,
    )


def test_linear(qwen3: ModuleType) -> None:
    check(
        forward=qwen3.linear,
        change=qwen3.linear_change,
        backward=qwen3.linear_backward,
        product=F.linear,
        inputs=[draw(5, 3, seed=1), draw(4, 3, seed=2)],
    )


def test_embedding(qwen3: ModuleType) -> None:
    ids = np.array([2, 0, 2, 3])
    check(
        forward=partial(qwen3.embedding, ids),
        backward=lambda dh, E: qwen3.embedding_backward(dh, ids, E),
        product=lambda E: F.embedding(tensor(ids), E),
        inputs=[draw(5, 3, seed=1)],
    )


def test_softmax(qwen3: ModuleType) -> None:
    z = draw(2, 4, 5, seed=1) + np.array([[0.0], [0.0], [-800.0], [800.0]])  # exp(800) is infinite
    z[0, 0, 2] = -1600.0
    check(
        forward=qwen3.softmax,
        change=lambda z_dot, z: qwen3.softmax_change(z_dot, qwen3.softmax(z)),
        backward=lambda dp, z: qwen3.softmax_backward(dp, qwen3.softmax(z)),
        product=lambda z: z.softmax(-1),
        inputs=[z],
    )
    dz = qwen3.softmax_backward(draw(2, 4, 5, seed=2), qwen3.softmax(z))
    near(dz.sum(-1), np.zeros((2, 4)), AUTOGRAD, "sum of a row")


def test_cross_entropy(qwen3: ModuleType) -> None:
    labels = np.array([3, -100, 0, 6, 6])
    z = draw(5, 7, seed=1) + np.array([[0.0], [0.0], [0.0], [-800.0], [800.0]])  # exp(800) is infinite
    z[0, 2] = -1600.0

    def product(logits: torch.Tensor) -> torch.Tensor:
        model = SimpleNamespace(
            backbone=lambda *_: BackboneOutput(logits[None], logits.new_zeros(())),
            lm_head=nn.Identity(),
            config=SimpleNamespace(num_mtp_layers=0),
        )
        return language_modelling_loss(model, batch_of(labels[None], labels[None], with_documents=False))[0]

    check(
        forward=lambda z: qwen3.cross_entropy(z, labels),
        change=lambda z_dot, z: qwen3.cross_entropy_change(z_dot, z, labels),
        backward=lambda dloss, z: qwen3.cross_entropy_backward(dloss, z, labels),
        product=product,
        inputs=[z],
    )


def test_rmsnorm(qwen3: ModuleType) -> None:
    module, x = RMSNorm(6, EPS), draw(2, 3, 6, seed=1)
    check(
        forward=lambda x, w: qwen3.rmsnorm(x, w, EPS),
        change=lambda x_dot, w_dot, x, w: qwen3.rmsnorm_change(x_dot, w_dot, x, w, EPS),
        backward=lambda dy, x, w: qwen3.rmsnorm_backward(dy, x, w, EPS),
        product=lambda x, w: functional_call(module, {"weight": w}, (x,)),
        inputs=[x, draw(6, seed=2)],
    )
    dx, _ = qwen3.rmsnorm_backward(draw(2, 3, 6, seed=3), x, draw(6, seed=2), 0.0)
    near((dx * x).sum(-1), np.zeros((2, 3)), AUTOGRAD, "the gradient along the row, without eps")


def test_rope(qwen3: ModuleType) -> None:
    positions, theta, D = np.array([0, 1, 2, 5, 300]), 100.0, 6
    angles = qwen3.rope_angles(positions, D, theta)

    def product(x: torch.Tensor) -> torch.Tensor:
        cos, sin = rope_cos_sin(tensor(positions)[None], head_dim=D, theta=theta, dtype=torch.float64)
        return apply_rope(x[None], cos, sin)[0]

    check(
        forward=lambda x: qwen3.rope(x, angles),
        backward=lambda dy, x: qwen3.rope_backward(dy, angles),
        product=product,
        inputs=[draw(5, 2, D, seed=1)],
    )
    q, k = draw(1, 1, D, seed=2), draw(1, 1, D, seed=3)
    products = [
        np.sum(
            qwen3.rope(q, qwen3.rope_angles(np.array([t]), D, theta)) * qwen3.rope(k, qwen3.rope_angles(s, D, theta))
        )
        for t, s in [(7, np.array([4])), (103, np.array([100]))]
    ]
    near(products[0], products[1], AUTOGRAD, "products at equal distance")


def test_visible(qwen3: ModuleType) -> None:
    for window in (2, T):
        expected = attention_mask(T, T, window=window, doc_ids=tensor(DOC_IDS)[None], device=torch.device("cpu"))
        assert np.array_equal(qwen3.visible(DOC_IDS, window), expected[0, 0].numpy())


def test_attention(qwen3: ModuleType) -> None:
    H, G, D = 4, 2, 3
    seen = qwen3.visible(DOC_IDS, 3)
    inputs = [draw(T, heads, D, seed=heads + i, scale=1.5) for i, heads in enumerate((H, G, G))]
    for operator in (attend, attend_slowly):

        def product(*qkv: torch.Tensor, operator=operator) -> torch.Tensor:
            query, key, value = (x.transpose(0, 1)[None] for x in qkv)
            return operator(query=query, key=key, value=value, mask=tensor(seen)[None, None])[0].transpose(0, 1)

        check(
            forward=lambda q, k, v: qwen3.attention(q, k, v, seen),
            change=lambda *arrays: qwen3.attention_change(*arrays, seen),
            backward=lambda do, q, k, v: qwen3.attention_backward(do, q, k, v, seen),
            product=product,
            inputs=inputs,
        )
    with in_float64():
        query, key = (tensor(x).transpose(0, 1)[None] for x in inputs[:2])
        weights = attention_weights(query=query, key=key, mask=tensor(seen)[None, None])[0]
    p, do = qwen3.attention_weights(*inputs[:2], seen), draw(T, H, D, seed=8)
    near(p, weights.numpy(), FORWARD, "weights")
    dp = np.einsum("thd,shd->hts", do, np.repeat(inputs[2], H // G, axis=1))
    stretched = np.sum(do * qwen3.attention(*inputs, seen), axis=2)
    near(np.sum(p * dp, axis=2), stretched.T, AUTOGRAD, "the sum that fused kernels take instead")


def attention_context(page: ModuleType) -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    """The page's angles and table of what is seen, and the product's arguments for the same."""
    with in_float64():
        cos, sin = rope_cos_sin(tensor(POSITIONS)[None], head_dim=6, theta=100.0, dtype=torch.float64)
    mask = attention_mask(T, T, window=None, doc_ids=tensor(DOC_IDS)[None], device=torch.device("cpu"))
    context = {"cos": cos, "sin": sin, "mask": mask, "cache": None}
    return page.rope_angles(POSITIONS, 6, 100.0), page.visible(DOC_IDS, T), context  # ty: ignore[invalid-return-type]


def test_attention_layer(qwen3: ModuleType) -> None:
    angles, seen, context = attention_context(qwen3)
    check_module(
        scrambled(Qwen3Attention(Qwen3Config(**SHAPE), dropout=0.0), seed=5),
        forward=lambda x, w: qwen3.attention_layer(x, w, angles, seen, EPS),
        backward=lambda dy, x, w: qwen3.attention_layer_backward(dy, x, w, angles, seen, EPS),
        product=lambda module, x: module(x[None], **context)[0],
        inputs=[draw(T, 8, seed=1)],
    )


def test_swiglu(qwen3: ModuleType) -> None:
    check(
        forward=qwen3.silu,
        change=lambda a_dot, a: qwen3.silu_slope(a) * a_dot,
        backward=lambda dy, a: qwen3.silu_slope(a) * dy,
        product=F.silu,
        inputs=[draw(7, seed=1, scale=3)],
    )
    module = scrambled(SwiGLU(4, 5), seed=3)
    weights = {name: getattr(module, name).weight.detach().numpy() for name in ("gate_proj", "up_proj", "down_proj")}
    check(
        forward=lambda x: qwen3.swiglu(x, weights),
        change=lambda x_dot, x: qwen3.swiglu_change(x_dot, x, weights),
        backward=lambda dy, x: qwen3.swiglu_backward(dy, x, weights)[0],
        product=module,
        inputs=[draw(3, 4, seed=1)],
    )
    check_module(
        module,
        forward=qwen3.swiglu,
        backward=qwen3.swiglu_backward,
        product=lambda module, x: module(x),
        inputs=[draw(3, 4, seed=1)],
    )


def test_block(qwen3: ModuleType) -> None:
    angles, seen, context = attention_context(qwen3)
    check_module(
        scrambled(Qwen3Block(Qwen3Config(**SHAPE), dropout=0.0), seed=5),
        forward=lambda x, w: qwen3.block(x, w, angles, seen, EPS),
        backward=lambda dy, x, w: qwen3.block_backward(dy, x, w, angles, seen, EPS),
        product=lambda module, x: module(x[None], **context)[0],
        inputs=[draw(T, 8, seed=1)],
    )


def test_model(qwen3: ModuleType) -> None:
    """Two rows with two texts in each, a sliding window in the second layer: the gradient of every weight."""
    rng = np.random.default_rng(3)
    ids, labels = rng.integers(0, 11, (2, T)), rng.integers(0, 11, (2, T))
    labels[0, 3] = labels[1, 0] = -100
    batch = batch_of(ids, labels, with_documents=True)
    angles = qwen3.rope_angles(POSITIONS, 6, 100.0)
    seen = [qwen3.visible(DOC_IDS, T), qwen3.visible(DOC_IDS, 2)]

    def loss(w: dict) -> np.ndarray:
        return sum(qwen3.model_loss(ids[row], labels[row], w, angles, seen, EPS) for row in range(2))

    def gradients(dloss: np.ndarray, w: dict) -> dict:
        return added(*(qwen3.model_backward(dloss, ids[row], labels[row], w, angles, seen, EPS) for row in range(2)))

    def product(call: Callable) -> torch.Tensor:
        stand_in = SimpleNamespace(
            backbone=lambda *a: BackboneOutput(call(*a), torch.zeros(())),
            lm_head=nn.Identity(),
            config=SimpleNamespace(num_mtp_layers=0),
        )
        return language_modelling_loss(stand_in, batch)[0]

    for tied in (True, False):
        shape = {**SHAPE, "tie_word_embeddings": tied, "use_sliding_window": True, "sliding_window": 2}
        config = Qwen3Config(**shape, layer_types=("full_attention", "sliding_attention"))
        model = scrambled(Qwen3ForCausalLM(config), seed=5)
        check_module(model, forward=loss, backward=gradients, product=product, inputs=[])


def added(first: dict, second: dict) -> dict:
    """The sums of two trees of gradients."""
    return {k: added(a, second[k]) if isinstance(a, dict) else a + second[k] for k, a in first.items()}


def test_clip(qwen3: ModuleType) -> None:
    for size, max_norm in ((1.0, 0.5), (1.0, 100.0), (1e-5, 1e-6)):  # the last so short that the summand shows
        gradients = [draw(3, 2, seed=1, scale=size), draw(4, seed=2, scale=size)]
        parameters = [nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in gradients]
        for parameter, g in zip(parameters, gradients, strict=True):
            parameter.grad = tensor(g)
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)  # what the loop calls
        clipped, our_norm = qwen3.clip(gradients, max_norm)
        near(our_norm, norm.item(), FORWARD, "norm")
        for ours, parameter in zip(clipped, parameters, strict=True):
            near(ours / size, parameter.grad.numpy() / size, FORWARD, "clipped gradient")


def test_adamw(qwen3: ModuleType) -> None:
    config = TrainingConfig(learning_rate=0.05, weight_decay=0.3, beta1=0.8, beta2=0.9)
    model = nn.ParameterDict({"matrix": nn.Parameter(tensor(draw(3, 2, seed=1))), "scale": tensor(draw(4, seed=2))})
    optimizers = Optimizers(model, config)
    weights = {name: p.detach().numpy().copy() for name, p in model.items()}
    means = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}
    for step in (1, 2, 3):
        for name, parameter in model.items():
            g = draw(*parameter.shape, seed=step)
            g.flat[0] = 1e-8 * step  # so small that eps decides
            parameter.grad = tensor(g)
            decay = 0.3 if name == "matrix" else 0.0
            before = weights[name]
            weights[name], *means[name] = qwen3.adamw(before, g, *means[name], step, 0.05, decay, 0.8, 0.9, 1e-8)
            if step == 1 and name == "scale":
                near(weights[name][1:], (before - 0.05 * np.sign(g))[1:], 1e-8, "the first step")
        optimizers.step(1.0)
        for name, parameter in model.items():
            near(weights[name], parameter.detach().numpy(), FORWARD, f"{name} after step {step}")
            for ours, key in zip(means[name], ("exp_avg", "exp_avg_sq"), strict=True):
                near(ours, optimizers.state()[f"{name}/{key}"].numpy(), FORWARD, f"{name}'s {key}")


def test_muon(qwen3: ModuleType) -> None:
    for shape in ((4, 4), (3, 5), (5, 3)):
        M = draw(*shape, seed=1)
        result = qwen3.orthogonalise(M)
        near(result, orthogonalise(tensor(M), torch.float64).numpy(), FORWARD, "orthogonalised")
        singular = np.linalg.svd(M / np.linalg.norm(M), compute_uv=False)
        for _ in range(5):
            singular = qwen3.polynomial(singular)
        near(np.sort(singular), np.sort(np.linalg.svd(result, compute_uv=False)), AUTOGRAD, "singular values")
        assert singular.min() > 0.6 and singular.max() < 1.25

        w, m = draw(*shape, seed=2), np.zeros(shape)
        parameter = nn.Parameter(tensor(w))
        optimizer = Muon([parameter], 0.1, weight_decay=0.2, momentum=0.9, dtype=torch.float64)
        for step in range(3):
            g = draw(*shape, seed=10 + step)
            parameter.grad = tensor(g)
            optimizer.step()
            w, m = qwen3.muon(w, g, m, 0.1, 0.2, 0.9)
            near(w, parameter.detach().numpy(), FORWARD, f"the weight after step {step}")
