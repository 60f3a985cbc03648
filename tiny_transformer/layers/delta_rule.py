"""The gated delta rule: a memory of fixed size that each token corrects, instead of one that grows with the tokens.

Shapes: B batch, T tokens, G key heads, H value heads (H = G R: R value heads read and write with one key head), Dk
width of a key, Dv width of a value, N chunks, L tokens of a chunk, M = B H memories.

For each value head a matrix S (Dk, Dv) answers a key k with the value S^T k. A token first lets the memory fade, then
replaces what it answers to k_t, by the share beta_t, with v_t, then asks it q_t:

    S <- exp(log_decay_t) S;   S <- S + k_t (beta_t (v_t - S^T k_t))^T;   o_t = S^T q_t

Three forms compute this: `delta_rule_recurrently` token by token, the one to check by hand; `delta_rule_in_chunks`
with matrix products, for training; `delta_rule_by_kernels` with the Triton kernels of flash-linear-attention on a GPU.
`gated_delta_rule` takes the best of them; `choose_form` tells which that is.

Documents: `segments` counts the beginnings of documents among the T tokens: 0 for tokens that go on with the given
state, 1 after the first beginning, and so on. The memory is empty where a document begins.

Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024, sections 3.1 and
3.3; the triangular system of a chunk is that of Yang et al., "Parallelizing Linear Transformers with the Delta Rule
over Sequence Length", 2024.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch.nn import functional

from tiny_transformer.layers.norm import at_least_float32

Form = Literal["recurrent", "chunked", "kernels"]
CHUNK_LENGTH = 32  # the fastest of 16, 32 and 64 on a CPU
# Sums of log decays reach -1000 where a memory fades fast; in float32 their small differences would keep four digits.
_SUMS = {"mps": torch.float32}  # MPS has no float64
_EPS = 1e-6  # inside the root of `to_unit_length`; fixed in every published model


def to_unit_length(heads: torch.Tensor) -> torch.Tensor:
    """x / sqrt(sum(x^2) + 1e-6) over the last axis: a key of length one makes the correction by beta exact."""
    return heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + _EPS)


def count_beginnings(doc_ids: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
    """The segments (B, T) of T tokens: how often, since the tokens read before, a document began.

    Args:
        doc_ids: (B, T) document of each token.
        last: (B, 1) document of the token read before them; None: there was none, and the first begins nothing.
    """
    before = torch.cat((doc_ids[:, :1] if last is None else last, doc_ids[:, :-1]), dim=1)
    return (doc_ids != before).cumsum(dim=1)


def gated_delta_rule(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    segments: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token reads from the memory, and the memory after the last one.

    Args:
        query, key: (B, T, G, Dk), keys of unit length.
        value: (B, T, H, Dv).
        log_decay: (B, T, H), at most 0.
        beta: (B, T, H), 0 to 1.
        state: (B, H, Dk, Dv) before the first token; None: zeros.
        segments: (B, T) int64, see the module; None: no document begins here.

    Returns:
        (B, T, H, Dv) and the state (B, H, Dk, Dv), both at least float32: the sums are too long for less.
    """
    form = {
        "recurrent": delta_rule_recurrently,
        "chunked": delta_rule_in_chunks,
        "kernels": delta_rule_by_kernels,
    }[choose_form(key.shape[1], key.device)]
    wide = [at_least_float32(x) for x in (query, key, value, log_decay, beta)]
    with torch.autocast(key.device.type, enabled=False):
        return form(
            query=wide[0],
            key=wide[1],
            value=wide[2],
            log_decay=wide[3],
            beta=wide[4],
            state=state,
            segments=segments,
        )


def choose_form(num_tokens: int, device: torch.device) -> Form:
    """Which form `gated_delta_rule` takes for so many tokens on a device."""
    if num_tokens == 1:
        return "recurrent"
    return "kernels" if device.type == "cuda" and _has_kernels() else "chunked"


def delta_rule_recurrently(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    segments: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula, token by token. Arguments and results of `gated_delta_rule`."""
    repeats = value.shape[2] // key.shape[2]
    query, key = query.repeat_interleave(repeats, dim=2), key.repeat_interleave(repeats, dim=2)  # (B, T, H, Dk)
    state = _start(state, key, value)
    begins = None if segments is None else segments.diff(dim=1, prepend=torch.zeros_like(segments[:, :1])) > 0
    outputs = []
    for t in range(key.shape[1]):
        if begins is not None:
            state = state.masked_fill(begins[:, t, None, None, None], 0.0)
        state = log_decay[:, t, :, None, None].exp() * state
        answer = torch.einsum("bhkv,bhk->bhv", state, key[:, t])
        correction = beta[:, t, :, None] * (value[:, t] - answer)
        state = state + key[:, t, :, :, None] * correction[:, :, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, query[:, t]))
    return torch.stack(outputs, dim=1), state


def delta_rule_in_chunks(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    segments: torch.Tensor | None,
    chunk_length: int = CHUNK_LENGTH,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same numbers from matrix products: time grows with T, and only the step from chunk to chunk is a loop.

    Inside a chunk let c_i be the log decay since it began and S the state it began with. The corrections u_i of its
    tokens obey  u_i + beta_i sum_{j<i} exp(c_i - c_j) (k_i k_j) u_j = beta_i v_i - beta_i exp(c_i) S^T k_i,  a
    triangular system with two right-hand sides that do not depend on S; so it is solved for all chunks at once. The
    loop is left with  u = solved_value - solved_key S  and  S <- exp(c_L) S + sum_j exp(c_L - c_j) k_j u_j^T.

    Arguments and results of `gated_delta_rule`, and `chunk_length`, L, which changes speed and rounding only.
    """
    B, T, G, Dk = key.shape
    H, Dv = value.shape[2:]
    R, L = H // G, min(chunk_length, T)
    state = _start(state, key, value).reshape(B * H, Dk, Dv)

    def chunks(x: torch.Tensor, *inner: int) -> torch.Tensor:
        """(B, T, ...) to (N, B, *inner); tokens of zeros fill the last chunk and change nothing."""
        x = functional.pad(x, (0, 0) * (x.ndim - 2) + (0, -T % L))
        x = x.unflatten(1, (-1, L)).transpose(0, 1)  # (N, B, L, heads, ...)
        return x.transpose(2, 3).reshape(x.shape[0], B, *inner)

    query, key = chunks(query, G, 1, L, Dk), chunks(key, G, 1, L, Dk)
    value = chunks(value, G, R, L, Dv)
    beta = chunks(beta, G, R, L)[..., None]  # (N, B, G, R, L, 1)
    decay = chunks(log_decay, G, R, L).cumsum(-1, dtype=_SUMS.get(key.device.type, torch.float64))  # (N, B, G, R, L)
    same, carried, lasting = _chunk_masks(segments, L, query.device)
    between = (decay[..., :, None] - decay[..., None, :]).masked_fill(~same, float("-inf"))  # (N, B, G, R, L, L)
    between = _exp_or_zero(between.to(key.dtype))
    since_start = _exp_or_zero(decay.to(key.dtype))[..., None] * carried  # (N, B, G, R, L, 1)
    until_end = _exp_or_zero((decay[..., -1:] - decay).to(key.dtype))[..., None] * lasting  # (N, B, G, R, L, 1)

    system = beta * (key @ key.transpose(-1, -2)) * between  # its diagonal is taken as 1, what lies above as 0
    right = torch.cat((beta * value, beta * since_start * key), dim=-1)
    solved = _solve(system, right)  # (N, B, G, R, L, Dv + Dk)
    solved_value, solved_key = solved.flatten(1, 3).split((Dv, Dk), dim=-1)  # (N, M, L, ...)
    states, corrections, state = _Scan.apply(
        solved_value, solved_key, (until_end * key).flatten(1, 3), since_start[..., -1:, :].flatten(1, 3), state
    )  # (N, M, Dk, Dv), (N, M, L, Dv), (M, Dk, Dv)
    remembered = (since_start * query).flatten(1, 3) @ states  # (N, M, L, Dv)
    weights = ((query @ key.transpose(-1, -2)) * between).flatten(1, 3)  # (N, M, L, L)
    out = (remembered + weights @ corrections).view(-1, B, H, L, Dv)
    return out.permute(1, 0, 3, 2, 4).reshape(B, -1, H, Dv)[:, :T], state.view(B, H, Dk, Dv)


def _exp_or_zero(log_factor: torch.Tensor) -> torch.Tensor:
    """exp(x), and 0 where its square would be too small for a normal number. Memories that fade fast make many such
    factors; products with them end in denormal numbers, which take a CPU several times as long."""
    too_small = log_factor < 0.5 * math.log(torch.finfo(log_factor.dtype).tiny)
    return log_factor.masked_fill(too_small, float("-inf")).exp()


def _solve(system: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """X of A X = B, A (.., L, L) read as lower triangular with ones on its diagonal. Transposed, as the solver wants
    columns together and would turn B around first."""
    return torch.linalg.solve_triangular(system.mT, right.mT, upper=True, left=False, unitriangular=True).mT


class _Scan(torch.autograd.Function):
    """From chunk to chunk, with the gradient written out: autograd would keep and add whole tensors for every chunk.

    For each chunk n, with `values` (N, M, L, Dv), `keys` and `keys_at_end` (N, M, L, Dk), `fading` (N, M, 1, 1) and the
    first state (M, Dk, Dv):  u_n = values_n - keys_n S_n;  S_{n+1} = fading_n S_n + keys_at_end_n^T u_n.  Gives the
    states that the chunks begin with, all u, and the last state. Whole tensors are written once and never added up:
    with wide heads that, and not the products, takes the time.
    """

    @staticmethod
    def forward(ctx, values, keys, keys_at_end, fading, state):
        states = state.new_empty(len(values) + 1, *state.shape)
        states[0] = state
        corrections = values.new_empty(values.shape)
        for n in range(len(values)):
            torch.baddbmm(values[n], keys[n], states[n], alpha=-1, out=corrections[n])
            torch.mul(fading[n], states[n], out=states[n + 1]).baddbmm_(keys_at_end[n].mT, corrections[n])
        ctx.save_for_backward(keys, keys_at_end, fading, states, corrections)
        return states[:-1], corrections, states[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_states, grad_corrections, grad_last):
        keys, keys_at_end, fading, states, corrections = ctx.saved_tensors
        grad_values, grad_keys = torch.empty_like(corrections), keys.new_empty(keys.shape)
        grad_fading, totals = torch.empty_like(fading), torch.empty_like(states)  # a state's own and what follows
        totals[-1] = grad_last
        for n in reversed(range(len(keys))):
            after, before = totals[n + 1], totals[n]
            torch.baddbmm(grad_corrections[n], keys_at_end[n], after, out=grad_values[n])
            torch.mul(fading[n], after, out=before).add_(grad_states[n])
            before.baddbmm_(keys[n].mT, grad_values[n], alpha=-1)
            torch.sum(after * states[n], dim=(-2, -1), keepdim=True, out=grad_fading[n])
            grad_keys[n].baddbmm_(grad_values[n], states[n].mT, beta=0, alpha=-1)
        return grad_values, grad_keys, corrections @ totals[1:].mT, grad_fading, totals[0]


def delta_rule_by_kernels(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    segments: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by flash-linear-attention's kernels, on CUDA. Arguments and results of `gated_delta_rule`."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # ty: ignore[import-not-found]

    B, T, H = log_decay.shape
    repeats = H // key.shape[2]
    query, key = query.repeat_interleave(repeats, dim=2), key.repeat_interleave(repeats, dim=2)
    state = _start(state, key, value)
    inputs, bounds, last = (query, key, value, log_decay, beta), None, None
    if segments is not None:
        # The kernels take documents as one long row with the places where they begin, and a state for each.
        begins = segments.diff(dim=1, prepend=torch.zeros_like(segments[:, :1])) > 0
        first = torch.zeros_like(begins)
        first[:, 0] = True
        starts = (begins | first).flatten().nonzero()[:, 0]  # (documents,)
        bounds = functional.pad(starts, (0, 1), value=B * T)
        last = torch.searchsorted(starts // T, torch.arange(B, device=starts.device), right=True) - 1  # of each row
        carried = ((first & ~begins).flatten()[starts])[:, None, None, None]
        state = state[starts // T] * carried
        inputs = tuple(x.flatten(0, 1)[None] for x in inputs)
    out, state = chunk_gated_delta_rule(
        *inputs, scale=1.0, initial_state=state, output_final_state=True, cu_seqlens=bounds
    )
    return out.view(B, T, H, -1), state if last is None else state[last]


@cache
def _has_kernels() -> bool:
    return find_spec("fla") is not None


def _start(state: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(B, H, Dk, Dv): the given state in the inputs' dtype, or zeros."""
    if state is not None:
        return state.to(value.dtype)
    return value.new_zeros(value.shape[0], value.shape[2], key.shape[3], value.shape[3])


def _chunk_masks(
    segments: torch.Tensor | None, L: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor | float]:
    """What documents let through, in shapes that fit `delta_rule_in_chunks`.

    Returns:
        (.., L, L): token i sees token j of its chunk; (.., L, 1) 1.0: token i sees the state the chunk began with;
        (.., L, 1) 1.0: token j is in the document that goes on after the chunk.
    """
    order = torch.ones(L, L, dtype=torch.bool, device=device).tril()
    if segments is None:
        return order, 1.0, 1.0
    T = segments.shape[1]
    tail = segments[:, -1:].expand(-1, -T % L)
    chunked = torch.cat((segments, tail), dim=1).unflatten(1, (-1, L)).transpose(0, 1)  # (N, B, L)
    before = functional.pad(chunked[:-1, :, -1], (0, 0, 1, 0))[..., None]  # (N, B, 1): the state's document
    chunked, before = chunked[:, :, None, None], before[:, :, None, None]  # (N, B, 1, 1, L), (N, B, 1, 1, 1)
    same = order & (chunked[..., :, None] == chunked[..., None, :])
    return same, (chunked == before)[..., None].float(), (chunked == chunked[..., -1:])[..., None].float()
