"""What a call is said to have seen is what it saw: every statistic, and every question, against whole matrices."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard import KVCache, Observation, Watch
from tests.contract import oracle
from tests.contract.backends import ROW_FIELDS, attend, attend_observed, small_strips
from tests.contract.cases import DTYPES, Call, assert_near, calls, fixed

INPUTS = ("plain", "offset", "peaked")


def check_top(seen: Observation, answer: oracle.Answer, k: int, tolerance: float, rows: Tensor | slice) -> None:
    """The keys and weights of the k heaviest; between keys whose weights nearly agree either order is right."""
    keys, weights = seen.top_keys, seen.top_weights
    assert keys is not None and weights is not None and seen.rest is not None
    _, expected = answer.top(k)
    exact, allowed = answer.weights[:, :, rows], answer.allowed[:, :, rows]
    expected = expected[:, :, rows]
    assert keys.dtype == torch.int32
    assert keys.shape == weights.shape == expected.shape
    there = keys >= 0
    assert torch.equal(there.sum(-1), allowed.sum(-1).clamp(max=k)), "as many keys as there are, up to k"
    assert bool((weights[~there] == 0).all()) and bool((keys[~there] == -1).all())
    assert bool((weights[..., :-1] >= weights[..., 1:]).all()), "heaviest first"
    index = keys.long().clamp(min=0)
    assert_near(weights, torch.where(there, exact.gather(-1, index), 0.0), tolerance, "weights of the top keys")
    assert_near(weights, expected, tolerance, "top_weights")
    assert bool(allowed.gather(-1, index)[there].all()), "only keys that may be seen"
    distinct = torch.where(there, index, -1 - torch.arange(k))
    assert bool((distinct.sort(-1).values.diff(dim=-1) != 0).all()), "each key once"
    assert_near(seen.rest, (answer.mass()[:, :, rows] - expected.sum(-1)).clamp(min=0), tolerance, "rest")


def check_rows(seen: Observation, answer: oracle.Answer, tolerance: float, rows: Tensor | slice, sink: bool) -> None:
    """Every field of one number a row."""
    expected = {
        "logsumexp": answer.logsumexp,
        "max_weight": answer.weights.amax(-1),
        "entropy": answer.entropy(),
        "mean_position": answer.mean_position(),
        "mean_distance": answer.mean_distance(),
    }
    if sink:
        expected["sink_weight"] = answer.sink_weight
    else:
        assert seen.sink_weight is None
    for name, field in expected.items():
        actual = getattr(seen, name)
        assert actual.dtype == torch.float32, name
        assert not actual.requires_grad, name
        field = field[:, :, rows]
        if name.startswith("mean_"):  # of no mass there is no mean, and of mass that single precision loses none
            lost = answer.mass()[:, :, rows] < 1e-30
            assert bool(actual[answer.mass()[:, :, rows] == 0].isnan().all()), name
            field, actual = field.masked_fill(lost, 0), actual.masked_fill(lost, 0)
        assert_near(actual, field, tolerance, name)


@pytest.mark.parametrize("inputs", INPUTS)
@settings(max_examples=25)
@given(data=st.data(), top=st.integers(1, 9), budget=st.sampled_from([20_000, 2**26]))
def test_every_statistic_is_exact(backend: str, inputs: str, data: st.DataObject, top: int, budget: int) -> None:
    call = data.draw(calls(inputs=inputs, dtypes=DTYPES, longest=50))
    batch, _, keys = call.sizes
    shape = data.draw(st.sampled_from([(keys,), (batch, keys)]))
    segments = torch.randint(-1, 4, shape, generator=torch.Generator().manual_seed(top))
    answer = call.answer()
    tolerance = call.tolerance(answer)
    with small_strips(budget):
        output, seen = attend_observed(call, backend, Watch(top=top, segments=segments))
    assert_near(output, answer.output, call.output_tolerance(answer), "output")
    everything = slice(None)
    check_rows(seen, answer, tolerance, everything, call.sink_logits is not None)
    check_top(seen, answer, top, tolerance, everything)
    assert seen.received is not None and seen.segment_mass is not None
    assert_near(seen.received, answer.received(), tolerance, "received")
    count = max(int(segments.max()) + 1, 0)
    assert_near(seen.segment_mass, answer.segment_mass(segments, count), tolerance, "segment_mass")


@pytest.mark.parametrize("inputs", INPUTS)
@settings(max_examples=15)
@given(data=st.data(), budget=st.sampled_from([20_000, 2**26]))
def test_chosen_rows_are_those_rows_and_received_is_their_sum(
    backend: str, inputs: str, data: st.DataObject, budget: int
) -> None:
    call = data.draw(calls(inputs=inputs, longest=40))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, call.sizes[1] - 1), min_size=1, max_size=6)))
    answer = call.answer()
    tolerance = call.tolerance(answer)
    with small_strips(budget):
        output, seen = attend_observed(call, backend, Watch(top=3, rows=rows))
    assert_near(output, answer.output, call.output_tolerance(answer), "output")
    check_rows(seen, answer, tolerance, rows, call.sink_logits is not None)
    check_top(seen, answer, 3, tolerance, rows)
    assert seen.received is not None
    assert_near(seen.received, answer.received(rows), tolerance, "received")


@pytest.mark.parametrize("inputs", INPUTS)
@settings(max_examples=15)
@given(data=st.data(), budget=st.sampled_from([20_000, 2**26]))
def test_the_four_questions_equal_their_matrix_forms(
    backend: str, inputs: str, data: st.DataObject, budget: int
) -> None:
    call = data.draw(calls(inputs=inputs, longest=40))
    answer = call.answer()
    tolerance = call.tolerance(answer)
    batch, heads, rows, keys = answer.weights.shape
    _, seen = attend_observed(call, backend, Watch())
    some_rows = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=4)))
    some_heads = data.draw(st.lists(st.integers(0, heads - 1), min_size=1, max_size=3))
    v, v_columns = torch.randn(batch, heads, keys), torch.randn(batch, heads, keys, 3)
    r, r_columns = torch.randn(batch, heads, rows), torch.randn(batch, heads, rows, 2)
    grad = torch.randn_like(answer.output, dtype=torch.float32)
    p = answer.weights
    with small_strips(budget):
        assert_near(seen.weights(), p, tolerance, "weights")
        assert_near(
            seen.weights(rows=some_rows, heads=some_heads),
            p[:, some_heads][:, :, some_rows],
            tolerance,
            "some weights",
        )
        assert_near(seen.weights(rows=range(rows // 2, rows)), p[:, :, rows // 2 :], tolerance, "a range of weights")
        sums = {
            "pull": (seen.pull(v), (p @ v.double()[..., None])[..., 0], v),
            "pull of columns": (seen.pull(v_columns), p @ v_columns.double(), v_columns),
            "push": (seen.push(r), torch.einsum("bhi,bhij->bhj", r.double(), p), r),
            "push of columns": (seen.push(r_columns), p.transpose(2, 3) @ r_columns.double(), r_columns),
        }
        weighted = seen.push_weighted(r, grad)
    for name, (actual, expected, given_) in sums.items():
        assert_near(actual, expected, tolerance * max(1.0, float(given_.abs().max()) * keys**0.5), name)
    largest = float(grad.abs().max() * answer.value.abs().max() * r.abs().max()) * grad.shape[-1] * rows**0.5
    assert_near(weighted, answer.push_weighted(r, grad), tolerance * max(1.0, largest), "push_weighted")


@settings(max_examples=25)
@given(call=calls(dtypes=DTYPES, longest=40))
def test_the_output_of_an_observed_call_is_that_of_the_call(backend: str, call: Call) -> None:
    output, _ = attend_observed(call, backend, Watch())
    assert output.dtype == call.query.dtype
    assert_near(output, attend(call, backend).double(), call.output_tolerance(call.answer()), "output")


def test_an_observed_call_has_the_gradients_of_the_call(backend: str) -> None:
    call = fixed(rule=("causal",), sink_logits=torch.randn(4), softcap=5.0)
    gradients = list[tuple[Tensor, ...]]()
    for observed in (False, True):
        leaves = [leaf.clone().requires_grad_() for leaf in call.leaves()]
        same = call.with_leaves(leaves)
        output = attend_observed(same, backend, Watch())[0] if observed else attend(same, backend)
        gradients.append(torch.autograd.grad(output.square().sum(), leaves))
    for plain, observed_too in zip(*gradients, strict=True):
        assert_near(observed_too, plain.double(), 1e-5, "gradient")


def test_a_backward_pass_changes_nothing_of_what_was_observed(backend: str) -> None:
    call = fixed(2, 4, 2, 30, 30, rule=("causal",))
    leaves = [leaf.clone().requires_grad_() for leaf in call.leaves()]
    answer = call.answer()
    with small_strips(8192):
        output, seen = attend_observed(call.with_leaves(leaves), backend, Watch())
        output.square().sum().backward()
    assert seen.received is not None
    assert_near(seen.received, answer.received(), 1e-5, "received")
    check_rows(seen, answer, 1e-5, slice(None), False)


def test_what_was_observed_is_detached_and_in_single_precision(backend: str) -> None:
    for dtype in (*DTYPES, torch.float64):
        call = fixed(dtype=dtype, rule=("causal",), sink_logits=torch.randn(4))
        leaves = [leaf.clone().requires_grad_() for leaf in call.leaves()]
        _, seen = attend_observed(call.with_leaves(leaves), backend, Watch(segments=torch.zeros(11, dtype=torch.long)))
        for name in (*ROW_FIELDS, "top_weights", "received", "segment_mass"):
            field = getattr(seen, name)
            assert field.dtype == torch.float32, name
            assert not field.requires_grad, name
        assert not seen.weights().requires_grad


def integers(batch: int, heads: int, length: int, seed: int) -> Tensor:
    """Small whole numbers, of which every product and sum is exact in single precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (batch, heads, length, 4), generator=generator).float()


@settings(max_examples=30)
@given(seed=st.integers(0, 999), keys=st.integers(2, 40), k=st.integers(1, 12), copies=st.integers(2, 5))
def test_between_exact_ties_the_lowest_key_comes_first(backend: str, seed: int, keys: int, k: int, copies: int) -> None:
    key = integers(1, 2, keys, seed).repeat(1, 1, copies, 1)  # every key stands `copies` times
    call = Call(integers(1, 4, 5, seed + 1), key, key, rule=("causal",), start=keys)
    _, seen = attend_observed(call, backend, Watch(top=k))
    expected, _ = call.answer().top(k)
    assert seen.top_keys is not None
    assert torch.equal(seen.top_keys.long(), expected)


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_a_row_of_equal_weights_shows_its_lowest_keys(backend: str, k: int) -> None:
    call = fixed(keys=7, rule=("window", 3, 3), start=2)
    call = replace(call, query=torch.zeros_like(call.query))
    _, seen = attend_observed(call, backend, Watch(top=k))
    expected, weights = call.answer().top(k)
    assert seen.top_keys is not None and seen.top_weights is not None
    assert torch.equal(seen.top_keys.long(), expected)
    assert_near(seen.top_weights, weights, 1e-6, "top_weights")


def test_only_real_rows_count_in_what_a_key_received(backend: str) -> None:
    rule = ("padding", torch.tensor([11, 5]), torch.tensor([9, 4]), False)
    call = fixed(rule=rule)
    _, seen = attend_observed(call, backend, Watch())
    assert seen.received is not None
    total = seen.received.sum(-1)
    assert_near(total, torch.tensor([[9.0], [4.0]]).expand(2, 4).double(), 1e-5, "received")
    output, _ = attend_observed(call, backend, Watch())
    assert bool((output[1, :, 4:] == 0).all())


def test_what_was_not_asked_for_is_none(backend: str) -> None:
    call = fixed()
    _, seen = attend_observed(call, backend, Watch(top=0, received=False, entropy=False, position=False))
    for name in ("top_keys", "top_weights", "rest", "received", "entropy", "mean_position", "mean_distance"):
        assert getattr(seen, name) is None, name
    assert seen.segment_mass is None
    assert seen.sink_weight is None


def test_without_what_was_kept_a_question_is_a_clear_error(backend: str) -> None:
    call = fixed()
    _, seen = attend_observed(call, backend, Watch(keep=False))
    assert_near(seen.logsumexp, call.answer().logsumexp, 1e-5, "logsumexp")
    questions: dict[str, Any] = {
        "weights": seen.weights,
        "pull": lambda: seen.pull(torch.ones(2, 4, 11)),
        "push": lambda: seen.push(torch.ones(2, 4, 9)),
        "push_weighted": lambda: seen.push_weighted(torch.ones(2, 4, 9), torch.ones(2, 4, 9, 8)),
    }
    for name, question in questions.items():
        with pytest.raises(ValueError, match=f"{name}.*keep=False"):
            question()


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 4, 11), (2, 3, 11), (11, 2)])
def test_a_question_of_the_wrong_shape_is_refused_by_name(backend: str, shape: tuple[int, ...]) -> None:
    _, seen = attend_observed(fixed(), backend, Watch())
    with pytest.raises(ValueError, match=r"v .*\("):
        seen.pull(torch.ones(shape))


@pytest.mark.parametrize("kind", ["dense", "ring"])
def test_what_was_kept_from_a_cache_does_not_change_with_it(backend: str, kind: str) -> None:
    slot = (KVCache.dense(1) if kind == "dense" else KVCache.ring(1, 6))[0]
    call = fixed(2, 4, 2, 2, 6)
    keys, values = slot.append(call.key, call.value)
    _, seen = attend_observed(Call(call.query, keys, values, rule=("causal",), start=4), backend, Watch())
    r, grad = torch.randn(2, 4, 2), torch.randn(2, 4, 2, 8)
    before = (seen.weights(), seen.push(r), seen.push_weighted(r, grad))
    keys.fill_(9.0)
    values.fill_(9.0)
    slot.truncate(4)
    slot.append(torch.full((2, 2, 30, 8), 5.0), torch.full((2, 2, 30, 8), 5.0))
    slot.reorder(torch.tensor([1, 1]))
    after = (seen.weights(), seen.push(r), seen.push_weighted(r, grad))
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))
    assert_near(seen.weights(), Call(*call.tensors, rule=("causal",), start=4).answer().weights, 1e-5, "weights")


@pytest.mark.parametrize("sink", [False, True])
def test_the_weights_shown_the_rest_and_the_sink_make_one(backend: str, sink: bool) -> None:
    call = fixed(rows=40, keys=50, sink_logits=torch.randn(4) if sink else None)
    _, seen = attend_observed(call, backend, Watch(top=5))
    assert seen.top_weights is not None and seen.rest is not None
    total = seen.top_weights.sum(-1) + seen.rest
    if sink:
        assert seen.sink_weight is not None
        total = total + seen.sink_weight
    assert_near(total, torch.ones_like(total).double(), 1e-6, "total")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_positions_never_pass_through_half_precision(backend: str, dtype: torch.dtype) -> None:
    keys = 3001
    call = fixed(1, 2, 1, 2, keys, 4, dtype=dtype, rule=("causal",), start=keys - 2)
    answer = call.answer()
    _, seen = attend_observed(call, backend, Watch(segments=torch.arange(keys) // 1000))
    assert seen.mean_position is not None and seen.mean_distance is not None
    assert_near(seen.mean_position, answer.mean_position(), 1e-5, "mean_position")
    assert_near(seen.mean_distance, answer.mean_distance(), 1e-5, "mean_distance")


def test_the_entropy_of_a_nearly_certain_row_is_small_and_not_negative(backend: str) -> None:
    call = fixed(1, 2, 2, 30, 30)
    call = replace(call, query=call.query * 40)
    _, seen = attend_observed(call, backend, Watch())
    assert seen.entropy is not None
    assert bool((seen.entropy >= 0).all())
    even = replace(call, query=torch.zeros_like(call.query))
    _, seen = attend_observed(even, backend, Watch())
    assert seen.entropy is not None
    assert_near(seen.entropy, torch.full((1, 2, 30), math.log(30.0)).double(), 1e-6, "entropy")


def test_observing_holds_no_matrix(backend: str) -> None:
    if backend == "reference":
        return  # the definition holds them all
    call = fixed(1, 1, 1, 1000, 1000, 8, rule=("causal",))
    largest = list[int]()

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
            result = function(*given, **(options or {}))
            largest.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))
            return result

    with small_strips(2**18), Sizes():
        _, seen = attend_observed(call, backend, Watch())
        seen.push(torch.ones(1, 1, 1000))
    assert max(largest) <= 64 * 1000
