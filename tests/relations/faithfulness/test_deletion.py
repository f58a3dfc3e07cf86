"""Deletion, insertion, comprehensiveness and sufficiency: equal to sums by hand, and what must hold of any model."""

import math
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regard.relations.faithfulness import METRICS, faithfulness_of

WEIGHTS = torch.tensor([3.0, 1.0, 0.0, 2.0])


def additive(weights: Tensor):
    return lambda kept: kept.double() @ weights.double()


def test_metrics_are_the_sums_by_hand():
    """Of the order 0, 3, 1, 2 the answer is 6, 3, 1, 0, 0 while deleting, and 0, 3, 5, 6, 6 while inserting."""
    found = faithfulness_of(additive(WEIGHTS), {"exact": WEIGHTS, "reverse": -WEIGHTS}, bins=(1, 50, 75))
    exact, reverse = found["exact"], found["reverse"]
    assert exact["deletion"] == pytest.approx((6 + 2 * (3 + 1 + 0) + 0) / 8)
    assert exact["insertion"] == pytest.approx((0 + 2 * (3 + 5 + 6) + 6) / 8)
    # ⌈0.01·4⌉, ⌈0.5·4⌉ and ⌈0.75·4⌉ elements
    assert exact["comprehensiveness"] == pytest.approx(((6 - 3) + (6 - 1) + (6 - 0)) / 3)
    assert exact["sufficiency"] == pytest.approx(((6 - 3) + (6 - 5) + (6 - 6)) / 3)
    # the order 2, 1, 3, 0: 6, 6, 5, 3, 0 and 0, 0, 1, 3, 6
    assert reverse["deletion"] == pytest.approx((6 + 2 * (6 + 5 + 3) + 0) / 8)
    assert reverse["sufficiency"] == pytest.approx(((6 - 0) + (6 - 1) + (6 - 3)) / 3)
    assert [*found] == ["exact", "reverse", "random"] and [*exact] == [*METRICS]


def test_a_long_input_is_asked_at_evenly_spread_points():
    """Ten elements in five steps: 0, 2, 4 … 10 of them; bins are no points of the curve."""
    weights = torch.arange(10.0)
    seen: list[int] = []

    def answer(kept: Tensor) -> Tensor:
        seen.extend((~kept).sum(-1).tolist())
        return additive(weights)(kept)

    found = faithfulness_of(answer, {"a": weights}, metrics=["deletion"], points=5, controls=1, bins=(50,))
    assert {*seen} == {0, 2, 4, 6, 8, 10}
    left = {n: sum(range(10 - n)) for n in (0, 2, 4, 6, 8, 10)}
    counts = sorted(left)
    area = sum((left[a] + left[b]) / 2 * (b - a) / 10 for a, b in pairwise(counts))
    assert found["a"]["deletion"] == pytest.approx(area)
    both = faithfulness_of(answer, {"a": weights}, points=5, controls=1, bins=(50,))
    assert 5 in seen and both["a"]["deletion"] == found["a"]["deletion"]


def test_each_different_copy_is_asked_for_once():
    asked: list[Tensor] = []

    def answer(kept: Tensor) -> Tensor:
        asked.append(kept)
        return additive(WEIGHTS)(kept)

    faithfulness_of(answer, {"a": WEIGHTS, "the same": 2 * WEIGHTS, "b": -WEIGHTS}, controls=20)
    (copies,) = asked
    assert copies.dtype == torch.bool and len({tuple(row) for row in copies.tolist()}) == len(copies) <= 2**4


def test_one_metric_alone_asks_for_its_copies_alone():
    counts: set[int] = set()

    def answer(kept: Tensor) -> Tensor:
        counts.update((~kept).sum(-1).tolist())
        return additive(torch.arange(40.0))(kept)

    faithfulness_of(answer, {"a": torch.arange(40.0)}, metrics=["comprehensiveness"])
    assert counts == {0, 1, 2, 4, 8, 20}


def test_the_control_is_the_mean_over_its_rankings():
    """Drawn often, that of an additive answer is halfway: every element is gone half the time."""
    found = faithfulness_of(additive(WEIGHTS), {"a": WEIGHTS}, controls=4000)
    orders = [faithfulness_of(additive(WEIGHTS), {"a": -torch.tensor(o).float()}, controls=1) for o in _orders(4)]
    for metric in METRICS:
        mean = math.fsum(of["a"][metric] for of in orders) / len(orders)
        assert found["random"][metric] == pytest.approx(mean, abs=0.1)
    assert found["random"]["deletion"] == pytest.approx(3.0, abs=0.1)
    again = faithfulness_of(additive(WEIGHTS), {"a": WEIGHTS}, controls=4000)
    assert again == found
    other = faithfulness_of(
        additive(WEIGHTS), {"a": WEIGHTS}, controls=3, generator=torch.Generator().manual_seed(1), metrics=["deletion"]
    )
    assert (
        other["random"]
        != faithfulness_of(additive(WEIGHTS), {"a": WEIGHTS}, controls=3, metrics=["deletion"])["random"]
    )


def _orders(n: int) -> list[tuple[int, ...]]:
    return [*permutations(range(n))]


weights_of = st.lists(st.floats(0, 10, width=16), min_size=1, max_size=12)


@given(weights_of, st.randoms(use_true_random=False))
def test_no_ranking_is_better_than_the_true_one(weights: list[float], random: object):
    """For an additive answer, elements by what they add are the best of all orders by every metric."""
    true = torch.tensor(weights)
    shuffled = [*range(len(weights))]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = faithfulness_of(additive(true), {"true": true, "other": torch.tensor(shuffled).float(), "worst": -true})
    for metric in METRICS.values():
        sign = 1 if metric.better == "higher" else -1
        best, other, worst = (sign * found[name][metric.name] for name in ("true", "other", "worst"))
        assert best >= other - 1e-9 >= worst - 2e-9
        assert best >= sign * found["random"][metric.name] - 1e-9


@given(weights_of)
def test_the_control_of_an_additive_answer_is_in_the_middle(weights: list[float]):
    """The mean of a ranking and its reverse is half the answer; the control is near it for any number of elements."""
    true = torch.tensor(weights)
    found = faithfulness_of(additive(true), {"true": true, "reverse": -true}, controls=400, metrics=["deletion"])
    half = float(true.double().sum()) / 2
    spread = max(abs(found["true"]["deletion"] - half), abs(found["reverse"]["deletion"] - half))
    assert abs(found["random"]["deletion"] - half) <= 0.3 * spread + 1e-9


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=12))
def test_only_the_order_of_scores_counts(numbers: list[int]):
    scores = torch.tensor(numbers, dtype=torch.float64)
    same = {"a": scores, "exp": (scores / 20).exp(), "shifted": 3 * scores - 7, "cubed": scores**3}

    def answer(kept: Tensor) -> Tensor:  # anything but additive
        powers = 2.0 ** torch.arange(kept.shape[-1], dtype=torch.float64)
        return ((kept.double() * powers).sum(-1)).sin()

    found = faithfulness_of(answer, same, controls=1)
    assert found["a"] == found["exp"] == found["shifted"] == found["cubed"]


def test_equal_scores_go_by_index():
    found = faithfulness_of(additive(WEIGHTS), {"flat": torch.ones(4), "index": torch.tensor([3.0, 2, 1, 0])})
    assert found["flat"] == found["index"]


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        ({}, {}, r"scores have shapes \[\]"),
        ({"a": torch.ones(0)}, {}, r"scores have shapes \[\(0,\)\]"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, {}, r"scores have shapes \[\(2,\), \(3,\)\]"),
        ({"a": torch.tensor([1.0, torch.nan])}, {}, "scores of 'a' hold NaN"),
        ({"random": torch.ones(2)}, {}, "scores has the method 'random'"),
        ({"a": torch.ones(2)}, {"metrics": ["auc"]}, "metrics has 'auc'; it may have deletion, insertion"),
        ({"a": torch.ones(2)}, {"controls": 0}, "controls is 0"),
        ({"a": torch.ones(2)}, {"bins": (0,)}, r"bins is \(0,\)"),
        ({"a": torch.ones(2)}, {"bins": (101,)}, r"bins is \(101,\)"),
    ],
)
def test_what_it_refuses(scores: dict[str, Tensor], arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        faithfulness_of(lambda kept: kept.sum(-1), scores, **arguments)


def test_an_answer_is_one_number_a_copy():
    with pytest.raises(ValueError, match=r"answer gave \(4, 2\) for 4 copies"):
        faithfulness_of(lambda kept: torch.zeros(len(kept), 2), {"a": torch.ones(2)}, controls=20)
