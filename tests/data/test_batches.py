"""Batches: every token a target exactly once, the same examples for any number of processes, nothing but the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_transformer.data.batches import IGNORE_INDEX, Batches, TokenBatch, evaluation_batches
from tiny_transformer.data.token_file import TokenFile
from tiny_transformer.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokens")


def token_file(directory: Path, lengths: list[int]) -> TokenFile:
    """Documents of these lengths; the tokens are 0, 1, 2, ... through the whole file, so that each tells its place."""
    path = directory / f"{'-'.join(map(str, lengths))[:50]}-{hash(tuple(lengths))}.bin"
    num_tokens = sum(lengths)
    path.write_bytes(np.arange(num_tokens, dtype="<u4").tobytes())
    starts = np.cumsum([0, *lengths[:-1]]).astype("<u8")
    path.with_suffix(".docs").write_bytes(starts.tobytes())
    return TokenFile(path, dtype="uint32", vocab_size=max(num_tokens, 1))


def one_epoch(batches: Batches) -> list[TokenBatch]:
    assert batches.num_examples % batches.global_batch_size == 0
    return [batches.batch(step) for step in range(batches.num_examples // batches.global_batch_size)]


def targets(batches: list[TokenBatch]) -> list[int]:
    labels = torch.cat([batch.labels.flatten() for batch in batches])
    return labels[labels != IGNORE_INDEX].tolist()


def test_labels_are_the_next_tokens(directory):
    batch = Batches(token_file(directory, [101]), seq_len=10, global_batch_size=4, seed=0).batch(0)
    assert torch.equal(batch.labels, batch.input_ids + 1)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.num_targets == 40
    assert torch.equal(batch.input_ids[:, 0], batch.sample_ids * 10)
    assert batch.doc_ids is None
    assert batch.positions is None


def test_every_token_is_a_target_exactly_once_per_epoch(directory):
    batches = Batches(token_file(directory, [121]), seq_len=10, global_batch_size=4, seed=5)
    assert sorted(targets(one_epoch(batches))) == list(range(1, 121))


def test_second_epoch_is_another_order_of_the_same_examples(directory):
    batches = Batches(token_file(directory, [401]), seq_len=10, global_batch_size=4, seed=5)
    seen = [i for step in range(20) for i in batches.batch(step).sample_ids.tolist()]
    first, second = seen[:40], seen[40:]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_a_batch_may_span_two_epochs(directory):
    batches = Batches(token_file(directory, [71]), seq_len=10, global_batch_size=4, seed=5)  # 7 examples
    seen = [i for step in range(7) for i in batches.batch(step).sample_ids.tolist()]
    for epoch in range(4):
        assert sorted(seen[epoch * 7 : epoch * 7 + 7]) == list(range(7))
    assert batches.epoch(7) == 4.0
    assert batches.epoch(0) == 0.0
    assert batches.steps_per_epoch == 7 / 4


def test_a_step_depends_on_nothing_but_its_number(directory):
    tokens = token_file(directory, [1001])
    walked = Batches(tokens, seq_len=10, global_batch_size=8, seed=3)
    steps = [walked.batch(step).input_ids for step in range(30)]
    for step in (29, 3, 17):
        fresh = Batches(tokens, seq_len=10, global_batch_size=8, seed=3).batch(step)
        assert torch.equal(fresh.input_ids, steps[step])
    other = Batches(tokens, seq_len=10, global_batch_size=8, seed=4)
    assert not torch.equal(other.batch(0).input_ids, steps[0])


@pytest.mark.parametrize("packing", ["concat", "documents"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_any_number_of_processes_sees_the_same_examples_in_each_step(directory, world_size, packing):
    tokens = token_file(directory, [30, 50, 7, 20] * 10)
    options = {"seq_len": 10, "global_batch_size": 12, "seed": 3, "packing": packing}
    alone = Batches(tokens, **options)
    ranks = [Batches(tokens, **options, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 1, 7):
        parts = torch.cat([rank.batch(step).input_ids for rank in ranks])
        assert torch.equal(parts, alone.batch(step).input_ids)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 5, 12, 50])
def test_micro_batches_are_the_batch_in_pieces(directory, micro_batch_size):
    batches = Batches(token_file(directory, [1001]), seq_len=10, global_batch_size=12, seed=3)
    pieces = list(batches.micro_batches(4, micro_batch_size))
    whole = batches.batch(4)
    assert torch.equal(torch.cat([piece.input_ids for piece in pieces]), whole.input_ids)
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), whole.labels)
    assert sum(piece.num_targets for piece in pieces) == whole.num_targets
    assert max(len(piece.labels) for piece in pieces) <= micro_batch_size


def test_batch_that_cannot_be_shared_equally_is_refused(directory):
    with pytest.raises(UserError, match="cannot be shared equally by 5"):
        Batches(token_file(directory, [1001]), seq_len=10, global_batch_size=12, seed=3, world_size=5)


@pytest.mark.parametrize("num_tokens", [0, 1, 10])
def test_split_shorter_than_one_sequence_is_refused(directory, num_tokens):
    with pytest.raises(UserError, match=f"has {num_tokens} tokens, fewer than one sequence of 10"):
        Batches(token_file(directory, [num_tokens]), seq_len=10, global_batch_size=1, seed=3)


def test_unknown_packing_is_refused(directory):
    with pytest.raises(UserError, match="no packing called 'tight'"):
        Batches(token_file(directory, [100]), seq_len=10, global_batch_size=1, seed=3, packing="tight")


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 9))
def test_evaluation_covers_the_whole_split_in_order(directory, num_tokens, seq_len, batch_size):
    batches = list(evaluation_batches(token_file(directory, [num_tokens]), seq_len=seq_len, batch_size=batch_size))
    assert targets(batches) == list(range(1, num_tokens))
    assert sum(batch.num_targets for batch in batches) == num_tokens - 1
    for batch in batches:
        assert batch.input_ids.shape == batch.labels.shape == (len(batch.sample_ids), seq_len)
        counted = batch.labels != IGNORE_INDEX
        assert torch.equal(batch.labels[counted], batch.input_ids[counted] + 1)
        assert batch.input_ids.min() >= 0


# --- whole documents packed into rows ---


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30).filter(lambda lengths: max(lengths) > 1), st.integers(1, 24)
)
def test_packed_documents_never_mix_and_lose_nothing(directory, lengths, seq_len):
    tokens = token_file(directory, lengths)
    document_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    batches = list(evaluation_batches(tokens, seq_len=seq_len, batch_size=4, packing="documents"))
    first_tokens = set(np.cumsum([0, *lengths[:-1]]).tolist())
    assert sorted(targets(batches)) == [i for i in range(sum(lengths)) if i not in first_tokens]
    for batch in batches:
        for ids, labels, doc_ids, positions in zip(
            batch.input_ids, batch.labels, batch.doc_ids, batch.positions, strict=True
        ):
            counted = labels != IGNORE_INDEX
            assert torch.equal(labels[counted], ids[counted] + 1)
            assert (document_of[ids[counted]] == document_of[labels[counted]]).all()
            for doc_id in doc_ids.unique():
                here = doc_ids == doc_id
                assert positions[here].tolist() == list(range(int(here.sum())))
                assert len({bool(c) for c in counted[here]}) == 1  # a piece is text or padding, never both
                assert len(set(document_of[ids[here & counted]].tolist())) <= 1
            assert (doc_ids.diff() >= 0).all()


def test_documents_that_fit_are_never_cut(directory):
    lengths = [5, 9, 3, 11, 7, 2] * 20
    tokens = token_file(directory, lengths)
    batches = list(evaluation_batches(tokens, seq_len=16, batch_size=8, packing="documents"))
    starts = set(np.cumsum([0, *lengths[:-1]]).tolist())
    pieces = [
        int(ids[0])
        for batch in batches
        for row in range(len(batch.labels))
        for doc_id in batch.doc_ids[row].unique()
        for ids in [batch.input_ids[row][(batch.doc_ids[row] == doc_id) & (batch.labels[row] != IGNORE_INDEX)]]
        if len(ids)
    ]
    assert sorted(pieces) == sorted(starts)


def test_best_fit_wastes_little(directory):
    lengths = np.random.default_rng(0).integers(20, 200, size=400).tolist()
    batches = list(evaluation_batches(token_file(directory, lengths), seq_len=256, batch_size=8, packing="documents"))
    used, room = sum(b.num_targets for b in batches), sum(b.labels.numel() for b in batches)
    assert used == sum(lengths) - len(lengths)
    assert used / room > 0.98


def test_batch_moves_with_all_its_parts(directory):
    batch = Batches(token_file(directory, [9, 30]), seq_len=8, global_batch_size=2, seed=0, packing="documents").batch(
        0
    )
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.input_ids, moved.labels, moved.doc_ids, moved.positions)} == {"meta"}
    assert moved.num_targets == batch.num_targets
