"""Requests join and leave between steps, each is written as it would be alone, and no row is ever lost."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tiny_transformer.errors import UserError
from tiny_transformer.generation.rows import generate_without_cache
from tiny_transformer.generation.sampling import SamplingConfig, row_keys
from tiny_transformer.generation.scheduler import Request, Scheduler
from tiny_transformer.layers.cache import ModelCache

GREEDY = SamplingConfig(temperature=0, max_new_tokens=8)
SAMPLED = SamplingConfig(temperature=1.0, top_p=0.9, repetition_penalty=1.3, max_new_tokens=11, seed=3)


def drain(scheduler: Scheduler) -> None:
    for _ in range(1000):
        if scheduler.is_idle:
            return
        scheduler.step()
    raise AssertionError("it never ends")


def alone(model, request: Request) -> list[int]:
    settings = request.settings
    return generate_without_cache(model, [request.prompt], settings, end_ids=request.end_ids, num_tokens=38)[0]


def is_empty(scheduler: Scheduler) -> bool:
    """Every row is free and holds nothing."""
    cache = scheduler._decoder.cache
    return scheduler.num_free == scheduler.num_rows and cache.lengths == [0] * scheduler.num_rows


def test_requests_that_come_and_go_are_written_as_each_alone(model):
    """Seven requests over three rows, submitted while others run, of other lengths and settings."""
    scheduler = Scheduler(model, num_rows=3, max_len=40, num_tokens=38, max_prefix_tokens=20)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [12], [1, 2, 3, 30], [7, 7], [1, 2, 3], [5] * 20]
    requests, given = [], []
    for number, prompt in enumerate(prompts):
        settings = replace((GREEDY, SAMPLED)[number % 2], max_new_tokens=4 + number)
        requests.append(scheduler.submit(prompt, settings, end_ids={0, 20}, num_shared=3 * (number % 3)))
        given += scheduler.step()
    for _ in range(40):
        given += scheduler.step()
    assert scheduler.is_idle and is_empty(scheduler)
    for request in requests:
        assert request.tokens == alone(model, request)
        assert [token for other, token in given if other is request] == request.tokens
        expected = "length" if len(request.tokens) == request.settings.max_new_tokens else "end"
        assert request.finish_reason == expected and request.row is None


def test_a_cancelled_request_frees_its_row_at_once_and_others_go_on(model):
    scheduler = Scheduler(model, num_rows=2, max_len=40, num_tokens=38)
    first, second, third = (scheduler.submit([n, n + 1], GREEDY) for n in (1, 5, 9))
    scheduler.step()
    assert (scheduler.num_free, scheduler.num_waiting) == (0, 1)
    scheduler.cancel(first)
    assert scheduler.num_free == 1 and first.finish_reason == "cancelled"
    scheduler.cancel(first)
    scheduler.step()
    assert third.row is not None and scheduler.num_free == 0
    fourth = scheduler.submit([3], GREEDY)
    scheduler.cancel(fourth, "stop")
    assert scheduler.num_waiting == 0 and fourth.finish_reason == "stop"
    drain(scheduler)
    assert second.tokens == alone(model, second) and third.tokens == alone(model, third)
    assert len(first.tokens) == 1 and is_empty(scheduler)


class Counted:
    """A model that counts the tokens it reads."""

    def __init__(self, model) -> None:
        self._model, self.num_read = model, 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def backbone(self, input_ids, positions, doc_ids, cache):
        self.num_read += int(input_ids.numel() if doc_ids is None else (doc_ids >= 0).sum())
        return self._model.backbone(input_ids, positions, doc_ids, cache)


def test_shared_prefixes_are_read_once(model):
    counted = Counted(model)
    scheduler = Scheduler(counted, num_rows=4, max_len=40, num_tokens=38, max_prefix_tokens=12)
    prefix = [3, 1, 4, 1, 5, 9, 2, 6]
    one = replace(GREEDY, max_new_tokens=1)
    requests = [scheduler.submit([*prefix, n], one, num_shared=8) for n in range(10, 16)]
    drain(scheduler)
    assert counted.num_read == 8 + 6
    requests.append(scheduler.submit([*prefix, 20, 21], one))  # nobody said so, and it is seen
    drain(scheduler)
    assert counted.num_read == 8 + 6 + 2
    same = [scheduler.submit(prefix, SAMPLED, num_shared=8, key=key) for key in row_keys(3, [prefix] * 3)]
    drain(scheduler)
    assert counted.num_read == 8 + 6 + 2 + 3 * (SAMPLED.max_new_tokens - 1)
    assert len({tuple(request.tokens) for request in same}) == 3
    for request in [*requests, same[0]]:
        assert request.tokens == alone(model, request)
    assert scheduler.num_prefix_tokens == 8
    scheduler.submit([7] * 9, one, num_shared=9)  # the other prefix has to go
    drain(scheduler)
    assert scheduler.num_prefix_tokens == 9
    scheduler.submit([8] * 20, one, num_shared=20)  # too long to be kept
    drain(scheduler)
    assert scheduler.num_prefix_tokens == 9


def test_what_has_no_room_is_refused_before_it_waits(qwen3):
    scheduler = Scheduler(qwen3, num_rows=1, max_len=10)
    with pytest.raises(UserError, match="5 tokens and 8 new ones need room for 12, and a row has 10") as refused:
        scheduler.submit([1] * 5, GREEDY)
    assert "max_new_tokens 6" in (refused.value.remedy or "")
    with pytest.raises(UserError, match="has no tokens"):
        scheduler.submit([], GREEDY)
    assert scheduler.is_idle
    request = scheduler.submit([1] * 5, replace(GREEDY, max_new_tokens=6))
    drain(scheduler)
    assert request.finish_reason == "length"


def test_the_context_ends_a_text(qwen3):
    scheduler = Scheduler(qwen3, num_rows=1, max_len=1000)
    request = scheduler.submit([1] * 60, replace(GREEDY, max_new_tokens=100))
    drain(scheduler)
    assert (len(request.tokens), request.finish_reason) == (5, "context")


def test_a_failing_prompt_and_numbers_that_are_none_lose_no_row(qwen3):
    class Broken(Counted):
        fails = True

        def backbone(self, *arguments):
            if self.fails:
                raise MemoryError
            return super().backbone(*arguments)

    broken = Broken(qwen3)
    scheduler = Scheduler(broken, num_rows=2, max_len=20)
    request = scheduler.submit([1, 2], GREEDY)
    with pytest.raises(MemoryError):
        scheduler.step()
    assert request.finish_reason == "cancelled" and is_empty(scheduler) and scheduler.is_idle
    broken.fails = False
    broken.lm_head = lambda hidden: torch.full((*hidden.shape[:-1], 40), torch.nan)
    request = scheduler.submit([1, 2], GREEDY)
    assert scheduler.step() == []
    assert request.finish_reason == "not a number" and is_empty(scheduler)


class Stub:
    """A model without layers: the next token is the last one plus one. Cheap, and its cache counts as any does."""

    config = SimpleNamespace(max_position_embeddings=24, known_vocab_size=7)

    def parameters(self):
        return iter([torch.zeros(1)])

    def make_cache(self, batch_size, max_len):
        return ModelCache([], batch_size=batch_size, max_len=max_len, device=torch.device("cpu"))

    def backbone(self, input_ids, positions, doc_ids, cache):
        cache.admit(input_ids, doc_ids)
        return SimpleNamespace(hidden=torch.nn.functional.one_hot((input_ids + 1) % 7, 7).float())

    def lm_head(self, hidden):
        return hidden


def random_sequences(number: int, *, seed: int = 0, scheduler: Scheduler | None = None) -> None:
    """Random submissions, steps and cancellations; after each sequence everything is free."""
    draw, scheduler = random.Random(seed), scheduler or Scheduler(Stub(), num_rows=3, max_len=20, max_prefix_tokens=9)  # ty: ignore[invalid-argument-type]
    for _ in range(number):
        requests: list[Request] = []
        for _ in range(draw.randint(1, 8)):
            what = draw.random()
            if what < 0.5:
                prompt = [draw.randrange(7) for _ in range(draw.randint(1, 6))]
                settings = SamplingConfig(temperature=0, max_new_tokens=draw.randint(1, 6))
                ends = {draw.randrange(7)} if draw.random() < 0.5 else ()
                requests.append(scheduler.submit(prompt, settings, end_ids=ends, num_shared=draw.randint(0, 6)))
            elif what < 0.75 and requests:
                scheduler.cancel(draw.choice(requests))
            else:
                scheduler.step()
            running = sum(request.row is not None for request in requests)
            assert scheduler.num_free + running == scheduler.num_rows
            assert scheduler.num_prefix_tokens <= 9
        if draw.random() < 0.5:
            for request in requests:
                scheduler.cancel(request)
        else:
            drain(scheduler)
        assert scheduler.is_idle and is_empty(scheduler)
        assert all(request.finish_reason for request in requests)


def test_random_submissions_and_cancellations_leak_no_row():
    random_sequences(300)


@pytest.mark.slow
def test_ten_thousand_random_sequences_leak_no_row():
    random_sequences(10_000, seed=1)


def test_a_leak_is_seen(monkeypatch):
    """Guards the two tests above: a row that is not given back, or not emptied, turns them red."""
    end = Scheduler._end

    def forgets_row(self, request, reason):
        row = request.row
        end(self, request, reason)
        if row is not None and reason == "cancelled":
            self._free.remove(row)

    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(Scheduler, "_end", forgets_row)
        random_sequences(300)
    with monkeypatch.context() as patch, pytest.raises((AssertionError, ValueError)):
        patch.setattr("tiny_transformer.generation.decoder.Decoder.reset", lambda *_: None)
        random_sequences(300)
