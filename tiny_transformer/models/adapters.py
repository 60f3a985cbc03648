"""Low-rank adapters on a model, in its layers: what is trained, what stays frozen, and which base they belong to.

Their files are `models/adapter_files.py`'s.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from tiny_transformer.errors import UserError
from tiny_transformer.layers.linear import LoRALinear
from tiny_transformer.models.swaps import EMBEDDING, HEAD, add_lora, learn_rows, quantize_layers
from tiny_transformer.models.token_rows import ROWS

if TYPE_CHECKING:
    from tiny_transformer.config.schema import LoraSection
    from tiny_transformer.models.contract import CausalLM

HALVES, MAGNITUDE = ("lora_A", "lora_B"), "lora_magnitude_vector"


def adapt(model: CausalLM, lora: LoraSection, *, seed: int, new_ids: Sequence[int] = ()) -> str:
    """Put adapters on a model, in place, freeze everything else, and say what is trained.

    Args:
        model: of ordinary layers; quantized first where `lora` says so.
        lora: which layers, of what rank.
        seed: draws the first half of each adapter; the second is zero, so at first nothing changes.
        new_ids: of tokens that the frozen tables of words know nothing of: their rows learn too.

    Raises:
        UserError: a pattern that no layer has, or that of the head where rows of it learn.
    """
    num_all = sum(parameter.numel() for parameter in model.parameters())
    if lora.quantize != "none":
        quantize_layers(model, lora.quantize)
    # alpha / sqrt(r) is alpha sqrt(r) / r: rank-stabilized scaling (Kalajdzievski, 2023) needs no layer of its own
    alpha = lora.alpha * math.sqrt(lora.rank) if lora.rslora else lora.alpha
    generator = torch.Generator().manual_seed(seed)
    names = add_lora(
        model,
        lora.targets,
        rank=lora.rank,
        alpha=alpha,
        dropout=lora.dropout,
        kind="dora" if lora.use_dora else "lora",
        generator=generator,
    )
    if new_ids:
        if HEAD in names:
            raise UserError(
                "new control tokens have rows of their own in lm_head, which takes no adapter besides",
                where="lora.targets",
                remedy="leave lm_head out of it, or --template alpaca or plain",
            )
        tables = [EMBEDDING] if model.config.tie_word_embeddings else [EMBEDDING, HEAD]
        learn_rows(model, dict.fromkeys(tables, new_ids))
    num_trained = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        num_trained += parameter.numel() if parameter.requires_grad else 0
    base = "" if lora.quantize == "none" else f" in {lora.quantize}"
    rows = f" and the rows of {len(new_ids)} new tokens" if new_ids else ""
    return (
        f"adapters of rank {lora.rank} on {len(names)} layers{rows}: {num_trained:,} weights are trained, with "
        f"{12 * num_trained / 1e6:.1f} MB for gradients and optimizer, and {num_all:,} stay frozen{base}"
    ) + _beyond_peft(names, use_dora=lora.use_dora)


def _beyond_peft(names: list[str], *, use_dora: bool) -> str:
    """What peft cannot make of adapters on these layers, in words: transformers has experts as one tensor."""
    experts, shared = (any(part in name for name in names) for part in (".experts.", ".shared_expert."))
    if experts and use_dora:
        return "; peft refuses DoRA on experts: for other programs, merge them (tiny-transformer merge)"
    if experts and shared:
        return (
            "; peft leaves out those of shared experts beside those of experts, and gives other logits: for other "
            "programs, merge them (tiny-transformer merge), or adapt one of the two"
        )
    return ""


def is_adapter(name: str) -> bool:
    """Whether a tensor of a model belongs to an adapter."""
    return name.rpartition(".")[2] in (*HALVES, MAGNITUDE, ROWS)


def base_fingerprint(tensors: Mapping[str, torch.Tensor], learnt: Mapping[str, list[int]] | None = None) -> str:
    """What tells one base from another: its norms and every 37th row of its embedding, which adapters leave alone and
    quantization too.

    Args:
        tensors: of a model, with adapters or without.
        learnt: see `learnt_tokens`; from the first of them on no row counts.
    """
    digest = hashlib.blake2b(digest_size=16)
    num_rows = min((learnt or {}).get(EMBEDDING, [2**62]))
    for name, tensor in sorted((name.replace(".base.", "."), tensor) for name, tensor in tensors.items()):
        if name == f"{EMBEDDING}.weight" or (tensor.ndim == 1 and "norm" in name):
            rows = tensor if "norm" in name else tensor[:num_rows:37]
            digest.update(name.encode() + rows.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def without_adapters(model: CausalLM) -> Generator[None]:
    """The model as it was before it was adapted, while the block runs."""
    layers = [layer for _, layer in adapters_of(model)]
    try:
        for layer in layers:
            layer.__dict__["forward"] = layer.base.forward  # of this layer alone, before that of its class
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def adapters_of(model: CausalLM) -> Iterator[tuple[str, LoRALinear]]:
    """The layers that have adapters, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))
