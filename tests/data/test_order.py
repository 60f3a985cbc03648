"""The order of examples: a bijection for every size, uniform over seeds and epochs, a pure function of its key."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_transformer.data.order import Permutation


def order(num_items: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return Permutation(num_items, seed=seed, epoch=epoch)(np.arange(num_items))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5_000), st.integers(-(2**70), 2**70), st.integers(0, 10**6))
def test_every_item_comes_exactly_once(num_items, seed, epoch):
    assert np.array_equal(np.sort(order(num_items, seed, epoch)), np.arange(num_items))


@pytest.mark.parametrize("num_items", [1, 2, 3, 255, 256, 257, 65_535, 65_536, 65_537, 300_001])
def test_every_item_comes_exactly_once_around_powers_of_two(num_items):
    assert np.array_equal(np.sort(order(num_items)), np.arange(num_items))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2**62), st.lists(st.integers(0, 2**62), min_size=1, max_size=30))
def test_items_do_not_depend_on_what_is_asked_with_them(num_items, places):
    places = np.array(places) % num_items
    permutation = Permutation(num_items, seed=7, epoch=3)
    together = permutation(places)
    alone = [int(permutation(np.array([place]))[0]) for place in places]
    assert together.tolist() == alone
    assert together.max() < num_items
    assert together.min() >= 0


def test_shape_is_kept():
    places = np.arange(24).reshape(2, 3, 4)
    items = Permutation(1000, seed=1, epoch=0)(places)
    assert items.shape == (2, 3, 4)
    assert items.dtype == np.int64


def test_seed_and_epoch_change_the_order():
    orders = [tuple(order(500, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def chi_square(counts: np.ndarray) -> float:
    """Distance from the uniform distribution in standard deviations of the chi-square statistic."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (statistic - freedom) / np.sqrt(2 * freedom)


def test_all_permutations_of_a_tiny_range_are_equally_likely():
    num_items = 4
    index = {p: i for i, p in enumerate(permutations(range(num_items)))}
    counts = np.zeros(len(index))
    for seed in range(480):
        counts[index[tuple(order(num_items, seed).tolist())]] += 1
    assert abs(chi_square(counts)) < 4


def test_first_places_reach_every_item_equally_often():
    num_items, counts = 100, np.zeros((4, 100))
    for seed in range(1_000):
        items = Permutation(num_items, seed=seed, epoch=1)(np.arange(4))
        counts[np.arange(4), items] += 1
    assert (abs(np.array([chi_square(row) for row in counts])) < 4).all()


def test_neighbours_end_far_apart_in_a_way_that_looks_random():
    num_items = 100_000
    items = order(num_items, seed=3)
    differences = np.diff(items) % num_items
    counts = np.bincount(differences * 64 // num_items, minlength=64)
    assert abs(chi_square(counts)) < 4
    correlation = np.corrcoef(items, np.arange(num_items))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(num_items)


def test_two_epochs_are_unrelated():
    first, second = order(50_000, seed=1, epoch=0), order(50_000, seed=1, epoch=1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(50_000)


def test_order_is_fixed_for_ever():
    """A run resumed with a later version must see the order it began with."""
    assert order(10, seed=1, epoch=2).tolist() == [7, 8, 0, 3, 4, 5, 9, 1, 2, 6]
    assert Permutation(10**12, seed=1, epoch=2)(np.arange(3)).tolist() == [81743757983, 140058443931, 977035226149]
