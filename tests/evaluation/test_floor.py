"""The alarm: an exact model reaches the floor, an honest one stays above, and each of the usual mistakes is heard."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_corpus import CPU, MANY, PLAIN, SEQ_LEN, Oracle, entropy_of_all, reading, train_small
from torch.nn import functional

from tiny_transformer.data.batches import evaluation_batches
from tiny_transformer.data.packing import IGNORE_INDEX, Concatenated, Example
from tiny_transformer.data.stories.analysis import entropy
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.evaluation.floor import FloorCheck, check_split, check_texts
from tiny_transformer.evaluation.loss import evaluate_split
from tiny_transformer.evaluation.skills import measure_skills
from tiny_transformer.models.qwen3 import model as qwen3


def split_check(model: torch.nn.Module, data: Dataset, *, seq_len: int = SEQ_LEN, packing: str = "concat"):
    """The alarm on the validation split as a whole."""
    rows = evaluation_batches(data.val, seq_len=seq_len, batch_size=16, packing=packing)
    loss = evaluate_split(model, rows, num_bytes=data.meta.val.num_bytes, hardware=CPU)
    return check_split(loss.loss_sum, loss.num_tokens, data.meta.val, data.meta.vocab_size)


def val_stories(data: Dataset):
    """The validation documents of the grammar that is hard to guess, as stories."""
    starts = [*data.val.documents().tolist(), len(data.val)]
    texts = [data.tokenizer.decode(data.val.read(a, b).tolist()) for a, b in pairwise(starts)]
    return [MANY.tell(text) for text in texts]


# --- an exact model
# ------------------------------------------------------------------------------------------------------


def test_the_oracle_pays_the_exact_cost_of_every_fresh_story(oracle: Oracle) -> None:
    report = measure_skills(oracle, PLAIN.told(seed=9, count=100), reading())
    check = report.check
    assert check.lost_per_text == pytest.approx(0, abs=1e-5)
    assert check.standard_error == pytest.approx(0, abs=1e-5)
    assert not check.rings
    for row in report.skills:
        assert row.lost == pytest.approx(0, abs=1e-5), row
    # What it pays is the grammar's entropy, as listing all stories gives it, within the noise of a hundred stories.
    assert entropy_of_all() == pytest.approx(entropy(PLAIN.tree), rel=1e-12)
    assert check.nats_per_text == pytest.approx(entropy(PLAIN.tree), abs=0.2)


@pytest.mark.parametrize("packing", ["concat", "documents"])
def test_the_oracle_reaches_the_floor_of_a_split(oracle: Oracle, plain: Dataset, packing: str) -> None:
    check = split_check(oracle, plain, seq_len=len(plain.val), packing=packing)
    guessed = 1 if packing == "concat" else plain.meta.val.num_documents  # tokens charged as blind guesses
    assert 0 <= -check.total_gain <= guessed * math.log(plain.meta.vocab_size)
    assert not check.rings


# --- the size of luck
# ----------------------------------------------------------------------------------------------------


def test_honest_models_ring_no_more_often_than_promised() -> None:
    """Fifteen thousand evaluations of models that are slightly, somewhat or badly wrong about 20 texts each."""
    rng = np.random.default_rng(0)
    rung = 0
    for spread in (0.05, 0.3, 1.0):
        truth = rng.dirichlet(np.ones(50))
        belief = truth * np.exp(spread * rng.normal(size=50))
        belief /= belief.sum()
        drawn = rng.choice(50, size=(5_000, 20), p=truth)
        for texts in drawn:
            rung += check_texts(-np.log(belief[texts]), -np.log(truth[texts])).rings
    assert rung <= 15 + 3 * math.sqrt(15)


def test_a_model_that_is_better_by_a_little_on_every_text_rings_when_there_are_enough() -> None:
    exact = np.full(400, 100.0)
    assert not check_texts(exact - 0.01, exact).rings  # 4 nats in all
    assert check_texts(exact - 0.05, exact).rings  # 20


def test_one_memorised_text_among_many_rings() -> None:
    exact = np.full(400, 100.0)
    paid = exact + 5.0
    assert not check_texts(paid, exact).rings
    paid[17] = 70.0
    check = check_texts(paid, exact)
    assert check.rings
    assert check.total_gain < 0
    assert "30.0 nats on one of 400 stories" in check.warning()


def test_the_paired_difference_and_its_error() -> None:
    check = check_texts(np.array([12.0, 13.0, 17.0]), np.array([10.0, 11.0, 12.0]))
    assert check.lost_per_text == pytest.approx(3.0)
    assert check.standard_error == pytest.approx(math.sqrt(3) / math.sqrt(3))  # differences 2, 2, 5
    assert check.total_gain == pytest.approx(-9.0)
    assert check.largest_gain == pytest.approx(-2.0)


def test_a_warning_names_the_three_causes() -> None:
    words = FloorCheck(10, 1.0, 2.0, None, 10.0, None).warning()
    for cause in ("mask leaks", "shifted by one", "validation overlap"):
        assert cause in words


# --- planted mistakes
# ----------------------------------------------------------------------------------------------------


def test_labels_that_are_the_inputs_ring(many: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Concatenated.__getitem__

    def inputs_twice(self: Concatenated, i: int) -> Example:
        example = honest(self, i)
        return example._replace(labels=np.where(example.labels == IGNORE_INDEX, IGNORE_INDEX, example.input_ids))

    monkeypatch.setattr(Concatenated, "__getitem__", inputs_twice)
    model = train_small(many.train, many.meta.vocab_size, steps=40)
    check = split_check(model, many)
    assert check.rings
    monkeypatch.undo()
    assert not split_check(model, many).rings


@pytest.mark.slow
def test_attention_that_sees_the_future_rings(many: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(*, query, key, value, mask, dropout):
        del mask, dropout
        return functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    monkeypatch.setattr(qwen3.Qwen3Attention, "attend", staticmethod(attend))
    model = train_small(many.train, many.meta.vocab_size, steps=300)
    assert split_check(model, many).rings
    assert measure_skills(model, MANY.told(seed=9, count=100), reading(seq_len=SEQ_LEN)).check.rings
    monkeypatch.undo()
    assert not split_check(model, many).rings


@pytest.mark.slow
def test_training_on_the_validation_texts_rings(many: Dataset) -> None:
    model = train_small(many.val, many.meta.vocab_size, steps=200, packing="documents")
    assert split_check(model, many, packing="documents").rings
    where = reading(seq_len=SEQ_LEN, predicts_first=False)
    assert measure_skills(model, val_stories(many), where).check.rings
    assert not measure_skills(model, MANY.told(seed=9, count=100), where).check.rings  # on fresh stories it has no gain


@pytest.mark.slow
def test_an_honest_model_does_not_ring(many: Dataset) -> None:
    model = train_small(many.train, many.meta.vocab_size, steps=300)
    check = measure_skills(model, MANY.told(seed=9, count=200), reading(seq_len=SEQ_LEN)).check
    assert not check.rings and not split_check(model, many).rings
    assert 0 < check.lost_per_text < check.exact_per_text  # it has learnt most of what there is
