"""Scores at the ends of what floats can hold, ties, rows without keys, and NaN: what it reaches and what not."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard import Observation, Watch
from tests.attention.native.agreement import answer_of, check, gradients, sorted_keys, threads
from tests.contract.backends import FIELDS, attend, attend_observed
from tests.contract.cases import Call, assert_near, both, fixed
from tests.contract.test_isolation import NOTHING, assert_same_gradients, filled, unseen_keys

pytestmark = pytest.mark.usefixtures("isa")

ROWS = (1, 2, 3, 7, 50)  # few rows are decoded, many go in panels
LENGTHS = (1, 5, 16, 63, 64, 65, 300, 1100)
DEPTHS = (1, 2, 7, 8, 9, 16, 33, 64)


def scored(scores: Tensor, rows: int, **options: Any) -> Call:
    """A call whose rows have the scores (Lk,), exactly, and every second row their negatives."""
    query = torch.ones(1, 2, rows, 1)
    query[:, :, 1::2] = -1.0
    return Call(query, scores.reshape(1, 1, -1, 1), torch.randn(1, 1, len(scores), 5), scale=1.0, **options)


def observed(call: Call, watch: Watch | None = None) -> tuple[Tensor, Observation]:
    return attend_observed(call, "native", watch or Watch())


# -- Scores


def of_kind(kind: str, n: int) -> Tensor:
    """n scores."""
    generator = torch.Generator().manual_seed(n)
    peak = torch.zeros(n)
    peak[n // 3] = 60.0
    kinds = {
        "equal": lambda: torch.full((n,), 0.75),
        "ascending": lambda: torch.linspace(-9, 9, n),
        "descending": lambda: torch.linspace(9, -9, n),
        "peaked": lambda: peak,
        "far below zero": lambda: -5000 - torch.arange(n) / 4,
        "of few values": lambda: torch.randint(0, 3, (n,), generator=generator).float(),
        "of two values": lambda: (torch.rand(n, generator=generator) < 0.9).float(),
        "one after many": lambda: torch.where(torch.arange(n) == n - 1, 1.0, 0.0),
        "next to nothing": lambda: 1e-36 * torch.arange(n).float(),
        "a bit apart": lambda: 1 + torch.randperm(n, generator=generator) / 2**23,
        "in pairs": lambda: torch.randn(n // 2 + 1, generator=generator).repeat(2)[:n],
        "both zeros": lambda: torch.where(torch.arange(n) % 2 == 0, 0.0, -0.0),
    }
    return kinds[kind]()


KINDS = (
    *("equal", "ascending", "descending", "peaked", "far below zero", "of few values", "of two values"),
    *("one after many", "next to nothing", "a bit apart", "in pairs", "both zeros"),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(rows=st.sampled_from(ROWS), keys=st.sampled_from(LENGTHS), k=st.sampled_from(DEPTHS), causal=st.booleans())
def test_scores_of_every_kind_with_exactly_the_top_keys(kind: str, rows: int, keys: int, k: int, causal: bool) -> None:
    options: dict[str, Any] = {"rule": ("causal",), "start": keys - rows} if causal else {}
    call = scored(of_kind(kind, keys), rows, **options)
    check(call, Watch(top=k, segments=torch.arange(keys) % 3))
    _, seen = observed(call, Watch(top=k))
    assert seen.top_keys is not None
    assert torch.equal(seen.top_keys.long(), sorted_keys(answer_of(call), k))


@settings(max_examples=40)
@given(rows=st.sampled_from(ROWS), k=st.integers(1, 64), seen_keys=st.integers(0, 70), after=st.integers(0, 200))
def test_fewer_keys_than_asked_for(rows: int, k: int, seen_keys: int, after: int) -> None:
    keys = seen_keys + after + 1
    lengths = torch.tensor([seen_keys])
    call = scored(torch.randn(keys), rows, rule=("padding", lengths, None, False))
    _, seen = observed(call, Watch(top=k))
    assert seen.top_keys is not None and seen.top_weights is not None
    found = min(k, seen_keys)
    assert bool((seen.top_keys[..., :found] >= 0).all())
    assert bool((seen.top_keys[..., found:] == -1).all())
    assert bool((seen.top_weights[..., found:] == 0).all())
    assert torch.equal(seen.top_keys.long(), sorted_keys(answer_of(call), k))
    check(call, Watch(top=k))


@pytest.mark.parametrize("rows", ROWS)
def test_no_top_keys_where_none_are_asked_for(rows: int) -> None:
    call = fixed(2, 4, 2, rows, 130, 16)
    for watch in (Watch(top=0), Watch(top=0, received=False), Watch(top=3, entropy=False, position=False)):
        check(call, watch, differentiate=False)
    for segments in (torch.full((130,), -1), torch.zeros(130, dtype=torch.int64), torch.arange(130)):
        check(call, Watch(top=0, segments=segments), differentiate=False)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("largest", [1e6, 1e10, 1e38, 3e38])
def test_scores_near_the_largest_number_still_choose_the_largest(rows: int, largest: float) -> None:
    scores = torch.tensor([0.5, -1.0, 0.25, 1.0, 0.9, -0.1]).repeat(20)[:119] * largest
    scores[70] = 1.01 * largest  # the largest, and its negative the smallest
    scores[80] = -1.01 * largest
    call = scored(scores, rows)
    output, seen = observed(call)
    for found in (output, attend(call, "native")):
        for row in range(rows):
            assert torch.equal(found[0, 0, row], call.value[0, 0, 80 if row % 2 else 70]), f"row {row}"
    assert bool((seen.max_weight == 1).all())
    assert seen.entropy is not None and bool((seen.entropy == 0).all())
    torch.testing.assert_close(seen.logsumexp, torch.full_like(seen.logsumexp, 1.01 * largest), rtol=1e-6, atol=0)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(call, "native").values())


@pytest.mark.parametrize("rows", ROWS)
def test_where_products_overflow_the_kernel_is_finite_wherever_the_reference_is(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    query = torch.rand(1, 2, rows, 3, generator=generator) * 1e10 + 1e9
    key = torch.rand(1, 2, 90, 3, generator=generator) * 1e-10
    key[:, :, 20:40] = -1e37  # a score of -∞: no key
    key[:, 1, 50] = 1e37  # of +∞, in one head
    call = Call(query, key, torch.randn(1, 2, 90, 4), scale=1.0)
    expected, output = attend(call, "reference"), attend(call, "native")
    finite = expected.isfinite()
    assert bool(finite[:, 0].all()) and not bool(finite[:, 1].any())
    assert_near(output.masked_fill(~finite, 0), expected.masked_fill(~finite, 0), 1e-4, "output")
    assert torch.equal(output.isfinite(), finite)
    _, seen = observed(call, Watch(top=64))
    assert seen.top_keys is not None
    least = seen.top_keys[:, 0].masked_fill(seen.top_keys[:, 0] < 0, 0)
    assert not bool(((least >= 20) & (least < 40)).any())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [1e-18, 1e-30, 1e-38, 1e-42])
def test_inputs_next_to_nothing_see_all_keys_alike(rows: int, size: float) -> None:
    call = fixed(1, 2, 2, rows, 130, 16)
    check(call.map(lambda tensor: tensor * size))


def test_numbers_next_to_nothing_are_what_they_were_after_a_call() -> None:
    tiny = torch.full((100_000,), 1e-40)  # the kernel takes such results as 0; PyTorch, in the same threads, does not
    with threads(3):
        attend(fixed(2, 4, 2, 100, 100), "native")
        assert bool((tiny * 1.5 > tiny).all())


# -- Half precision


def every_number(dtype: torch.dtype) -> Tensor:
    return torch.arange(2**16).to(torch.int32).to(torch.uint16).view(dtype)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_half_precision_goes_in_and_comes_out_as_it_is(dtype: torch.dtype, rows: int) -> None:
    value = every_number(dtype).reshape(1, 256, 1, 256)
    query = torch.zeros(1, 256, rows, 1, dtype=dtype)
    output = attend(Call(query, query[:, :, :1], value), "native").float()
    kept = value.float()
    kept = kept.masked_fill(kept.abs() < torch.finfo(torch.float32).tiny, 0.0)
    assert torch.equal(output.isnan(), kept.isnan().expand_as(output))
    assert torch.equal(output.nan_to_num(7.0), kept.nan_to_num(7.0).expand_as(output))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_to_the_nearest_and_ties_to_even(dtype: torch.dtype, rows: int) -> None:
    numbers = every_number(dtype)
    numbers = numbers[numbers.isfinite() & (numbers.float().abs() > 1e-30) | (numbers == 0)]
    few = numbers[: len(numbers) // 512 * 256]
    value = torch.stack((few.reshape(-1, 256), few.roll(1).reshape(-1, 256)), 1)[None]  # (1, H, 2, 256): neighbours
    query = torch.zeros(1, value.shape[1], rows, 1, dtype=dtype)
    output = attend(Call(query, query[:, :, :1].expand(-1, -1, 2, -1), value), "native")
    expected = (value.float() / 2).sum(2, keepdim=True).to(dtype)
    assert torch.equal(output, expected.expand_as(output))


@pytest.mark.parametrize("watch", [None, Watch()], ids=["plain", "observed"])
@pytest.mark.parametrize("rows", [3, 60])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_rounding_of_a_large_output_is_nothing_to_its_gradients(
    dtype: torch.dtype, rows: int, watch: Watch | None
) -> None:
    call = fixed(1, 4, 2, rows, 90, 16, 24, dtype=dtype, sink_logits=torch.randn(4))
    call = replace(call, value=call.value + 200)  # rounded by more than a hundredth of what tells values apart
    expected = gradients(call.to(torch.float64), "reference")
    for name, gradient in gradients(call, "native", watch).items():
        largest = float(expected[name].abs().max())
        assert_near(gradient / largest, expected[name] / largest, 2 * torch.finfo(dtype).eps, name)


@pytest.mark.parametrize("start", [1_000_000, -1_000_000, 16_777_217])
@pytest.mark.parametrize("rows", ROWS)
def test_rows_far_from_their_keys(rows: int, start: int) -> None:
    call = fixed(1, 2, 2, rows, 300, 16, start=start)
    check(call)


# -- What is received


@pytest.mark.parametrize("real", [0, 1, 4, 7, 48, 200])
@pytest.mark.parametrize("rows", [7, 200])
def test_what_a_key_receives_is_the_exact_sum_over_real_rows(rows: int, real: int) -> None:
    real = min(real, rows)
    for left in (False, True):
        lengths = torch.tensor([64, 64]), torch.tensor([real, rows])
        call = fixed(2, 4, 2, rows, 90, 8, rule=("padding", *lengths, left))
        query = torch.zeros_like(call.query)
        padded = slice(0, rows - real) if left else slice(real, rows)
        query[0, :, padded] = math.nan
        output, seen = observed(replace(call, query=query), Watch(top=2))
        assert seen.received is not None and seen.entropy is not None
        keys = torch.arange(90) >= 26 if left else torch.arange(90) < 64
        for entry, count in ((0, real), (1, rows)):  # every weight is 1/64, and sums of these are exact
            assert torch.equal(seen.received[entry], (keys * (count / 64)).expand(4, 90))
        assert bool((output[0, :, padded] == 0).all())
        assert bool((seen.entropy[0, :, padded] == 0).all())
        assert bool((seen.logsumexp[0, :, padded] == -math.inf).all())


# -- NaN
#
# What no row of a batch entry sees may hold anything. What some row sees has to be a number for the rows that are
# computed with it, too: their weight of it is 0, and 0 · NaN is no 0. A panel has at most 48 rows, and what lies
# outside of all that its rows see is not read for it.

UNSEEN: dict[str, dict[str, Any]] = {
    "padding": {"rule": ("padding", torch.tensor([300, 130]), torch.tensor([80, 33]), False)},
    "left padding": {"rule": ("padding", torch.tensor([130, 290]), torch.tensor([33, 79]), True)},
    "unfilled cache": {"rule": ("causal",), "start": 120},
    "window": {"rule": ("window", 30, 0), "start": 170},
    "cache by entry": {"rule": ("causal",), "start": torch.tensor([5, 200])},
    "holes": {"rule": ("documents", torch.tensor([30, 0, 30, 20]), torch.tensor([90, 40, 100, 70]))},
    "holes by entry": {
        "rule": both(
            ("documents", torch.tensor([[1, 0, 70], [40, 3, 7]]), torch.tensor([[3, 140, 70], [40, 100, 70]])),
            ("window", 60, 200),
        )
    },
    "matrix": {"rule": ("dense", (torch.arange(300) % 7 < 4).expand(2, 1, 80, 300))},
}


def of_rows(rows: int, options: dict[str, Any]) -> Call:
    """A call of 300 keys whose mask is that of 80 rows, cut to the first ones where it counts rows."""
    rule = options["rule"]
    if rule[0] == "padding":
        rule = (*rule[:2], rule[2].clamp(max=rows), rule[3])
    elif rule[0] == "dense":
        rule = ("dense", rule[1][:, :, :rows])
    return fixed(2, 4, 2, rows, 300, 16, **{**options, "rule": rule}, sink_logits=torch.randn(4))


@pytest.mark.parametrize("rows", [1, 4, 80])
@pytest.mark.parametrize("kind", UNSEEN)
def test_what_no_row_sees_may_hold_anything(kind: str, rows: int) -> None:
    call = of_rows(rows, UNSEEN[kind])
    unseen, blind = unseen_keys(call), ~call.allowed.any(3)
    assert bool(unseen.any())
    clean = filled(call, unseen, blind, 0.25)
    watch = Watch(top=4, segments=torch.arange(300) % 3)
    output, seen = observed(clean, watch)
    grads = gradients(clean, "native")
    for content in NOTHING:
        dirty = filled(call, unseen, blind, content)
        assert torch.equal(attend(dirty, "native"), attend(clean, "native"))
        found, then = observed(dirty, watch)
        assert torch.equal(found, output)
        for name in FIELDS:
            was, now = getattr(seen, name), getattr(then, name)
            assert torch.equal(was.nan_to_num(7.0), now.nan_to_num(7.0)), name
            assert torch.equal(was.isnan(), now.isnan()), name
        assert_same_gradients(gradients(dirty, "native"), grads)


def with_nan(tensor: Tensor, *where: Any) -> Tensor:
    """A copy with NaN in one place."""
    copy = tensor.clone()
    copy[where] = math.nan
    return copy


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_nan_that_a_row_sees_is_not_hidden_and_stays_in_its_head(part: str, rows: int) -> None:
    call = fixed(2, 4, 2, rows, 130, 16)
    clean, (_, seen) = attend(call, "native"), observed(call)
    last = rows - 1
    if part == "query":
        dirty = replace(call, query=with_nan(call.query, 1, 1, last, 3))
    else:
        dirty = replace(call, **{part: with_nan(getattr(call, part), 1, 0, 77, 3)})
    expected = torch.zeros_like(clean, dtype=torch.bool)  # where NaN has to be
    expected[1, 1 if part == "query" else slice(0, 2), last if part == "query" else slice(None)] = True
    if part == "value":
        expected[..., :3] = expected[..., 4:] = False
    output, then = observed(dirty)
    for found in (attend(dirty, "native"), output):
        assert torch.equal(found.isnan(), expected)
    assert torch.equal(attend(dirty, "native")[~expected], clean[~expected])
    if part != "value":
        lost = expected.any(-1)
        for name in ("logsumexp", "max_weight", "entropy", "mean_position", "mean_distance", "rest"):
            was, now = getattr(seen, name), getattr(then, name)
            assert torch.equal(was[~lost], now[~lost]), name
        assert bool(then.logsumexp[lost].isnan().all())
        assert then.received is not None and bool(then.received[1, 1].isnan().any())
        assert not bool(then.received[0].isnan().any())


@pytest.mark.parametrize("part", ["key", "value"])
def test_nan_reaches_no_panel_whose_rows_lie_before_it(part: str) -> None:
    call = fixed(1, 2, 1, 240, 240, 16, rule=("causal",))
    dirty = replace(call, **{part: with_nan(getattr(call, part), 0, 0, 192)})  # the panels end at 192, however wide
    clean, output = attend(call, "native"), attend(dirty, "native")
    assert torch.equal(output[:, :, :192], clean[:, :, :192])
    assert bool(output[:, :, 192:].isnan().all())
    _, was = observed(call)
    _, now = observed(dirty)
    for name in ("logsumexp", "entropy", "top_keys", "top_weights", "mean_distance"):
        assert torch.equal(getattr(was, name)[:, :, :192], getattr(now, name)[:, :, :192]), name


@pytest.mark.parametrize("rows", ROWS)
def test_a_gradient_of_nan_is_not_hidden(rows: int) -> None:
    call = fixed(1, 2, 1, rows, 130, 16, rule=("causal",), start=130 - rows)
    query = call.query.clone().requires_grad_()
    output = attend(replace(call, query=query), "native")
    grad = with_nan(torch.ones_like(output), 0, 1, rows - 1, 2)
    (found,) = torch.autograd.grad(output, query, grad)
    assert bool(found[0, 1, rows - 1].isnan().all())
    assert bool(found[0, 0].isfinite().all()) and bool(found[0, 1, : rows - 1].isfinite().all())
