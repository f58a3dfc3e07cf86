"""Cached decoding equals the uncached pass; left padding, right padding and packing are three ways to say the same."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard import KVCache, Watch
from regard.attention.cache import Slot
from regard.attention.position import ALiBi, LogBuckets, RelativeBias, Rotary
from tests.contract.backends import FIELDS, attend, attend_observed
from tests.contract.cases import Call, assert_near, both, fixed


@st.composite
def sequences(draw: Any) -> tuple[Call, list[int]]:
    """A whole causal pass, and where it is cut into chunks."""
    length = draw(st.integers(1, 40))
    heads = 4
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    bias = draw(
        st.sampled_from(
            [
                None,
                ALiBi(torch.rand(heads, generator=generator)),
                RelativeBias(torch.randn(8, heads, generator=generator), LogBuckets(8, 20, bidirectional=False)),
            ]
        )
    )
    call = fixed(
        2,
        heads,
        2,
        length,
        length,
        8,
        draw(st.sampled_from([8, 5])),
        seed=draw(st.integers(0, 99)),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        bias=bias,
        softcap=draw(st.sampled_from([None, 5.0])),
        sink_logits=torch.randn(heads, generator=generator) if draw(st.booleans()) else None,
    )
    ends = draw(st.sets(st.integers(1, length), max_size=6)) | {length}
    return call, [0, *sorted(ends)]


def with_rule(call: Call, rule: Any, **changes: Any) -> Call:
    fields = ("query", "key", "value", "bias", "start", "scale", "softcap", "sink_logits")
    return Call(**{**{name: getattr(call, name) for name in fields}, "rule": rule, **changes})


def decode(call: Call, ends: list[int], slot: Slot, rule_at: Any, backend: str) -> Tensor:
    """The outputs of all chunks, computed on a slot and joined."""
    parts = list[Tensor]()
    for first, stop in pairwise(ends):
        keys, values = slot.append(call.key[:, :, first:stop], call.value[:, :, first:stop])
        start = first - (slot.length - keys.shape[2])  # the keys of a ring begin later than at position 0
        chunk = with_rule(
            call,
            rule_at(keys.shape[2]),
            query=call.query[:, :, first:stop],
            key=keys,
            value=values,
            start=start,
        )
        parts.append(attend(chunk, backend))
    return torch.cat(parts, 2)


@settings(max_examples=25)
@given(sequence=sequences())
def test_cached_decoding_in_any_chunking_equals_the_uncached_pass(
    backend: str, sequence: tuple[Call, list[int]]
) -> None:
    call, ends = sequence
    whole = with_rule(call, ("causal",))
    answer = whole.answer()
    uncached = attend(whole, backend)
    cached = decode(call, ends, KVCache.dense(1)[0], lambda _: ("causal",), backend)
    tolerance = whole.output_tolerance(answer)
    assert_near(cached, answer.output, tolerance, "cached")
    assert_near(cached, uncached.double(), tolerance, "cached against uncached")


@settings(max_examples=25)
@given(sequence=sequences(), window=st.integers(1, 12))
def test_a_ring_cache_in_any_chunking_equals_the_windowed_pass(
    backend: str, sequence: tuple[Call, list[int]], window: int
) -> None:
    call, ends = sequence
    rule = ("and", ("causal",), ("window", window - 1, None))
    whole = with_rule(call, rule)
    cached = decode(call, ends, KVCache.ring(1, window)[0], lambda _: rule, backend)
    assert_near(cached, whole.answer().output, whole.output_tolerance(whole.answer()), "cached")


@settings(max_examples=15)
@given(sequence=sequences(), left=st.lists(st.integers(0, 39), min_size=2, max_size=2))
def test_cached_decoding_of_a_left_padded_batch_equals_the_uncached_pass(
    backend: str, sequence: tuple[Call, list[int]], left: list[int]
) -> None:
    call, ends = sequence
    length = call.query.shape[2]
    lengths = torch.tensor([length - min(n, length - 1) for n in left])
    whole = with_rule(call, both(("causal",), ("padding", lengths, None, True)))

    def rule_at(keys: int) -> Any:
        return both(("causal",), ("padding", (lengths - (length - keys)).clamp(min=0), None, True))

    cached = decode(call, ends, KVCache.dense(1)[0], rule_at, backend)
    assert_near(cached, whole.answer().output, whole.output_tolerance(whole.answer()), "cached")


@settings(max_examples=15)
@given(sequence=sequences())
def test_rotated_keys_in_a_cache_equal_the_uncached_pass(backend: str, sequence: tuple[Call, list[int]]) -> None:
    call, ends = sequence
    rotary = Rotary(8)
    slot = KVCache.dense(1)[0]
    whole = with_rule(call, ("causal",), query=rotary.rotate(call.query), key=rotary.rotate(call.key))
    parts = list[Tensor]()
    for first, stop in pairwise(ends):
        rotated = rotary.rotate(call.key[:, :, first:stop], slot.length)
        query = rotary.rotate(call.query[:, :, first:stop], slot.length)
        keys, values = slot.append(rotated, call.value[:, :, first:stop])
        chunk = with_rule(call, ("causal",), query=query, key=keys, value=values, start=first)
        parts.append(attend(chunk, backend))
    assert_near(torch.cat(parts, 2), attend(whole, backend).double(), whole.output_tolerance(whole.answer()), "cached")


def test_an_unfilled_cache_may_hold_anything(backend: str) -> None:
    call = fixed(2, 4, 2, 3, 12, 8)
    key, value = (torch.full_like(tensor, torch.nan) for tensor in (call.key, call.value))
    key[:, :, :7], value[:, :, :7] = call.key[:, :, :7], call.value[:, :, :7]
    filled = Call(call.query, call.key[:, :, :7], call.value[:, :, :7], rule=("causal",), start=4)
    for rule in (("causal",), ("padding", torch.tensor([7, 7]), None, False), ("prefix", 7)):
        static = Call(call.query, key, value, rule=both(("causal",), rule), start=4)
        assert_near(attend(static, backend), filled.answer().output, 1e-5, str(rule))


def three_ways(lengths: list[int], dtype: torch.dtype, seed: int) -> dict[str, tuple[Call, list[tuple[int, slice]]]]:
    """The same sequences padded on the right, on the left, and packed, and where each is to be found."""
    most, total = max(lengths), sum(lengths)
    generator = torch.Generator().manual_seed(seed)
    items = [[torch.randn(heads, n, 8, generator=generator).to(dtype) for heads in (4, 2, 2)] for n in lengths]
    counts = torch.tensor(lengths)

    def padded(left: bool) -> tuple[Call, list[tuple[int, slice]]]:
        places = [slice(most - n, most) if left else slice(0, n) for n in lengths]
        parts = [torch.full((len(lengths), heads, most, 8), 3.0, dtype=dtype) for heads in (4, 2, 2)]
        for b, (item, place) in enumerate(zip(items, places, strict=True)):
            for part, own in zip(parts, item, strict=True):
                part[b, :, place] = own
        rule = both(("causal",), ("padding", counts, counts, left))
        return Call(*parts, rule=rule), list(enumerate(places))

    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    packed = [torch.cat([item[part] for item in items], 1)[None] for part in range(3)]
    assert packed[0].shape[2] == total
    rule = both(("causal",), ("documents", counts, None))
    return {
        "right": padded(False),
        "left": padded(True),
        "packed": (Call(*packed, rule=rule), [(0, slice(*pair)) for pair in pairwise(ends)]),
    }


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
def test_left_padding_equals_right_padding_equals_packing(
    backend: str, lengths: list[int], dtype: torch.dtype, seed: int
) -> None:
    ways = three_ways(lengths, dtype, seed)
    outputs = dict[str, list[Tensor]]()
    for name, (call, places) in ways.items():
        output = attend(call, backend)
        outputs[name] = [output[b, :, place] for b, place in places]
        assert_near(output, call.answer().output, call.output_tolerance(call.answer()), name)
    for name in ("left", "packed"):
        for one, other in zip(outputs["right"], outputs[name], strict=True):
            assert_near(one, other.double(), 1e-5 + 4 * torch.finfo(dtype).eps * 4, name)


def test_the_three_ways_are_observed_alike(backend: str) -> None:
    lengths = [5, 1, 9]
    seen = list[list[dict[str, Tensor]]]()
    for call, places in three_ways(lengths, torch.float32, 1).values():
        _, observed = attend_observed(call, backend, Watch(top=3))
        items = list[dict[str, Tensor]]()
        for b, place in places:
            fields = {n: t for n in FIELDS if (t := getattr(observed, n)) is not None}
            item = {n: t[b, :, place] for n, t in fields.items()}
            item["top_keys"] = torch.where(item["top_keys"] >= 0, item["top_keys"] - place.start, -1)
            item["mean_position"] = item["mean_position"] - place.start
            items.append(item)
        seen.append(items)
    for other in seen[1:]:
        for ours, theirs in zip(seen[0], other, strict=True):
            for name, field in ours.items():
                assert_near(field, theirs[name].double(), 1e-5, name)


@pytest.mark.parametrize("kind", ["dense", "ring"])
def test_beams_that_were_reordered_go_on_as_what_they_became(backend: str, kind: str) -> None:
    call = fixed(3, 4, 2, 6, 6)
    slot = (KVCache.dense(1) if kind == "dense" else KVCache.ring(1, 20))[0]
    order = torch.tensor([2, 2, 0])
    slot.append(call.key[:, :, :4], call.value[:, :, :4])
    slot.reorder(order)
    keys, values = slot.append(call.key[:, :, 4:], call.value[:, :, 4:])
    cached = attend(Call(call.query[:, :, 4:], keys, values, rule=("causal",), start=4), backend)
    key, value = (torch.cat((t[order, :, :4], t[:, :, 4:]), 2) for t in (call.key, call.value))
    whole = Call(call.query, key, value, rule=("causal",))
    assert_near(cached, whole.answer().output[:, :, 4:], 1e-5, "output")


def test_a_truncated_cache_goes_on_as_if_the_rest_had_not_been(backend: str) -> None:
    call = fixed(2, 4, 2, 6, 6)
    slot = KVCache.dense(1)[0]
    slot.append(torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8))
    slot.truncate(0)
    slot.append(call.key[:, :, :5], call.value[:, :, :5])
    slot.truncate(3)
    keys, values = slot.append(call.key[:, :, 3:], call.value[:, :, 3:])
    cached = attend(Call(call.query[:, :, 3:], keys, values, rule=("causal",), start=3), backend)
    assert_near(cached, Call(*call.tensors, rule=("causal",)).answer().output[:, :, 3:], 1e-5, "output")
