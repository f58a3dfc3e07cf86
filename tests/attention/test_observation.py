"""What an observation holds, worked out by hand on calls small enough to see through."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regard import Causal, Dense, Padding, Watch, attend_observed
from regard.attention.observation import SEEN, Observation

LN2, LN3 = math.log(2.0), math.log(3.0)


def observe(weights: list[list[float]], watch: Watch, start: int = 0, sink: float | None = None) -> Observation:
    """A call (1, 1, Lq, Lk) whose scores are the logarithms of `weights`; weight 0 may not be seen."""
    odds = torch.tensor(weights, dtype=torch.float64)
    rows, keys = odds.shape
    _, seen = attend_observed(
        torch.zeros(1, 1, rows, 2),
        torch.zeros(1, 1, keys, 2),
        torch.zeros(1, 1, keys, 2),
        bias=odds.clamp(min=1e-9).log().float()[None, None],
        mask=Dense(odds > 0),
        start=start,
        sink_logits=None if sink is None else torch.tensor([sink]).log(),
        watch=watch,
    )
    return seen


def of(field: Tensor | None) -> list[float]:
    assert field is not None
    return field[0, 0].tolist()


def test_every_field_of_a_call_that_can_be_seen_through() -> None:
    seen = observe([[1, 2, 1], [0, 0, 3]], Watch(top=2, segments=torch.tensor([0, -1, 1])), start=1)
    assert of(seen.top_keys) == [[1, 0], [2, -1]]
    assert of(seen.top_weights) == [pytest.approx([0.5, 0.25]), pytest.approx([1, 0])]
    assert of(seen.rest) == pytest.approx([0.25, 0], abs=1e-6)
    assert of(seen.max_weight) == pytest.approx([0.5, 1])
    assert of(seen.logsumexp) == pytest.approx([math.log(4), LN3])
    assert of(seen.entropy) == pytest.approx([1.5 * LN2, 0], abs=1e-6)
    assert of(seen.mean_position) == pytest.approx([1, 2])
    assert of(seen.mean_distance) == pytest.approx([0.5, 0], abs=1e-6)  # the rows stand at positions 1 and 2
    assert of(seen.received) == pytest.approx([0.25, 0.5, 1.25])
    assert of(seen.segment_mass) == [pytest.approx([0.25, 0.25]), pytest.approx([0, 1], abs=1e-6)]
    assert seen.sink_weight is None


def test_the_sink_takes_its_share_and_means_are_of_what_keys_have() -> None:
    seen = observe([[1, 1]], Watch(top=1), sink=2.0)
    assert of(seen.sink_weight) == pytest.approx([0.5])
    assert of(seen.logsumexp) == pytest.approx([math.log(4)])
    assert of(seen.top_weights) == [pytest.approx([0.25])]
    assert of(seen.rest) == pytest.approx([0.25])
    assert of(seen.mean_position) == pytest.approx([0.5])
    assert of(seen.entropy) == pytest.approx([LN2])  # two terms of ¼ ln 4


def test_a_row_that_sees_nothing_has_no_mean_and_no_entropy() -> None:
    seen = observe([[0, 0], [1, 0]], Watch(top=1))
    assert of(seen.top_keys) == [[-1], [0]]
    assert of(seen.top_weights) == [[0], [pytest.approx(1)]]
    assert of(seen.logsumexp)[0] == -math.inf
    assert of(seen.entropy)[0] == of(seen.rest)[0] == of(seen.max_weight)[0] == 0
    assert math.isnan(of(seen.mean_position)[0])
    assert math.isnan(of(seen.mean_distance)[0])
    assert of(seen.received) == pytest.approx([1, 0])


def test_rows_are_observed_in_the_order_asked_for_and_summed_over_those_alone() -> None:
    seen = observe([[1, 0], [1, 1], [0, 1]], Watch(top=1, rows=torch.tensor([2, 0])))
    assert of(seen.top_keys) == [[1], [0]]
    assert of(seen.received) == pytest.approx([1, 1])
    assert seen.rows is not None
    assert seen.rows.tolist() == [2, 0]


def test_padded_rows_count_in_nothing() -> None:
    x = torch.zeros(2, 1, 3, 2)
    _, seen = attend_observed(
        x, x, x, mask=Causal() & Padding(torch.tensor([3, 1]), torch.tensor([3, 1])), watch=Watch(top=1)
    )
    assert seen.received is not None and seen.top_keys is not None
    assert seen.received[0, 0].tolist() == pytest.approx([1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3])
    assert seen.received[1, 0].tolist() == pytest.approx([1, 0, 0])
    assert seen.top_keys[1, 0].tolist() == [[0], [-1], [-1]]


def test_more_keys_asked_for_than_there_are() -> None:
    seen = observe([[1, 3]], Watch(top=4))
    assert of(seen.top_keys) == [[1, 0, -1, -1]]
    assert of(seen.top_weights) == [pytest.approx([0.75, 0.25, 0, 0])]
    assert of(seen.rest) == pytest.approx([0], abs=1e-6)


def test_the_questions_on_a_call_that_can_be_seen_through() -> None:
    query, key = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    value = torch.tensor([[[[2.0], [-1.0]]]])
    _, seen = attend_observed(query, key, value, mask=Causal(), watch=Watch())
    assert seen.weights()[0, 0].tolist() == [[1, 0], [0.5, 0.5]]
    assert seen.weights(rows=torch.tensor([1]), heads=[0])[0, 0].tolist() == [[0.5, 0.5]]
    assert seen.weights(rows=slice(0, 1))[0, 0].tolist() == [[1, 0]]
    assert seen.pull(torch.tensor([[[4.0, 8.0]]]))[0, 0].tolist() == [4, 6]
    assert seen.push(torch.tensor([[[1.0, 10.0]]]))[0, 0].tolist() == [6, 5]
    grad = torch.tensor([[[[1.0], [1.0]]]])  # G = [[2, -1], [2, -1]]
    assert seen.push_weighted(torch.tensor([[[1.0, 10.0]]]), grad)[0, 0].tolist() == [12, 0]
    assert seen.push_weighted(torch.tensor([[[1.0, 10.0]]]), -grad)[0, 0].tolist() == [0, 5]


def test_a_watch_and_an_observation_cannot_be_changed() -> None:
    watch = Watch()
    with pytest.raises(AttributeError):
        watch.top = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        observe([[1]], watch).entropy = None  # type: ignore[misc]


@pytest.mark.parametrize("backend", ["native", "fused"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda seen: pickle.loads(pickle.dumps(seen)), replace])
def test_fields_that_were_not_asked_for_yet_survive_copying(backend: str, copied: Callable[[Observation], Observation]):
    x = torch.randn(1, 2, 5, 4)
    watch = Watch(top=3, entropy=False, segments=torch.tensor([0, 1, 1, 0, 2]), keep=False)
    options: dict[str, Any] = {"mask": Causal(), "sink_logits": torch.randn(2), "backend": backend}
    seen = attend_observed(x, x, x, watch=watch, **options)[1]
    again = copied(attend_observed(x, x, x, watch=watch, **options)[1])
    for name in SEEN:
        mine, other = getattr(seen, name), getattr(again, name)
        assert (mine is None) == (other is None) == (name == "entropy")
        assert mine is None or (mine.dtype == other.dtype and mine.equal(other))
        assert mine is getattr(seen, name)  # made once
    assert again.top_keys is not None and again.top_keys.dtype == torch.int32


def test_an_observation_has_no_other_fields():
    x = torch.randn(1, 2, 5, 4)
    seen = attend_observed(x, x, x, watch=Watch())[1]
    with pytest.raises(AttributeError, match="an Observation has no 'top_key'"):
        _ = seen.top_key
