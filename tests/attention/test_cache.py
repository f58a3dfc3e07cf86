"""Slots of the key/value cache: what they keep, in which order, and in how many bytes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regard import KVCache


def numbered(first: int, stop: int, batch: int = 2, heads: int = 3, size: int = 4) -> Tensor:
    """Elements (B, H, L, D) that carry their own position."""
    positions = torch.arange(first, stop, dtype=torch.float32)
    return positions[None, None, :, None].expand(batch, heads, -1, size).clone()


chunk_ends = st.lists(st.integers(1, 60), min_size=1, max_size=12, unique=True).map(lambda ends: [0, *sorted(ends)])


@given(chunk_ends)
def test_a_dense_slot_returns_everything_so_far(ends: list[int]) -> None:
    cache = KVCache.dense(2)
    for first, stop in pairwise(ends):
        keys, values = cache[1].append(numbered(first, stop), -numbered(first, stop, size=5))
        assert torch.equal(keys, numbered(0, stop))
        assert torch.equal(values, -numbered(0, stop, size=5))
        assert cache[1].length == stop
        assert cache[0].length == 0


@given(chunk_ends, st.integers(1, 20))
def test_a_ring_slot_returns_what_the_new_queries_may_see(ends: list[int], window: int) -> None:
    slot = KVCache.ring(1, window)[0]
    for first, stop in pairwise(ends):
        keys, values = slot.append(numbered(first, stop), -numbered(first, stop))
        oldest = max(0, first - window + 1)
        assert slot.first <= oldest
        assert keys.shape[2] == stop - slot.first
        assert torch.equal(keys, numbered(slot.first, stop))
        assert torch.equal(values, -keys)
        assert slot.length == stop


def test_a_ring_slot_takes_memory_in_proportion_to_its_window() -> None:
    slot = KVCache.ring(1, 8)[0]
    sizes = set[int]()
    for position in range(500):
        slot.append(numbered(position, position + 1), numbered(position, position + 1))
        sizes.add(slot.nbytes)
    one = 2 * numbered(0, 1).numel() * 4
    assert max(sizes) <= 4 * 8 * one


def test_appending_copies_each_element_a_bounded_number_of_times() -> None:
    slot = KVCache.dense(1)[0]
    buffers = set[int]()
    for position in range(1000):
        keys, _ = slot.append(numbered(position, position + 1), numbered(position, position + 1))
        buffers.add(keys.untyped_storage().data_ptr())
    assert len(buffers) <= 12


def test_what_append_returns_are_views_of_the_slot() -> None:
    slot = KVCache.dense(1)[0]
    keys, values = slot.append(numbered(0, 3), numbered(0, 3))
    again = slot.kept
    assert again is not None
    assert keys.data_ptr() == again[0].data_ptr()
    assert values.data_ptr() == again[1].data_ptr()


def test_reordering_makes_each_entry_what_another_was() -> None:
    cache = KVCache.dense(2)
    keys = torch.randn(3, 2, 4, 5)
    for layer in range(2):
        cache[layer].append(keys + layer, -keys)
    cache.reorder(torch.tensor([2, 0, 0, 1]))
    for layer in range(2):
        kept = cache[layer].kept
        assert kept is not None
        assert torch.equal(kept[0], (keys + layer)[[2, 0, 0, 1]])
        assert torch.equal(kept[1], -keys[[2, 0, 0, 1]])
    more, _ = cache[0].append(keys[[0, 0, 1, 1], :, :1], keys[[0, 0, 1, 1], :, :1])
    assert more.shape == (4, 2, 5, 5)


def test_beams_that_were_one_entry_do_not_write_into_each_other() -> None:
    slot = KVCache.dense(1)[0]
    slot.append(numbered(0, 2, batch=1), numbered(0, 2, batch=1))
    slot.reorder(torch.tensor([0, 0]))
    different = torch.stack((torch.zeros(3, 1, 4), torch.ones(3, 1, 4)))
    keys, _ = slot.append(different, different)
    assert torch.equal(keys[0, :, 2], torch.zeros(3, 4))
    assert torch.equal(keys[1, :, 2], torch.ones(3, 4))


@given(st.integers(0, 9), st.integers(1, 5))
def test_truncating_forgets_from_there_on(n: int, added: int) -> None:
    cache = KVCache.dense(2)
    for slot in cache:
        slot.append(numbered(0, 9), numbered(0, 9))
    cache.truncate(n)
    assert cache.length == n
    keys, values = cache[1].append(numbered(100, 100 + added), numbered(100, 100 + added))
    assert torch.equal(keys, torch.cat((numbered(0, n), numbered(100, 100 + added)), 2))
    assert torch.equal(keys, values)


def test_a_slot_cannot_be_truncated_to_more_than_it_holds_or_to_less_than_nothing() -> None:
    slot = KVCache.dense(1)[0]
    slot.append(numbered(0, 3), numbered(0, 3))
    for n in (4, -1):
        with pytest.raises(ValueError, match=str(n)):
            slot.truncate(n)


@given(st.integers(1, 8), st.integers(1, 20), st.integers(0, 20))
def test_a_truncated_ring_still_shows_the_next_query_its_whole_window(window: int, seen: int, n: int) -> None:
    slot = KVCache.ring(1, window)[0]
    for position in range(seen):
        slot.append(numbered(position, position + 1), numbered(position, position + 1))
    try:
        slot.truncate(n)
    except ValueError:
        return  # refused, which is honest: what the window needs is forgotten
    keys, _ = slot.append(numbered(n, n + 1), numbered(n, n + 1))
    needed = numbered(max(0, n - window + 1), n + 1)
    assert torch.equal(keys[:, :, -needed.shape[2] :], needed)


def test_a_cross_slot_is_filled_once_and_then_only_read() -> None:
    cache = KVCache.cross(1)
    assert cache[0].kept is None
    keys, values = cache[0].append(numbered(0, 3), numbered(0, 3))
    kept = cache[0].kept
    assert kept is not None
    assert torch.equal(kept[0], keys)
    assert torch.equal(kept[1], values)
    with pytest.raises(ValueError, match="once"):
        cache[0].append(numbered(0, 1), numbered(0, 1))
    cache.reorder(torch.tensor([1, 1, 0]))
    kept = cache[0].kept
    assert kept is not None
    assert kept[0].shape[0] == 3


def test_a_cache_counts_its_bytes_over_all_slots() -> None:
    cache = KVCache.dense(3)
    assert cache.nbytes == 0
    for slot in cache:
        slot.append(numbered(0, 7), numbered(0, 7, size=6))
    assert cache.nbytes >= 3 * 2 * 3 * 7 * (4 + 6) * 4
    assert cache.nbytes == sum(slot.nbytes for slot in cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_slot_keeps_the_dtype(dtype: torch.dtype) -> None:
    keys, values = KVCache.dense(1)[0].append(numbered(0, 2).to(dtype), numbered(0, 2).to(dtype))
    assert keys.dtype == values.dtype == dtype


def test_what_does_not_fit_the_slot_is_refused_by_name_and_value() -> None:
    for key, value, words in [
        (numbered(0, 1)[0], numbered(0, 1), ["key", "(3, 1, 4)"]),
        (numbered(0, 1), numbered(0, 2), ["value", "(2, 3, 2, 4)"]),
        (numbered(0, 1, batch=1), numbered(0, 1, batch=1), ["key", "(1, 3, 1, 4)"]),
        (numbered(0, 1, size=5), numbered(0, 1), ["key", "(2, 3, 1, 5)"]),
        (numbered(0, 1), numbered(0, 1, size=5), ["value", "(2, 3, 1, 5)"]),
        (numbered(0, 1).double(), numbered(0, 1), ["key", "float64"]),
    ]:
        slot = KVCache.dense(1)[0]
        slot.append(numbered(0, 2), numbered(0, 2))
        with pytest.raises(ValueError) as caught:
            slot.append(key, value)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert slot.length == 2


@pytest.mark.parametrize("make", [KVCache.dense, KVCache.cross, lambda layers: KVCache.ring(layers, 4)])
def test_a_cache_has_at_least_one_layer(make: object) -> None:
    with pytest.raises(ValueError, match="layers is 0"):
        make(0)  # type: ignore[operator]


def test_a_ring_has_a_window() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        KVCache.ring(1, 0)
