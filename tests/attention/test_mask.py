"""Masks by their one-line definitions, in both ways that they lower, and as values."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

from regard import Causal, Dense, Documents, Padding, Prefix, Window
from tests.contract import oracle
from tests.contract.cases import build, rules

EXAMPLES = [
    Causal(),
    Window(2, 0),
    Padding(torch.tensor([1, 3]), torch.tensor([2, 3]), left=True),
    Prefix(2),
    Documents(torch.tensor([1, 2]), torch.tensor([2, 1])),
    Dense(torch.ones(3, 3, dtype=torch.bool)),
    Causal() & Window(1),
    Causal() | Prefix(1),
]


@st.composite
def situations(draw: Any) -> tuple[Any, ...]:
    """A rule, the sizes of a call, and where its first row stands."""
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    rows, keys = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    position = st.integers(0, keys)
    start = draw(position | st.lists(position, min_size=batch, max_size=batch).map(torch.tensor))
    return draw(rules(batch, heads, rows, keys)), batch, heads, rows, keys, start


@given(situations())
def test_dense_is_the_one_line_definition(situation: tuple[Any, ...]) -> None:
    rule, batch, heads, rows, keys, start = situation
    if rule is None:
        return
    expected = oracle.sees(rule, batch, rows, keys, start).expand(batch, heads, rows, keys)
    actual = build(rule).dense(range(rows), keys, start)
    assert actual.dtype == torch.bool
    assert torch.equal(actual.expand(batch, heads, rows, keys), expected)


@given(situations(), st.data())
def test_a_strip_of_rows_is_those_rows_of_the_whole(situation: tuple[Any, ...], data: st.DataObject) -> None:
    rule, batch, heads, rows, keys, start = situation
    if rule is None:
        return
    first = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(first + 1, rows))
    expected = oracle.sees(rule, batch, rows, keys, start)[:, :, first:stop]
    actual = build(rule).dense(range(first, stop), keys, start, Lq=rows)
    shape = (batch, heads, stop - first, keys)
    assert torch.equal(actual.expand(shape), expected.expand(shape))


@given(situations())
def test_key_ranges_are_none_or_exact(situation: tuple[Any, ...]) -> None:
    rule, batch, _, rows, keys, start = situation
    ranges = None if rule is None else build(rule).key_ranges(rows, keys, start)
    if ranges is None:
        return
    first, stop = (bound.expand(batch, rows) for bound in ranges)
    assert first.dtype == stop.dtype == torch.int64
    assert bool(((first >= 0) & (first <= stop) & (stop <= keys)).all())
    j = torch.arange(keys)
    inside = (j >= first[..., None]) & (j < stop[..., None])
    expected = oracle.sees(rule, batch, rows, keys, start)
    assert torch.equal(inside[:, None].expand(expected.shape), expected)


INTERVALS = [
    Causal(),
    Window(3, 1),
    Window(None, 2),
    Padding(torch.tensor([2, 5])),
    Padding(torch.tensor([2, 5]), torch.tensor([1, 4]), left=True),
    Prefix(3),
    Documents(torch.tensor([[2, 3], [5, 0]])),
]


@pytest.mark.parametrize("mask", INTERVALS, ids=str)
def test_every_mask_but_dense_gives_key_ranges(mask: Any) -> None:
    assert mask.key_ranges(5, 5, 0) is not None
    assert Dense(torch.ones(5, 5, dtype=torch.bool)).key_ranges(5, 5, 0) is None


@pytest.mark.parametrize("a", INTERVALS, ids=str)
@pytest.mark.parametrize("b", INTERVALS, ids=str)
def test_intersections_of_intervals_give_key_ranges(a: Any, b: Any) -> None:
    assert (a & b).key_ranges(5, 5, 0) is not None
    assert (a & Dense(torch.ones(5, 5, dtype=torch.bool))).key_ranges(5, 5, 0) is None


def test_key_ranges_take_memory_in_proportion_to_the_rows() -> None:
    ranges = (Causal() & Window(4096)).key_ranges(2**20, 2**20, 0)
    assert ranges is not None
    assert all(bound.shape == (1, 2**20) for bound in ranges)


def test_documents_of_queries_meet_the_documents_of_keys_with_the_same_number() -> None:
    mask = Documents(torch.tensor([3, 0, 2]), torch.tensor([1, 2, 1]))
    seen = mask.dense(range(6), 5)[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 0]] * 2 + [[0] * 5]


def test_a_prefix_may_differ_between_batch_entries() -> None:
    seen = (Causal() | Prefix(torch.tensor([0, 2]))).dense(range(3), 3)[:, 0].int().tolist()
    assert seen == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 1, 0], [1, 1, 0], [1, 1, 1]]]


@pytest.mark.parametrize("mask", EXAMPLES, ids=str)
def test_masks_are_frozen_and_compare_by_identity(mask: Any) -> None:
    name = dataclasses.fields(mask)[0].name if dataclasses.fields(mask) else "anything"
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        setattr(mask, name, None)
    assert mask == mask
    assert mask != pytree.tree_map(lambda leaf: leaf, mask)
    assert isinstance(hash(mask), int)


@pytest.mark.parametrize("mask", EXAMPLES, ids=str)
def test_masks_are_pytrees_that_survive_the_round_trip(mask: Any) -> None:
    leaves, tree = pytree.tree_flatten(mask)
    assert not any(leaf is mask for leaf in leaves)
    again = pytree.tree_unflatten(leaves, tree)
    assert type(again) is type(mask)
    assert torch.equal(again.dense(range(3), 3), mask.dense(range(3), 3))


def test_the_tensors_of_a_mask_are_the_leaves_of_its_pytree() -> None:
    lengths, allowed = torch.tensor([1, 3]), torch.ones(3, 3, dtype=torch.bool)
    leaves = pytree.tree_leaves(Padding(lengths) & Dense(allowed))
    assert any(leaf is lengths for leaf in leaves)
    assert any(leaf is allowed for leaf in leaves)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Window(-1), ["left", "-1"]),
        (lambda: Window(None, -2), ["right", "-2"]),
        (lambda: Prefix(-1), ["n", "-1"]),
        (lambda: Padding(torch.tensor([1.0])), ["key_lengths", "float32"]),
        (lambda: Padding(torch.tensor([1]), torch.tensor([True])), ["query_lengths", "bool"]),
        (lambda: Padding(torch.tensor([[1]])), ["key_lengths", "(1, 1)"]),
        (lambda: Documents(torch.tensor([0.5])), ["lengths", "float32"]),
        (lambda: Documents(torch.tensor([1, 2]), torch.tensor([3])), ["2", "1"]),
        (lambda: Dense(torch.ones(2, 2)), ["allowed", "float32"]),
        (lambda: Dense(torch.ones(1, 1, 1, 2, 2, dtype=torch.bool)), ["allowed", "(1, 1, 1, 2, 2)"]),
    ],
)
def test_a_mask_that_makes_no_sense_is_refused_by_name_and_value(make: Any, words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_only_masks_join_masks() -> None:
    with pytest.raises(TypeError):
        Causal() & torch.ones(2, 2, dtype=torch.bool)  # type: ignore[operator]
