"""Caches: what they hold, what they refuse, how they go back."""

from __future__ import annotations

import pytest
import torch

from tiny_transformer.layers.cache import KeyValueCache, ModelCache

CPU = torch.device("cpu")


def layer_cache(max_len: int = 6, dtype: torch.dtype = torch.float32) -> KeyValueCache:
    return KeyValueCache(batch_size=2, num_key_value_heads=3, max_len=max_len, head_dim=4, dtype=dtype, device=CPU)


def tokens(count: int, value: float) -> dict[str, torch.Tensor]:
    return {"key": torch.full((2, 3, count, 4), value), "value": torch.full((2, 3, count, 4), -value)}


def ids(count: int, rows: int = 2) -> torch.Tensor:
    return torch.zeros(rows, count, dtype=torch.long)


@pytest.fixture
def cache() -> ModelCache:
    return ModelCache([layer_cache(), layer_cache()], batch_size=2, max_len=6, device=CPU)


def feed(cache: ModelCache, count: int, doc_ids: list[list[int]] | None = None) -> list[list[int]] | None:
    """What a model does with the cache for `count` tokens; the documents of all keys."""
    place = cache.admit(ids(count), None if doc_ids is None else torch.tensor(doc_ids))
    for layer in cache:
        layer.append(**tokens(count, 1.0))
    return None if place.doc_ids is None else place.doc_ids.tolist()


def test_append_returns_all_tokens_in_order_without_copying(cache):
    layer, found = cache[0], []
    for count, value in ((2, 1.0), (1, 2.0), (3, 3.0)):
        cache.admit(ids(count), None)
        found.append(layer.append(**tokens(count, value)))
    (first, _), _, (last, value) = found
    assert last[0, 0, :, 0].tolist() == [1, 1, 2, 3, 3, 3] and value[1, 2, :, 3].tolist() == [-1, -1, -2, -3, -3, -3]
    assert first.data_ptr() == last.data_ptr()


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_different_lengths_stand_in_slots_of_their_own(fixed):
    cache = ModelCache([layer_cache()], batch_size=2, max_len=6, device=CPU, fixed=fixed)
    for value, docs, lengths in (
        (1.0, [[0, 0, 0], [0, -1, -1]], [3, 1]),
        (2.0, None, [4, 2]),
        (3.0, [[0, -1], [0, 0]], [5, 4]),
        (4.0, [[-1], [0]], [5, 5]),
    ):
        count = 1 if docs is None else len(docs[0])
        place = cache.admit(ids(count), None if docs is None else torch.tensor(docs))
        key, _ = cache[0].append(**tokens(count, value))
        assert cache.lengths == lengths and key.shape[2] == place.num_keys == (6 if fixed else max(lengths))
        assert place.query_index is not None and place.query_index.max() < place.num_keys
    assert key[:, 0, :5, 0].tolist() == [[1, 1, 1, 2, 3], [1, 2, 3, 3, 4]]


def test_a_cache_refuses_gradients():
    cache = layer_cache()
    with pytest.raises(ValueError, match="no_grad"):
        cache.append(key=torch.ones(2, 3, 1, 4, requires_grad=True), value=torch.ones(2, 3, 1, 4))


def test_rollback_counts_the_tokens_kept_since_the_snapshot(cache):
    feed(cache, 2)
    cache.snapshot()
    feed(cache, 3)
    cache.rollback(3)
    assert cache.length == 5
    cache.rollback([1, 2])
    assert cache.lengths == [3, 4] and cache.length == 4
    feed(cache, 1)
    cache.rollback(0, rows=[1])
    assert cache.lengths == [4, 2]
    cache.rollback(0)
    assert cache.lengths == [2, 2]


def test_rollback_refuses_what_it_cannot_give(cache):
    feed(cache, 2)
    with pytest.raises(ValueError, match="snapshot"):
        cache.rollback(0)
    cache.snapshot()
    feed(cache, 1)
    for n in (2, -1):
        with pytest.raises(ValueError, match=f"cannot keep {n} tokens: 1 "):
            cache.rollback(n)
        with pytest.raises(ValueError, match=f"cannot keep {n} tokens: 1 "):
            cache.rollback([0, n])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        cache.rollback([0])


def test_a_new_snapshot_replaces_the_old_one(cache):
    feed(cache, 1)
    cache.snapshot()
    feed(cache, 2)
    cache.snapshot()
    cache.rollback(0)
    assert cache.length == 3


def test_a_model_cache_refuses_before_any_layer_is_touched(cache):
    feed(cache, 4)
    with pytest.raises(ValueError, match="7 tokens do not fit into a cache made for 6"):
        cache.admit(ids(3), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="3 rows given to a cache made for 2"):
        cache.admit(ids(1, rows=3), None)
    assert cache.lengths == [4, 4] and cache.admit(ids(1), None).doc_ids is None


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("docs", [[[0] * 3, [1] * 3], [[-1, 2, 2], [0, 0, -1]]], ids=["no room", "padding in front"])
def test_a_refused_call_leaves_the_cache_as_it_was(fixed, docs):
    cache, same = (ModelCache([layer_cache()], batch_size=2, max_len=6, device=CPU, fixed=fixed) for _ in range(2))
    feed(cache, 4, [[0, 0, 1, 1], [3, 3, -1, -1]])
    feed(same, 4, [[0, 0, 1, 1], [3, 3, -1, -1]])
    with pytest.raises(ValueError, match=r"do not fit|behind the tokens"):
        cache.admit(ids(3), torch.tensor(docs))
    assert cache.lengths == same.lengths == [4, 2]
    place, wanted = cache.admit(ids(1), None), same.admit(ids(1), None)
    for found, expected in zip(place, wanted, strict=True):
        assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
    got, want = (each[0].append(**tokens(1, 2.0)) for each in (cache, same))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("fixed", [False, True])
def test_a_row_that_is_not_there_empties_no_other(fixed):
    cache = ModelCache([layer_cache()], batch_size=2, max_len=6, device=CPU, fixed=fixed)
    feed(cache, 3)
    with pytest.raises(IndexError):
        cache.reset([0, 2])
    assert cache.lengths == [3, 3]


def test_documents_are_kept_and_continued(cache):
    assert feed(cache, 2, [[1, 4], [5, 5]]) == [[1, 4], [5, 5]]
    assert feed(cache, 1) == [[1, 4, 4], [5, 5, 5]]
    assert feed(cache, 2, [[4, 6], [5, -1]]) == [[1, 4, 4, 4, 6], [5, 5, 5, 5, 0]]
    assert cache.lengths == [5, 4]
    assert feed(cache, 1) == [[1, 4, 4, 4, 6, 6], [5, 5, 5, 5, 5, 0]]


def test_tokens_without_documents_are_document_0(cache):
    assert feed(cache, 2) is None
    assert feed(cache, 1, [[0], [0]]) is None  # goes on as it did
    assert feed(cache, 1, [[0], [1]]) == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_documents_are_rolled_back_too(cache):
    cache.snapshot()
    feed(cache, 2, [[3, 7], [3, 3]])
    cache.rollback(1)
    assert feed(cache, 1) == [[3, 3], [3, 3]]
    cache.rollback(0)
    assert feed(cache, 1) == [[0], [0]]


def test_padding_begins_no_document(cache):
    cache.admit(ids(2), torch.tensor([[3, 3], [4, 4]]))
    place = cache.admit(ids(3), torch.tensor([[3, 5, -1], [-1, -1, -1]]))
    assert place.segments.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert place.padding.tolist() == [[False, False, True], [True] * 3]
    assert place.positions.tolist() == [[2, 3, 4], [2, 3, 4]] and place.query_index.tolist() == [[2, 3, 3], [2, 3, 3]]


def test_an_emptied_row_has_no_document(cache):
    feed(cache, 2, [[3, 7], [3, 3]])
    cache.reset(0)
    assert cache.lengths == [0, 2]
    place = cache.admit(ids(1), None)
    assert place.doc_ids[:, :1].tolist() == [[0], [3]] and place.segments.tolist() == [[0], [0]]


def test_a_cache_is_a_sequence_of_layer_caches(cache):
    assert len(cache) == 2 and all(isinstance(layer, KeyValueCache) for layer in cache)
    assert cache[0] is not cache[1]


def test_a_row_joins_from_a_cache_of_its_own_unless_it_cannot(cache):
    def single(count: int, max_len: int = 6) -> ModelCache:
        sizes = {"batch_size": 1, "num_key_value_heads": 3, "head_dim": 4, "dtype": torch.float32, "device": CPU}
        layers = [KeyValueCache(max_len=max_len, **sizes) for _ in range(2)]  # ty: ignore[invalid-argument-type]
        other = ModelCache(layers, batch_size=1, max_len=max_len, device=CPU)
        other.admit(ids(count, 1), None)
        for layer in other:
            layer.append(key=torch.full((1, 3, count, 4), 7.0), value=torch.full((1, 3, count, 4), 8.0))
        return other

    feed(cache, 2)
    cache.adopt(1, single(4))
    assert cache.lengths == [2, 4]
    cache.admit(ids(1), None)
    key, value = cache[1].append(**tokens(1, 2.0))
    assert key[1, 0, :, 0].tolist() == [7, 7, 7, 7, 2] and value[1, 0, :4, 0].tolist() == [8] * 4
    assert key[0, 0, :3, 0].tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match="1 rows of 7 tokens do not fit into one of 6"):
        cache.adopt(0, single(7, max_len=7))
    with pytest.raises(ValueError, match="2 rows"):
        cache.adopt(0, cache)
    cache.snapshot()
    with pytest.raises(ValueError, match="with a snapshot"):
        cache.adopt(0, single(1))
