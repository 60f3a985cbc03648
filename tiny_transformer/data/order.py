"""The order of examples: a keyed permutation of range(n), each element in O(1), with no state to save.

Shuffling by a buffer needs a cursor per worker and a saved buffer; shuffling by a list needs the list. Here the example
at place i of an epoch is a pure function of (seed, epoch, i), so training resumes from one integer, any number of
processes sees the same sequence, and every example comes exactly once per epoch.

The function is a Feistel network on the smallest power of two that holds n (a bijection whatever its round function
is), followed again and again until it lands inside the range ("cycle walking", Black and Rogaway 2002), which keeps it
a bijection of range(n). Its round keys come from a hash of (seed, epoch).
"""

from __future__ import annotations

import hashlib

import numpy as np

NUM_ROUNDS = 8  # even, so that the halves end at the widths they began with
MIN_BITS = 6  # a network on fewer bits reaches too few of the permutations of a tiny range


class Permutation:
    """A pseudo-random bijection of range(num_items), chosen by (seed, epoch).

    Args:
        num_items: at least 1.
        seed: any integer.
        epoch: any integer; another epoch is another order.
    """

    def __init__(self, num_items: int, *, seed: int, epoch: int) -> None:
        if num_items < 1:
            raise ValueError(f"num_items must be at least 1, not {num_items}")
        self.num_items = num_items
        bits = max((num_items - 1).bit_length(), MIN_BITS)
        self._left_bits, self._right_bits = bits // 2, bits - bits // 2
        digest = hashlib.blake2b(f"{seed} {epoch} {num_items}".encode(), digest_size=8 * NUM_ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8")

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The items at these places: int64 array of numbers below num_items, to int64 array of the same shape."""
        items = self._network(places.astype(np.uint64).ravel())
        outside = np.flatnonzero(items >= self.num_items)
        while outside.size:
            items[outside] = self._network(items[outside])
            outside = outside[items[outside] >= self.num_items]
        return items.astype(np.int64).reshape(places.shape)

    def _network(self, values: np.ndarray) -> np.ndarray:
        left_bits, right_bits = self._left_bits, self._right_bits
        left, right = values >> np.uint64(right_bits), values & _mask(right_bits)
        for key in self._keys:
            left, right = right, (left ^ _mix(right, key)) & _mask(left_bits)
            left_bits, right_bits = right_bits, left_bits
        return left << np.uint64(right_bits) | right


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """A 64-bit hash of each value under a key: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    values = values + key
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
