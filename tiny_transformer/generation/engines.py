"""Who computes the next token: the model as it is written, or its compiled step (`kernels`, extra `fast`).

`choose_engine` decides, and says what was chosen and why. The plain engine is the one to read, reads every prompt (in
bf16, where the compiled step is taken, with attention in blocks of queries), and is the fallback: whatever the compiled
step does not cover is refused here, before it starts.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from tiny_transformer.errors import UserError
from tiny_transformer.generation.decoder import TOKEN_STEPS
from tiny_transformer.hardware import has_fast_bf16
from tiny_transformer.layers.attention import attend
from tiny_transformer.layers.blocked_attention import read_in_blocks
from tiny_transformer.layers.cache import ModelCache
from tiny_transformer.layers.linear import LoRALinear, QuantizedLinear, QuantizedWeight
from tiny_transformer.layers.norm import RMSNorm
from tiny_transformer.layers.rope import rope_cos_sin
from tiny_transformer.layers.tied_head import TiedHead
from tiny_transformer.layers.token_rows import LearntRows
from tiny_transformer.models.contract import CausalLM

if TYPE_CHECKING:
    from tiny_transformer.generation.kernels import Matrix, Weights
    from tiny_transformer.generation.row_step import RowStep

ENGINES = ("auto", "plain", "fast")
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
PAYS = 2e9  # weights times tokens: about what the plain engine does in the second that Numba takes to be imported
_EVERYTHING = 2**62  # the window of a layer that sees everything


def choose_engine(model: CausalLM, wanted: str = "auto", *, num_tokens: int | None = None) -> str:
    """Choose how `Decoder` computes single tokens with this model, and say what was chosen.

    Args:
        model: in evaluation mode. Where the compiled step is taken, its matrices become views of one tensor a kind.
        wanted: `plain`; `fast`, the compiled step; `auto`: the compiled step where it can be had and pays.
        num_tokens: that will be written with it, for `auto`; None: many.

    Raises:
        UserError: `fast` where it cannot be had, with the reason; or an unknown name.
    """
    check_engine(wanted)
    TOKEN_STEPS.pop(model, None)
    _read_prompts(model, attend)
    if wanted == "plain":
        return "plain engine"
    reason = why_not_fast(model)
    if wanted == "auto" and reason is None and num_tokens is not None:
        num_weights = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
        if num_weights * num_tokens < PAYS:
            reason = "a text this short is written before the compiled step would be loaded"
    if reason is None:
        weights = gathered(model)
        if has_fast_bf16(torch.device("cpu")):
            _read_prompts(model, read_in_blocks)
        TOKEN_STEPS[model] = lambda model: FastStep(model, weights)
        return f"compiled step, {_weights_in_words(model)}, {torch.get_num_threads()} threads"
    if wanted == "fast":
        raise UserError(f"no compiled step: {reason}", remedy="take the plain engine, which computes everything")
    return f"plain engine: {reason}"


def _read_prompts(model: CausalLM, form: Callable[..., Tensor]) -> None:
    """Let every attention that is not in training's own form compute in this one; both compute the same."""
    for module in model.modules():
        if getattr(module, "attend", None) in (attend, read_in_blocks):
            module.attend = form  # ty: ignore[invalid-assignment]


def check_engine(name: str) -> None:
    """Raise UserError for an unknown name, also where nobody is going to choose."""
    if name not in ENGINES:
        raise UserError(f"there is no engine {name!r}", remedy=f"one of {', '.join(ENGINES)}")


def why_not_fast(model: CausalLM) -> str | None:
    """Why a model has no compiled step, or None."""
    if find_spec("numba") is None:
        return "numba is not installed (pip install numba)"
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"the model is on {weight.device.type}"
    if weight.dtype not in DTYPES:
        return f"it computes in {' and '.join(DTYPES.values())}, and the model in {weight.dtype}"
    if model.config.model_type not in ("llama", "qwen3", "olmo2"):
        return f"{model.config.model_type} has layers that it does not compute"
    if not isinstance(model.model.norm, RMSNorm):
        return "it computes no LayerNorm"
    if any(isinstance(module, (LoRALinear, LearntRows)) for module in model.modules()):
        return "it computes no adapters (tiny-transformer merge makes an ordinary model)"
    for names in (*MATRICES.values(), ("lm_head",)):
        kinds = {_kind(module) for layer in _modules(model, names) for module in layer}
        if len(kinds) > 1 or None in kinds:
            return f"{' and '.join(names)} are not all of one kind that it knows"
    return None


# --- weights as the compiled step reads them

MATRICES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def gathered(model: CausalLM) -> Weights:
    """All weights of a model by kind; the model's own become views of them, so that nothing is stored twice."""
    from tiny_transformer.generation.kernels import Weights

    config, layers, is_olmo = model.config, list(model.model.layers), model.config.model_type == "olmo2"
    attention = [layer.self_attn for layer in layers]
    kinds = getattr(config, "layer_types", [None] * len(layers))
    limited = [getattr(config, "sliding_window", None) if kind != "full_attention" else None for kind in kinds]
    return Weights(
        **{name: _stacked(_modules(model, names)) for name, names in MATRICES.items()},
        head=_stacked(_modules(model, ("lm_head",))),
        before_attention=_norms([None if is_olmo else layer.input_layernorm for layer in layers]),
        after_attention=_norms([layer.post_attention_layernorm if is_olmo else None for layer in layers]),
        before_mlp=_norms([None if is_olmo else layer.post_attention_layernorm for layer in layers]),
        after_mlp=_norms([layer.post_feedforward_layernorm if is_olmo else None for layer in layers]),
        query=_norms([getattr(one, "q_norm", None) for one in attention]),
        key=_norms([getattr(one, "k_norm", None) for one in attention]),
        last=_norms([model.model.norm]),
        windows=torch.tensor([_EVERYTHING if one is None else one for one in limited]).numpy(),
        eps=config.rms_norm_eps,
    )


def _modules(model: CausalLM, names: Sequence[str]) -> list[list[nn.Module]]:
    """For each layer the modules of these names; the head alone for `lm_head`."""
    if names == ("lm_head",):
        head = model.lm_head
        return [[cast(nn.Module, head.embedding) if isinstance(head, TiedHead) else head]]
    return [[layer.get_submodule(name) for name in names] for layer in model.model.layers]


def _kind(module: nn.Module) -> tuple[Any, ...] | None:
    """What must be equal among layers that stand in one tensor; None: not known to the compiled step."""
    if type(module) is nn.Linear:
        return (module.weight.dtype, module.bias is not None) if module.weight.dtype in DTYPES else None
    if isinstance(module, QuantizedWeight) and not (module.bits == 4 and module.columns % 2):
        return module.bits, module.group_width, getattr(module, "bias", None) is not None
    return None


@torch.no_grad()
def _stacked(layers: list[list[nn.Module]]) -> Matrix:
    """One matrix for each layer, the rows of its modules below each other."""
    from tiny_transformer.generation.kernels import Matrix

    first = layers[0][0]
    is_quantized = isinstance(first, QuantizedWeight)
    name = "quantized" if is_quantized else "weight"
    parts = [[getattr(module, name).detach() for module in modules] for modules in layers]
    if len(layers) == len(layers[0]) == 1:  # the head, which may be tied: it stays where it is
        data = parts[0][0][None].contiguous()
    else:
        data = torch.stack([torch.cat(some) for some in parts])
        for modules, matrix in zip(layers, data, strict=True):
            pieces = matrix.split([len(getattr(module, name)) for module in modules])
            for module, piece in zip(modules, pieces, strict=True):
                if isinstance(module, QuantizedWeight):
                    module.quantized = piece
                else:
                    module.weight.data = piece
    scale, group = torch.empty(len(layers), 0, 0), 0
    if isinstance(first, QuantizedWeight):
        scale = torch.stack([torch.cat([module.scale.float() for module in some]) for some in layers])  # ty: ignore
        group = first.group_width
    bias = torch.empty(len(layers), 0)
    if getattr(first, "bias", None) is not None:
        bias = torch.stack([torch.cat([module.bias.float() for module in some]) for some in layers])  # ty: ignore
    data = data.view(torch.uint16) if data.dtype == torch.bfloat16 else data
    return Matrix(data.numpy(), scale.numpy(), group, bias.numpy())


def _norms(modules: Sequence[nn.Module | None]) -> Any:
    """The weights of a norm in all layers, (L, size) float32."""
    weights = [torch.empty(0) if module is None else module.weight.detach().float() for module in modules]  # ty: ignore
    return torch.stack(weights).numpy()


def _weights_in_words(model: CausalLM) -> str:
    module = model.model.layers[0].mlp.down_proj
    return f"int{module.bits}" if isinstance(module, QuantizedLinear) else DTYPES[module.weight.dtype]


# --- the compiled step as `Decoder` calls it


class FastStep:
    """One new token of each row: what the model's backbone and head compute, on the same cache.

    Args:
        model: `weights` are its.
        weights: from `gathered`.
    """

    def __init__(self, model: CausalLM, weights: Weights) -> None:
        from tiny_transformer.generation import kernels

        self._compiled, self._model, self._weights = kernels.step, model, weights
        self._row_step: RowStep | None = None
        self._cache: ModelCache | None = None
        self._compiled_for: set[bool] = set()  # one row, several
        self._set_threads()

    def takes(self, ids: Tensor | Sequence[Sequence[int]], cache: ModelCache) -> TypeGuard[Tensor]:
        """Whether these ids (B, T) are one token a row, and each row is one document."""
        return isinstance(ids, Tensor) and ids.shape[1] == 1 and cache.is_plain

    def __call__(self, ids: Tensor, cache: ModelCache) -> tuple[Tensor, Tensor]:
        """Read one more token of each row, as `Decoder.feed` does: hidden states (B, 1, C) and logits (B, 1, V), both
        float32."""
        if cache is not self._cache:
            self._adopt(cache)
        lengths = cache.lengths
        cache.admit(ids, None)
        hidden = self._model.model.embed_tokens(ids)[:, 0].float().clone()  # (B, C)
        cos, sin, keys, values = self._arrays
        is_several = len(ids) > 1
        with nullcontext() if is_several in self._compiled_for else uninterrupted():
            if is_several:
                hidden, logits = self._rows(len(ids))(hidden, (cos, sin), keys, values, torch.tensor(lengths).numpy())
            else:
                logits, position = torch.empty(1, self._weights.head.data.shape[1]), lengths[0]
                vector, place = hidden[0].numpy(), (cos[position], sin[position])
                self._compiled(self._weights, vector, *place, keys[:, 0], values[:, 0], position, logits[0].numpy())
        self._compiled_for.add(is_several)
        return hidden[:, None], logits[:, None]

    def _rows(self, rows: int) -> RowStep:
        if self._row_step is None or self._row_step.rows != rows:
            from tiny_transformer.generation.row_step import RowStep

            config = self._model.config
            sizes = {"head_dim": config.head_dim, "groups": config.num_key_value_heads}
            self._row_step = RowStep(self._weights, rows, **sizes)
        return self._row_step

    def _adopt(self, cache: ModelCache) -> None:
        """Put the keys of all layers into one tensor, and the values; the cache goes on in them."""
        from tiny_transformer.generation.kernels import bits

        config, slots = self._model.config, torch.arange(cache.max_len)[None]
        cos, sin = rope_cos_sin(
            slots,
            head_dim=config.rotary_dim,
            theta=config.rope_theta,
            dtype=torch.float32,
            scaling=config.rope_numbers(),
        )
        memory = map(bits, cache.gather_memory())
        self._arrays = (cos[0, :, 0].numpy(), sin[0, :, 0].numpy(), *memory)
        self._cache = cache

    def _set_threads(self) -> None:
        import numba

        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # ty: ignore[missing-attribute]
        torch.set_num_threads(
            threads
        )  # Numba, when it begins, tells OpenMP another number, and OpenMP is PyTorch's too


@contextmanager
def uninterrupted() -> Generator[None]:
    """Ctrl-C waits until the block is over: Numba compiles, and loads what it compiled before, in callbacks, from which
    no exception comes out."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda *given: came.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])
