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


def feed(cache: ModelCache, count: int, doc_ids: list[list[int]] | None = None) -> torch.Tensor | None:
    """What a model does with the cache for `count` tokens."""
    found = cache.admit(ids(count), None if doc_ids is None else torch.tensor(doc_ids))
    for layer in cache:
        layer.append(**tokens(count, 1.0))
    return found


def test_append_returns_all_tokens_in_order_without_copying():
    cache = layer_cache()
    cache.append(**tokens(2, 1.0))
    first, _ = cache.append(**tokens(1, 2.0))
    second, value = cache.append(**tokens(3, 3.0))
    assert second[0, 0, :, 0].tolist() == [1, 1, 2, 3, 3, 3] and value[1, 2, :, 3].tolist() == [-1, -1, -2, -3, -3, -3]
    assert cache.length == 6 and first.data_ptr() == second.data_ptr()


def test_a_layer_cache_refuses_more_than_it_was_made_for():
    cache = layer_cache(max_len=3)
    cache.append(**tokens(2, 1.0))
    with pytest.raises(ValueError, match="4 tokens do not fit into a cache made for 3"):
        cache.append(**tokens(2, 2.0))
    assert cache.length == 2


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
    cache.rollback(1)
    assert cache.length == 3 and [layer.length for layer in cache] == [3, 3]
    feed(cache, 1)
    cache.rollback(0)
    assert cache.length == 2


def test_rollback_refuses_what_it_cannot_give(cache):
    feed(cache, 2)
    with pytest.raises(ValueError, match="snapshot"):
        cache.rollback(0)
    cache.snapshot()
    feed(cache, 1)
    for n in (2, -1):
        with pytest.raises(ValueError, match=f"cannot keep {n} tokens: 1 "):
            cache.rollback(n)


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
    assert cache.length == 4 and cache.admit(ids(1), None) is None


def test_documents_are_kept_and_continued(cache):
    assert feed(cache, 2, [[-1, 4], [5, 5]]).tolist() == [[-1, 4], [5, 5]]
    assert feed(cache, 1).tolist() == [[-1, 4, 4], [5, 5, 5]]
    assert feed(cache, 2, [[4, 6], [5, 5]]).tolist() == [[-1, 4, 4, 4, 6], [5, 5, 5, 5, 5]]
    assert feed(cache, 1).tolist() == [[-1, 4, 4, 4, 6, 6], [5, 5, 5, 5, 5, 5]]


def test_tokens_without_documents_are_document_0(cache):
    assert feed(cache, 2) is None
    assert feed(cache, 1, [[0], [1]]).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_documents_are_rolled_back_too(cache):
    cache.snapshot()
    feed(cache, 2, [[3, 7], [3, 3]])
    cache.rollback(1)
    assert feed(cache, 1).tolist() == [[3, 3], [3, 3]]
    cache.rollback(0)
    assert feed(cache, 1).tolist() == [[0], [0]]


def test_a_cache_is_a_sequence_of_layer_caches(cache):
    assert len(cache) == 2 and all(isinstance(layer, KeyValueCache) for layer in cache)
    assert cache[0] is not cache[1]
