"""What one step costs, found before it is taken: the training code itself runs on tensors that have shapes but no
contents, while every byte they would need and every product they would take is counted.

So nothing here knows a formula for activations. What a step holds alive is what the loop, the loss, the optimizer and
autograd hold alive, and the peak is the one that PyTorch's allocator sees, but for buffers inside its kernels.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.config.shapes import DecoderConfig
from tiny_transformer.data.batches import TokenBatch
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import empty_model
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.modifiers import checkpoint_gradients, use_blocked_attention
from tiny_transformer.training.optimizers import Optimizers

aten = torch.ops.aten
_EMPTY = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)  # these touch no memory


class Ledger(TorchDispatchMode):
    """Counts the bytes of all living tensors, and the products of matrices, while it is entered.

    Where a step asks for a number that a tensor without contents cannot give, it gets a stand-in: losses are 1, each
    expert gets an equal share of the tokens, and every token counts.

    Args:
        vocab_size: tells logits from other activations: their last axis has this length.

    Attributes:
        kind: what new tensors are counted as.
        living: bytes of each kind now.
        peak: bytes of each kind when their sum was highest since `reset_peak`.
        most: bytes of each kind when that kind was highest since then.
        products: floating-point operations, a multiplication and an addition each, of `matrices` (weights times
            activations) and `attention` (tokens with tokens; the delta rule too). Attention is counted as if written
            out: every query meets every key, two products forward and four backward.
        moved: bytes that all operators read and write.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self._vocab_size = vocab_size
        self._storages: dict[int, tuple[str, int, Any]] = {}
        self._shares: Iterator[int] = iter(())
        self.kind = "activations"
        self.living: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.products: Counter[str] = Counter()
        self.moved = 0

    def reset_peak(self) -> None:
        """Forget the peaks so far."""
        self.peak, self.most = self.living.copy(), self.living.copy()

    def relabel(self, tensors: Sequence[Tensor], kind: str) -> None:
        """Count these tensors as another kind from now on."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            old, num_bytes, reference = self._storages[key]
            self._storages[key] = (kind, num_bytes, reference)
            self.living[old] -= num_bytes
            self._add(kind, num_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = self._stand_in(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        self._count_products(func, args, kwargs, out)
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        for tensor in made:
            self._watch(tensor)
        if made and not getattr(func, "is_view", True) and func not in _EMPTY:
            read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in read + made)
        return out

    def _watch(self, tensor: Tensor) -> None:
        """Count a tensor's memory, if it is not that of a tensor known already, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        is_logits = self.kind == "activations" and tensor.ndim > 1 and tensor.shape[-1] == self._vocab_size
        kind, num_bytes = "logits" if is_logits else self.kind, storage.nbytes()
        self._storages[key] = (kind, num_bytes, weakref.ref(storage, lambda _: self._forget(key)))
        self._add(kind, num_bytes)

    def _add(self, kind: str, num_bytes: int) -> None:
        self.living[kind] += num_bytes
        self.most[kind] = max(self.most[kind], self.living[kind])
        if self.living.total() > self.peak.total():
            self.peak = self.living.copy()

    def _forget(self, key: int) -> None:
        kind, num_bytes, _ = self._storages.pop(key)
        self.living[kind] -= num_bytes

    def _stand_in(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A result for the operators that need to look into a tensor; None for all others."""
        if func is aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else next(self._shares, 1)
        if func is aten.bincount.default:
            num_bins = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
            share, rest = divmod(args[0].numel(), num_bins)
            self._shares = iter([share + (i < rest) for i in range(num_bins)])
            return args[0].new_empty(num_bins)
        if func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            return torch.empty_like(args[0])
        return None

    def _count_products(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        packet = getattr(func, "_overloadpacket", None)
        name = getattr(packet, "__name__", "")
        if "scaled_dot_product" in name or name.startswith(
            "attend_in_blocks"
        ):  # the same mathematics, however computed
            is_backward = name.endswith("backward")
            query, key, value = args[1:4] if is_backward else args[:3]
            self.products["attention"] += (1 + is_backward) * sdpa_flop_count(query.shape, key.shape, value.shape)
        elif packet in flop_registry:
            place = "attention" if name in ("bmm", "baddbmm") else "matrices"  # weights are never multiplied in batches
            self.products[place] += flop_registry[packet](*args, **kwargs, out_val=out)


def count_parameters(config: DecoderConfig) -> tuple[Counter[str], int]:
    """The parameters of each part of a model, shared ones once, and how many of them work on one token.

    Parts are `embedding`, `attention` (the delta rule's layers too), `feed-forward` or `experts` with their routers,
    `norms`, `head` (absent when it is the embedding) and `MTP head`.
    """
    parts: Counter[str] = Counter()
    experts = 0
    for name, parameter in empty_model(config, device="meta").named_parameters():
        parts[_part(name)] += parameter.numel()
        if ".experts." in name:
            experts += parameter.numel()
    return parts, parts.total() - config.idle_parameters(experts)


def _part(name: str) -> str:
    if name.startswith("mtp."):
        return "MTP head"
    if "norm." in name:
        return "norms"
    if "expert" in name or name.endswith("mlp.gate.weight"):
        return "experts"
    if ".mlp." in name:
        return "feed-forward"
    return {"lm_head.weight": "head", "model.embed_tokens.weight": "embedding"}.get(name, "attention")


@dataclass(frozen=True)
class StepCost:
    """What training costs.

    Attributes:
        memory: bytes of each kind at the highest point of a step (the second or a later one).
        most: bytes of each kind at that kind's own highest point.
        forward, training: floating-point operations of one micro-batch by where they happen, see `Ledger.products`;
            `training` is forward and backward.
        update: floating-point operations of one update of the weights.
        moved_by_gradient, moved_by_update: bytes read and written by one micro-batch, and by an update.
    """

    memory: Counter[str]
    most: Counter[str]
    forward: Counter[str]
    training: Counter[str]
    update: int
    moved_by_gradient: int
    moved_by_update: int


def count_step(config: RunConfig, hardware: Hardware) -> StepCost:
    """Count one training step: gradients of one micro-batch, on top of earlier ones when they are accumulated, and
    the update.

    Args:
        config: `model.vocab_size` must be set.
        hardware: decides which operators run, and the precision.
    """
    training, vocab_size = config.training, config.model.vocab_size
    assert vocab_size is not None  # the caller's promise
    forward: Counter[str] = Counter()
    model = empty_model(config.model, dropout=training.dropout, device="meta").train()
    if training.gradient_checkpointing:
        checkpoint_gradients(model)
    if training.attention == "blocks":
        use_blocked_attention(model)
    with FakeTensorMode(), Ledger(vocab_size) as ledger:
        ledger.kind = "weights"
        _pretend_weights(model, hardware.device)
        parameters = list(model.parameters())
        ledger.kind = "optimizer"
        optimizers = Optimizers(model, training, hardware.update_dtype)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizers.step(0.0)  # its memories exist from now on
        ledger.kind = "activations"
        if training.grad_accum_steps > 1:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            ledger.relabel([p.grad for p in parameters if p.grad is not None], "gradients")
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.relabel([p.grad], "gradients"))

        def loss_function(model: CausalLM, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
            result = language_modelling_loss(model, batch)
            forward.update(ledger.products)
            return result

        ledger.reset_peak()
        ledger.products.clear()
        ledger.moved = 0
        compute_gradient(model, [_one_batch(config, hardware.device)], 0, training, hardware, loss_function)
        both, moved = ledger.products.copy(), ledger.moved
        optimizers.step(0.0)
    update = ledger.products.total() - both.total()
    return StepCost(ledger.peak, ledger.most, forward, both, update, moved, ledger.moved - moved)


def count_generation(config: DecoderConfig, prompt_length: int, hardware: Hardware) -> Counter[str]:
    """Bytes of each kind while a model, its cache made for a full context, reads a prompt and gives the next logits."""
    assert config.vocab_size is not None  # the caller's promise
    model = empty_model(config, device="meta").eval()
    with FakeTensorMode(), Ledger(config.vocab_size) as ledger, torch.no_grad():
        ledger.kind = "weights"
        _pretend_weights(model, hardware.device)
        ledger.kind = "cache"
        cache = model.make_cache(1, config.max_position_embeddings)
        ledger.kind = "activations"
        prompt = torch.empty(1, prompt_length, dtype=torch.long, device=hardware.device)
        hidden = model.backbone(prompt, None, None, cache).hidden
        model.lm_head(hidden[:, -1])
    return ledger.peak


def cache_bytes_per_token(config: DecoderConfig) -> int:
    """What a model's cache grows by with each token of context, in float32."""
    model = empty_model(config, device="meta").eval()
    sizes = []
    for length in (1, 2):
        with FakeTensorMode(), Ledger(config.vocab_size or 1) as ledger:
            cache = model.make_cache(1, length)
            sizes.append(ledger.living.total())
            del cache
    return sizes[1] - sizes[0]


def _pretend_weights(model: CausalLM, device: torch.device) -> None:
    """Put weights that have a shape and a device, but no contents, in the place of meta ones; tied ones stay tied."""
    made: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                if old not in made:
                    made[old] = nn.Parameter(torch.empty(old.shape, dtype=old.dtype, device=device))
                module._parameters[name] = made[old]


def _one_batch(config: RunConfig, device: torch.device) -> TokenBatch:
    """One micro-batch of the config's size, on the device already."""
    shape = (config.training.micro_batch_size, config.data.seq_len)

    def ids() -> Tensor:
        return torch.empty(shape, dtype=torch.long, device=device)

    packed = {"doc_ids": ids(), "positions": ids()} if config.data.packing == "documents" else {}
    return TokenBatch(ids(), ids(), shape[0] * shape[1], torch.empty(shape[0], dtype=torch.long), **packed)
