"""Watching a model read one text: attention weights, hidden states, memories, experts, and what changes without a part.

No model knows that it is watched. Attention weights come from a function mode around PyTorch's operator, which takes
the same queries and keys to the readable twin; hidden states and experts from hooks; the memory of a delta-rule layer
from the cache that the layer hands its inputs to.

Shapes: T tokens, V vocabulary, C hidden size, H heads, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tiny_transformer.layers.attention import attention_weights
from tiny_transformer.layers.cache import ModelCache
from tiny_transformer.layers.delta_rule import delta_rule_recurrently
from tiny_transformer.layers.experts import Routing
from tiny_transformer.layers.recurrent_cache import DeltaInputs, RecurrentCache
from tiny_transformer.models.contract import CausalLM


@dataclass(frozen=True)
class Memory:
    """The memory of a delta-rule layer, by token and head.

    Attributes:
        decay: (T, H) the share of the memory that stays when the token comes, 0 to 1.
        norm: (T, H) the Frobenius norm of the memory after the token.
    """

    decay: Tensor
    norm: Tensor


@dataclass
class Observation:
    """What happened while a text was read once.

    Attributes:
        ids: the T tokens.
        logits: (T, V), for the token after each.
        hidden: L tensors (T, C), what each block gives on.
        attention: by block, (H, T, T): how much the row's token looks at the column's. Later tokens are exactly 0.
        experts: by block, where the router sent each token.
        memories: by block, of delta-rule layers.
    """

    ids: list[int]
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    hidden: list[Tensor] = field(default_factory=list)
    attention: dict[int, Tensor] = field(default_factory=dict)
    experts: dict[int, Routing] = field(default_factory=dict)
    memories: dict[int, Memory] = field(default_factory=dict)


@torch.inference_mode()
def observe(model: CausalLM, ids: Sequence[int], num_tokens: int | None = None) -> Observation:
    """Read a text and keep what can be seen.

    Args:
        model: in evaluation mode; left as it was.
        ids: at least one token.
        num_tokens: logits of higher ids are left out; a head may have more rows than the tokenizer has tokens.
    """
    seen = Observation(list(ids))
    device = next(model.parameters()).device
    cache, watched = _watching_cache(model, len(ids), device)

    def see_attention(block: int, query: Tensor, key: Tensor, mask: Tensor | None, out: Tensor) -> Tensor:
        seen.attention[block] = attention_weights(query=query, key=key, mask=mask)[0]
        return out

    def see_block(_: int, __: nn.Module, ___: Any, out: Any) -> None:
        seen.hidden.append((out[0] if isinstance(out, tuple) else out)[0])

    def see_experts(block: int, _: nn.Module, __: Any, out: Any) -> None:
        if isinstance(out, tuple) and isinstance(out[1], Routing):
            seen.experts[block] = out[1]

    with ExitStack() as stack:
        stack.enter_context(_AttentionMode(model, see_attention))
        stack.enter_context(_hooks(model, see_block))
        stack.enter_context(_hooks(model, see_experts, "mlp"))
        logits = model(torch.tensor([list(ids)], device=device), cache=cache)
    seen.logits = logits[0, :, :num_tokens]
    seen.memories = {block: _memory(layer.inputs) for block, layer in watched.items()}
    return seen


@torch.inference_mode()
def logit_lens(model: CausalLM, seen: Observation) -> Tensor:
    """What the head makes of each block's hidden states, as if the later blocks were not there: (L, T, V)
    log-probabilities; the last row is the model's own.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    hidden = torch.stack(seen.hidden)  # (L, T, C)
    logits = model.lm_head(model.model.norm(hidden))[..., : seen.logits.shape[-1]]
    return torch.log_softmax(logits, dim=-1)


@torch.inference_mode()
def logits_without(model: CausalLM, ids: Sequence[int], block: int, head: int | None = None) -> Tensor:
    """The logits (T, V) of a model in which one attention head gives zeros, or a whole block gives on what it gets.

    Args:
        model: in evaluation mode; left as it was.
        ids: the T tokens.
        block: which, from 0.
        head: a query head of that block's attention; None: the whole block.
    """

    def without_head(at: int, _: Tensor, __: Tensor, ___: Tensor | None, out: Tensor) -> Tensor:
        if at == block and head is not None:
            out = out.clone()
            out[:, head] = 0.0
        return out

    def without_block(at: int, _: nn.Module, inputs: tuple[Any, ...], out: Any) -> Any:
        if at != block or head is not None:
            return None
        return (inputs[0], *out[1:]) if isinstance(out, tuple) else inputs[0]

    device = next(model.parameters()).device
    with _AttentionMode(model, without_head), _hooks(model, without_block):
        return model(torch.tensor([list(ids)], device=device))[0]


class _AttentionMode(TorchFunctionMode):
    """Shows `react` every call of the attention operator with its block, queries, keys and mask, and lets it change
    the result (B, H, T, D)."""

    def __init__(self, model: CausalLM, react: Callable[[int, Tensor, Tensor, Tensor | None, Tensor], Tensor]) -> None:
        super().__init__()
        self._react, self._block = react, -1
        self._blocks: Sequence[nn.Module] = list(model.model.layers)
        self._stack = ExitStack()

    def __enter__(self) -> _AttentionMode:
        for i, block in enumerate(self._blocks):
            handle = block.register_forward_pre_hook(lambda *_, i=i: setattr(self, "_block", i))
            self._stack.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self._stack.close()
        super().__exit__(exc_type, exc_val, exc_tb)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            out = self._react(self._block, args[0], args[1], kwargs.get("attn_mask"), out)
        return out


@contextmanager
def _hooks(model: CausalLM, react: Callable[..., Any], part: str | None = None) -> Generator[None]:
    """While it lasts, `react(block, module, inputs, output)` after each block, or after a part of each that has it."""
    with ExitStack() as stack:
        for i, block in enumerate(model.model.layers):
            module = block if part is None else getattr(block, part, None)
            if module is not None:

                def hook(module: nn.Module, inputs: Any, out: Any, i: int = i) -> Any:
                    return react(i, module, inputs, out)

                stack.callback(module.register_forward_hook(hook).remove)
        yield


class _WatchedMemory(RecurrentCache):
    """A layer's memory that keeps what the layer hands to it."""

    inputs: DeltaInputs

    def append(self, inputs: DeltaInputs, *, state: Tensor) -> None:
        self.inputs = inputs
        super().append(inputs, state=state)


def _watching_cache(
    model: CausalLM, max_len: int, device: torch.device
) -> tuple[ModelCache, dict[int, _WatchedMemory]]:
    made = model.make_cache(1, max_len)
    layers: list[Any] = [made[i] for i in range(len(made))]
    watched = {
        i: _WatchedMemory(layer.window, layer.state)
        for i, layer in enumerate(layers)
        if isinstance(layer, RecurrentCache)
    }
    layers = [watched.get(i, layer) for i, layer in enumerate(layers)]
    return ModelCache(layers, batch_size=1, max_len=max_len, device=device), watched


def _memory(inputs: DeltaInputs) -> Memory:
    """Token by token, by the form that is checked by hand."""
    state: Tensor | None = None
    norms = []
    for t in range(inputs.key.shape[1]):
        now = slice(t, t + 1)
        _, state = delta_rule_recurrently(
            query=inputs.key[:, now],
            key=inputs.key[:, now],
            value=inputs.value[:, now],
            log_decay=inputs.log_decay[:, now],
            beta=inputs.beta[:, now],
            state=state,
            segments=None,
        )
        norms.append(state[0].flatten(1).norm(dim=1))
    return Memory(inputs.log_decay[0].exp(), torch.stack(norms))
