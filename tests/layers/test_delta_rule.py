"""The delta rule: its formula by hand, and its fast forms against the slow one, in outputs, final state, gradients."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch

from tiny_transformer.layers import delta_rule
from tiny_transformer.layers.delta_rule import (
    choose_form,
    count_beginnings,
    delta_rule_in_chunks,
    delta_rule_recurrently,
    gated_delta_rule,
    to_unit_length,
)

LENGTHS = (1, 63, 64, 65, 500, 1000)
NAMES = ("query", "key", "value", "log_decay", "beta", "state")


def made_up(T: int, *, dtype: torch.dtype, B: int = 2, G: int = 2, R: int = 2, Dk: int = 6, Dv: int = 5) -> dict:
    """Inputs in which decays from nearly 0 to -12 a token stand side by side, and some keys repeat."""
    generator = torch.Generator().manual_seed(T)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    key = random(B, T, G, Dk)
    key[:, 1::3] = key[:, :1]
    inputs = {
        "query": to_unit_length(random(B, T, G, Dk)),
        "key": to_unit_length(key),
        "value": random(B, T, G * R, Dv),
        "log_decay": -(2 * random(B, T, G * R)).exp().clamp(max=12),
        "beta": random(B, T, G * R).sigmoid(),
        "state": random(B, G * R, Dk, Dv),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def documents(T: int, *, B: int = 2) -> torch.Tensor:
    """Beginnings at random places, some in a row; different in each row of the batch."""
    begins = torch.rand(B, T, generator=torch.Generator().manual_seed(T)) < max(0.03, 2 / T)
    return begins.cumsum(dim=1)


def run(form, inputs: dict, segments: torch.Tensor | None, **keywords) -> list[torch.Tensor]:
    """Outputs, final state, and the gradient of each input."""
    for tensor in inputs.values():
        if tensor is not None:
            tensor.grad = None
    out, state = form(**inputs, segments=segments, **keywords)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in (out, state))
    loss.backward()
    return [out.detach(), state.detach(), *(x.grad.clone() for x in inputs.values() if x is not None)]


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
def test_chunks_equal_the_recurrence_in_outputs_state_and_gradients(T, with_state, with_documents):
    inputs = made_up(T, dtype=torch.float64)
    if not with_state:
        inputs["state"] = None
    segments = documents(T) if with_documents else None
    slow, fast = (run(form, inputs, segments) for form in (delta_rule_recurrently, delta_rule_in_chunks))
    for name, one, two in zip(("out", "final state", *NAMES), slow, fast, strict=False):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("chunk_length", [1, 7, 64, 200])
def test_the_length_of_a_chunk_changes_nothing(chunk_length):
    inputs, segments = made_up(150, dtype=torch.float64), documents(150)
    slow = run(delta_rule_recurrently, inputs, segments)
    for one, two in zip(slow, run(delta_rule_in_chunks, inputs, segments, chunk_length=chunk_length), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-10)


def test_float32_chunks_keep_six_digits_where_memories_fade_fast():
    inputs = made_up(500, dtype=torch.float64)
    exact, _ = delta_rule_recurrently(**inputs, segments=None)
    narrow = {name: tensor.detach().float() for name, tensor in inputs.items()}
    out, _ = delta_rule_in_chunks(**narrow, segments=None)
    torch.testing.assert_close(out.double(), exact.detach(), rtol=0, atol=4e-6)


def test_the_recurrence_is_its_formula():
    inputs = {name: tensor.detach() for name, tensor in made_up(3, dtype=torch.float64, B=1, G=1, R=2).items()}
    out, state = delta_rule_recurrently(**inputs, segments=None)
    for h in range(2):
        memory = inputs["state"][0, h].tolist()
        for t in range(3):
            key, query = inputs["key"][0, t, 0].tolist(), inputs["query"][0, t, 0].tolist()
            decay, beta = math.exp(inputs["log_decay"][0, t, h]), inputs["beta"][0, t, h].item()
            memory = [[decay * x for x in row] for row in memory]
            for v in range(5):
                answer = sum(key[k] * memory[k][v] for k in range(6))
                correction = beta * (inputs["value"][0, t, h, v].item() - answer)
                for k in range(6):
                    memory[k][v] += key[k] * correction
                read = sum(query[k] * memory[k][v] for k in range(6))
                assert out[0, t, h, v].item() == pytest.approx(read, abs=1e-12)
        torch.testing.assert_close(state[0, h], torch.tensor(memory, dtype=torch.float64))


def test_a_fully_corrected_memory_answers_with_the_value_just_written():
    inputs = {name: tensor.detach() for name, tensor in made_up(9, dtype=torch.float64).items()}
    inputs["beta"] = torch.ones_like(inputs["beta"])
    inputs["key"] = inputs["key"] / inputs["key"].norm(dim=-1, keepdim=True)
    inputs["query"] = inputs["key"]
    for form in (delta_rule_recurrently, delta_rule_in_chunks):
        torch.testing.assert_close(form(**inputs, segments=None)[0], inputs["value"])


@pytest.mark.parametrize("form", [delta_rule_recurrently, delta_rule_in_chunks])
def test_documents_inside_a_chunk_equal_documents_alone(form):
    inputs = {name: tensor.detach() for name, tensor in made_up(20, dtype=torch.float64).items()}
    lengths = [6, 1, 13]
    doc_ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, -1)
    out, state = form(**inputs, segments=count_beginnings(doc_ids))
    start, alone = 0, inputs["state"]
    for length in lengths:
        part = {name: tensor[:, start : start + length] for name, tensor in inputs.items() if name != "state"}
        expected, alone = form(**part, state=alone if start == 0 else None, segments=None)
        torch.testing.assert_close(out[:, start : start + length], expected, rtol=1e-9, atol=1e-11)
        start += length
    torch.testing.assert_close(state, alone, rtol=1e-9, atol=1e-11)


def test_beginnings_are_counted_from_the_tokens_read_before():
    doc_ids = torch.tensor([[-1, -1, 0, 0, 1, 1, 2], [3, 3, 3, 3, 3, 3, 3]])
    assert count_beginnings(doc_ids).tolist() == [[0, 0, 1, 1, 2, 2, 3], [0] * 7]
    assert count_beginnings(doc_ids[:, 4:], doc_ids[:, 3:4]).tolist() == [[1, 1, 2], [0, 0, 0]]
    assert count_beginnings(doc_ids[:, 3:], doc_ids[:, 2:3]).tolist() == [[0, 1, 1, 2], [0] * 4]
    assert count_beginnings(torch.tensor([[4, 4, 2, -1, -1]])).tolist() == [[0, 0, 1, 2, 2]]  # ids need not rise
    assert count_beginnings(doc_ids[:, :1]).tolist() == [[0], [0]]


def test_one_function_chooses_the_form_and_says_which(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for kernels, expected in ((True, "kernels"), (False, "chunked")):
        monkeypatch.setattr(delta_rule, "_has_kernels", lambda kernels=kernels: kernels)
        assert [choose_form(1, cpu), choose_form(2, cpu)] == ["recurrent", "chunked"]
        assert [choose_form(1, cuda), choose_form(2, cuda)] == ["recurrent", expected]


@pytest.mark.parametrize(("T", "taken"), [(1, "delta_rule_recurrently"), (2, "delta_rule_in_chunks")])
def test_the_chosen_form_is_the_one_that_runs(T, taken, monkeypatch):
    calls = []
    for name in ("delta_rule_recurrently", "delta_rule_in_chunks"):
        form = getattr(delta_rule, name)
        monkeypatch.setattr(
            delta_rule, name, lambda form=form, name=name, **inputs: calls.append(name) or form(**inputs)
        )
    gated_delta_rule(**made_up(T, dtype=torch.float64), segments=None)
    assert calls == [taken]


def test_half_precision_inputs_are_summed_in_float32():
    inputs = {name: tensor.detach().bfloat16() for name, tensor in made_up(40, dtype=torch.float64).items()}
    wide = {name: tensor.float() for name, tensor in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        out, state = gated_delta_rule(**inputs, segments=None)
    assert out.dtype == state.dtype == torch.float32
    torch.testing.assert_close(out, delta_rule_in_chunks(**wide, segments=None)[0], rtol=0, atol=0)


@pytest.mark.parametrize("with_documents", [False, True])
def test_the_kernels_are_given_documents_as_one_row_with_bounds(with_documents, monkeypatch):
    """In the kernels' place a function with their arguments, which computes each sequence alone."""

    def sequences(q, k, v, g, beta, *, scale, initial_state, output_final_state, cu_seqlens):
        assert scale == 1.0 and output_final_state and q.shape[:3] == k.shape[:3] == v.shape[:3] == g.shape
        inputs = dict(zip(NAMES, (q, k, v, g, beta), strict=False))
        if cu_seqlens is None:
            return delta_rule_recurrently(**inputs, state=initial_state, segments=None)
        assert cu_seqlens[0] == 0 and cu_seqlens[-1] == q.shape[1] and len(initial_state) == len(cu_seqlens) - 1
        found = []
        for n, (a, b) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
            part = {name: tensor[:, a:b] for name, tensor in inputs.items()}
            found.append(delta_rule_recurrently(**part, state=initial_state[n : n + 1], segments=None))
        outs, states = zip(*found, strict=True)
        return torch.cat(outs, dim=1), torch.cat(states)

    fake = types.ModuleType("fla.ops.gated_delta_rule")
    fake.chunk_gated_delta_rule = sequences
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", fake)
    inputs, segments = made_up(60, dtype=torch.float64), None
    if with_documents:
        segments = documents(60)
        segments[1] += 1 - segments[1, 0]  # the second row begins with a document, the first goes on with its state
        segments[0] -= segments[0, 0].clone()
    slow = run(delta_rule_recurrently, inputs, segments)
    for one, two in zip(slow, run(delta_rule.delta_rule_by_kernels, inputs, segments), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
def test_kernels_equal_the_recurrence_in_outputs_state_and_gradients(T, with_documents):
    """The oracle is the loop in float64 on the CPU: nothing that a GPU does takes part in it."""
    pytest.importorskip("fla")
    exact = made_up(T, dtype=torch.float64, Dk=64, Dv=64)
    inputs = {name: tensor.detach().float().cuda().requires_grad_() for name, tensor in exact.items()}
    segments = documents(T) if with_documents else None
    expected = run(delta_rule_recurrently, exact, segments)
    generator = torch.Generator().manual_seed(1)  # as in `run`
    out, state = delta_rule.delta_rule_by_kernels(**inputs, segments=None if segments is None else segments.cuda())
    sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in (out, state)
    ).backward()
    found = [out.detach(), state.detach(), *(tensor.grad for tensor in inputs.values())]
    for name, kernel, loop in zip(("out", "final state", *NAMES), found, expected, strict=True):
        # The kernels multiply in TF32: three digits.
        close = {"rtol": 0, "atol": 1e-2 * max(1.0, loop.abs().max().item())}
        torch.testing.assert_close(kernel.cpu().double(), loop, **close, msg=lambda text, name=name: f"{name}: {text}")


def test_no_factor_is_so_small_that_products_with_it_are_denormal():
    logs = -torch.linspace(0, 200, 2001)
    factors = delta_rule._exp_or_zero(logs)
    kept = factors[factors > 0]
    assert kept.min() ** 2 >= torch.finfo(torch.float32).tiny and kept.min() < 1e-18
    torch.testing.assert_close(factors, logs.exp(), rtol=1e-6, atol=1.1e-19)
    assert (factors[logs < -44] == 0).all()
