"""The largest scores are those of a stable sort, whatever way is taken to them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.attention.largest import top_indices
from regard.attention.strips import NEVER


@pytest.mark.parametrize("k", range(1, 9))
def test_equal_numbers_are_taken_by_lowest_index(k: int) -> None:
    numbers = torch.tensor([[3.0, 5, 5, 1, 5, 3, 3, 0], [0, 0, 0, 0, 0, 0, 0, 0], [7, 6, 5, 4, 3, 2, 1, 0]])
    expected = [[1, 2, 4, 0, 5, 6, 3, 7], list(range(8)), list(range(8))]
    assert top_indices(numbers, k).tolist() == [row[:k] for row in expected]


def test_ties_of_thousands_are_taken_by_lowest_index() -> None:
    numbers = torch.randint(0, 3, (50, 3000)).float()
    expected = numbers.sort(dim=-1, descending=True, stable=True).indices[:, :20]
    assert torch.equal(top_indices(numbers, 20), expected)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 300) | st.integers(300, 5000),
    k=st.integers(1, 64),
    kinds=st.sampled_from([0, 2, 30, 3000]),
    hidden=st.sampled_from([0.0, 0.5, 0.999]),
)
def test_as_a_stable_sort_finds_them(seed: int, n: int, k: int, kinds: int, hidden: float) -> None:
    """Numbers all different, or of few kinds; keys that may not be seen, which are told apart by nobody, come last."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randn(2, 3, n, generator=draw)
    if kinds:
        numbers = torch.randint(-kinds, kinds, (2, 3, n), generator=draw) / 7
    numbers = numbers.masked_fill(torch.rand(2, 3, n, generator=draw) < hidden, NEVER)
    k, before = min(k, n), numbers.clone()
    found = top_indices(numbers, k)
    assert torch.equal(numbers, before)
    expected = numbers.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    assert torch.equal(numbers.gather(-1, found), numbers.gather(-1, expected))
    seen = numbers.gather(-1, expected) > NEVER
    assert torch.equal(found[seen], expected[seen])
    assert all(len({*row.tolist()}) == k for row in found.flatten(0, 1))
