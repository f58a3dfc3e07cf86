"""The kernel agrees with the reference at the edges of its tiles, panels and chunks, on every instruction set."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard import Watch
from regard.attention.position import ALiBi, LogBuckets, RelativeBias
from tests.attention.native.agreement import check, gradients, threads
from tests.contract import oracle
from tests.contract.backends import FIELDS, attend, attend_observed
from tests.contract.cases import DTYPES, LAYOUTS, Call, both, fixed, laid_out, rules

pytestmark = pytest.mark.usefixtures("isa")


def around(*numbers: int, most: int) -> list[int]:
    """Each number, the one before and the one after it, and 1."""
    return sorted({1} | {n + d for n in numbers for d in (-1, 0, 1) if n + d <= most})


LENGTHS = around(4, 8, 16, 24, 32, 48, 64, 192, most=200)
SIZES = around(4, 8, 16, 24, 32, 48, 64, 128, 192, 256, most=256)
MANY_KEYS = around(64, 128, 256, 320, 512, 1024, 2048, 3072, most=3100)


@st.composite
def calls(draw: Any, rows: list[int], keys: list[int], sizes: list[int], layouts: tuple[str, ...] = LAYOUTS) -> Call:
    """A call whose sizes come from these lists, with any mask, bias, start, scale, softcap and sink."""
    batch, kv_heads, group = (draw(st.sampled_from(some)) for some in ((1, 2), (1, 2), (1, 2, 3)))
    heads, dtype = kv_heads * group, draw(st.sampled_from(DTYPES))
    Lq, Lk, D, Dv = (draw(st.sampled_from(some)) for some in (rows, keys, sizes, sizes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def part(*shape: int) -> Tensor:
        return laid_out(normal(*shape).to(dtype), draw(st.sampled_from(layouts)))

    position = st.sampled_from([0, -1, 1, Lk - Lq, Lk])
    start = draw(position) if draw(st.booleans()) else torch.tensor([draw(position) for _ in range(batch)])
    bias = draw(st.sampled_from(["none", "none", "tensor", "alibi", "relative"]))
    shape = [draw(st.sampled_from([1, full])) for full in (batch, heads, Lq, Lk)] if bias == "tensor" else []
    return Call(
        part(batch, heads, Lq, D),
        part(batch, kv_heads, Lk, D),
        part(batch, kv_heads, Lk, Dv),
        rule=draw(rules(batch, heads, Lq, Lk)),
        bias={
            "none": lambda: None,
            "tensor": lambda: normal(*shape).to(draw(st.sampled_from([dtype, torch.float32]))),
            "alibi": lambda: ALiBi(normal(heads).abs()),
            "relative": lambda: RelativeBias(normal(8, heads), LogBuckets(8, 20)),
        }[bias](),
        start=start,
        scale=draw(st.sampled_from([None, None, 0.7, 0.0, -0.4])),
        softcap=draw(st.sampled_from([None, None, 0.8, 20.0])),
        sink_logits=normal(heads) if draw(st.booleans()) else None,
    )


def watch_of(call: Call, top: int) -> Watch:
    """The `top` keys of every row, and segments that differ between the batch entries."""
    batch, _, keys = call.sizes
    generator = torch.Generator().manual_seed(top)
    return Watch(top=top, segments=torch.randint(-1, 5, (batch, keys), generator=generator))


# -- Sizes


@settings(max_examples=60)
@given(call=calls(LENGTHS, LENGTHS, SIZES), top=st.sampled_from([1, 2, 7, 8, 9, 16]))
def test_every_size_around_the_edges_of_tiles(call: Call, top: int) -> None:
    check(call, watch_of(call, top))


@settings(max_examples=40)
@given(call=calls(list(range(1, 9)), MANY_KEYS, [1, 5, 8, 16, 33, 64]), top=st.sampled_from([1, 3, 8, 13, 64]))
def test_few_rows_and_many_keys_around_the_edges_of_chunks(call: Call, top: int) -> None:
    check(call, watch_of(call, top))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("rows", [1, 50])
def test_every_number_of_heads_in_a_group(rows: int, group: int) -> None:
    check(fixed(1, 2 * group, 2, rows, 130, 24, 40, rule=("causal",), start=130 - rows))


@pytest.mark.parametrize("value_size", [24, 64])
@pytest.mark.parametrize("size", [64, 40])
def test_a_batch_of_megabytes_gives_each_entry_the_bits_it_has_alone(size: int, value_size: int) -> None:
    call = fixed(4, 8, 2, 300, 90, size, value_size, rule=("causal",), start=-40)
    cotangents = torch.randn(4, 8, 300, value_size)

    def everything(entries: slice) -> tuple[Tensor, ...]:
        query, key, value = (tensor[entries].clone() for tensor in call.tensors)
        part = replace(call, query=query.requires_grad_(), key=key, value=value)
        output = attend(part, "native")
        observed, seen = attend_observed(part, "native", Watch(top=2))
        (gradient,) = torch.autograd.grad(output, query, cotangents[entries])
        return output, observed, gradient, seen.logsumexp, seen.top_weights

    together = everything(slice(None))
    for b in range(4):
        alone = everything(slice(b, b + 1))
        assert all(torch.equal(some[b : b + 1], one) for some, one in zip(together, alone, strict=True))
    check(call, Watch(top=2))


# -- Masks

TENSOR_STARTS = torch.tensor([0, 37, -5])
MASKS: dict[str, oracle.Rule | None] = {
    "none": None,
    "causal": ("causal",),
    "window": ("window", 60, 3),
    "window to the left": ("window", None, 5),
    "window to the right": ("window", 5, None),
    "padding": ("padding", torch.tensor([140, 3, 77]), torch.tensor([90, 1, 64]), False),
    "left padding": ("padding", torch.tensor([140, 3, 77]), torch.tensor([90, 1, 64]), True),
    "no keys at all": ("padding", torch.tensor([0, 140, 0]), None, False),
    "prefix or causal": ("or", ("causal",), ("prefix", 70)),
    "prefixes or causal": ("or", ("causal",), ("prefix", torch.tensor([5, 70, 140]))),
    "documents": ("documents", torch.tensor([[20, 1, 60], [64, 64, 12], [0, 3, 30]]), None),
    "documents of other keys": ("documents", torch.tensor([[20, 1, 60]]), torch.tensor([[64, 0, 70]])),
    "dense": ("dense", torch.rand(3, 4, 90, 140, generator=torch.Generator().manual_seed(1)) < 0.3),
    "dense for all rows": ("dense", torch.rand(3, 1, 1, 140, generator=torch.Generator().manual_seed(2)) < 0.5),
    "dense for all keys": ("dense", torch.rand(4, 90, 1, generator=torch.Generator().manual_seed(3)) < 0.5),
    "window or window": ("or", ("window", 3, 0), ("window", 0, 40)),
}


@pytest.mark.parametrize("start", [0, 50, TENSOR_STARTS], ids=["at 0", "at 50", "everywhere"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_at_every_start(mask: str, start: int | Tensor) -> None:
    check(fixed(3, 4, 2, 90, 140, 16, rule=MASKS[mask], start=start))


@pytest.mark.parametrize("start", [136, torch.tensor([136, 37, -2])], ids=["at the end", "everywhere"])
@pytest.mark.parametrize("mask", [name for name in MASKS if "dense" not in name])
def test_every_mask_of_a_few_rows(mask: str, start: int | Tensor) -> None:
    rule = MASKS[mask]
    if rule is not None and rule[0] == "padding":
        rule = (*rule[:2], torch.tensor([4, 1, 0]), rule[3])
    check(fixed(3, 4, 2, 4, 140, 16, rule=rule, start=start))


@pytest.mark.parametrize("mask", ["causal", "window", "left padding", "prefix or causal", "documents"])
def test_ranges_and_a_matrix_together(mask: str) -> None:
    for shape in ((90, 140), (3, 1, 1, 140), (4, 90, 1)):
        allowed = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.7
        check(fixed(3, 4, 2, 90, 140, 16, rule=both(MASKS[mask], ("dense", allowed)), start=TENSOR_STARTS))


# -- Memory


def far_apart(tensor: Tensor, bytes_apart: int) -> Tensor:
    """The same numbers, with neighbouring rows a given distance apart."""
    apart = bytes_apart // tensor.element_size()
    buffer = torch.full((*tensor.shape[:3], apart), torch.nan, dtype=tensor.dtype)
    buffer[..., : tensor.shape[3]] = tensor
    return buffer[..., : tensor.shape[3]]


def every_third(tensor: Tensor) -> Tensor:
    """The same numbers, three apart, with NaN between them."""
    other = torch.full_like(tensor, torch.nan)
    return torch.stack((other, tensor, other), -1).flatten(-2)[..., 1::3]


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    **{layout: (lambda tensor, layout=layout: laid_out(tensor, layout)) for layout in LAYOUTS},
    "every third column": every_third,
    "rows 2048 bytes apart": lambda tensor: far_apart(tensor, 2048),
    "rows 4096 bytes apart": lambda tensor: far_apart(tensor, 4096),
    "one entry expanded": lambda tensor: tensor[:1].expand_as(tensor),
    "one head expanded": lambda tensor: tensor[:, :1].expand_as(tensor),
    "one row expanded": lambda tensor: tensor[:, :, :1].expand_as(tensor),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [3, 60])
@pytest.mark.parametrize("place", PLACES)
def test_every_place_in_memory(place: str, rows: int, dtype: torch.dtype) -> None:
    call = fixed(2, 4, 2, rows, 70, 20, 33, dtype=dtype, rule=("causal",), start=70 - rows)
    query, key, value = (PLACES[place](tensor) for tensor in call.tensors)
    check(replace(call, query=query, key=key, value=value))


@pytest.mark.parametrize("rows", [2, 50])
def test_a_bias_broadcast_in_each_dimension(rows: int) -> None:
    call = fixed(2, 4, 2, rows, 70, 16, rule=("causal",), start=70 - rows)
    whole = torch.randn(2, 4, rows, 70)
    for n, sizes in enumerate(product(*((1, full) for full in whole.shape))):
        part = whole[tuple(slice(size) for size in sizes)].to(DTYPES[n % 3])
        part = part.masked_fill(torch.rand(part.shape) < 0.1, -torch.inf) if n % 2 else part
        check(replace(call, bias=laid_out(part, LAYOUTS[n % len(LAYOUTS)])), differentiate=n % 4 == 0)


def test_dense_masks_lie_anywhere_in_memory() -> None:
    allowed = torch.rand(2, 4, 50, 70) < 0.5
    for layout in LAYOUTS[1:]:
        view = laid_out(allowed.char(), layout)
        check(fixed(2, 4, 2, 50, 70, 16, rule=("dense", view.bool())), differentiate=False)
    strided = torch.zeros(2, 4, 50, 140, dtype=torch.bool)[..., ::2]
    strided.copy_(allowed)
    check(fixed(2, 4, 2, 50, 70, 16, rule=("dense", strided.transpose(0, 0))))


# -- Threads

SEVERAL: dict[str, Call] = {
    "causal": fixed(2, 6, 2, 200, 200, 32, rule=("causal",)),
    "long window": fixed(1, 2, 1, 700, 2600, 64, rule=("window", 300, 0), start=1900),
    "long documents": fixed(1, 2, 2, 700, 2600, 64, rule=("documents", torch.tensor([33, 450, 217]), None)),
    "one head": fixed(1, 1, 1, 400, 300, 16),
    "half precision": fixed(1, 3, 1, 150, 400, 40, dtype=torch.bfloat16, rule=("causal",), start=250),
    "matrix": fixed(2, 2, 1, 100, 90, 16, rule=("dense", torch.rand(2, 1, 100, 90) < 0.5)),
    "alibi, softcap and sink": fixed(
        2, 4, 2, 130, 140, 16, bias=ALiBi(torch.rand(4)), softcap=3.0, sink_logits=torch.randn(4)
    ),
    "decoding": fixed(2, 4, 2, 1, 3000, 64, rule=("causal",), start=2999),
    "decoding one head": fixed(1, 2, 1, 2, 5000, 16, rule=("window", 4000, 0), start=4998),
    "holes": fixed(2, 2, 1, 4, 300, 16, rule=("documents", torch.tensor([1, 1, 1, 1]), torch.tensor([9, 80, 3, 70]))),
}


def everything_of(call: Call) -> dict[str, Tensor]:
    """Output, all that was observed, and all gradients."""
    watch = watch_of(call, 5)
    output, seen = attend_observed(call, "native", watch)
    fields = {name: field for name in FIELDS if (field := getattr(seen, name)) is not None}
    grads = {f"gradient of {name}": found for name, found in gradients(call, "native").items()}
    return {"output": attend(call, "native"), "observed output": output, **fields, **grads}


@pytest.mark.parametrize("name", SEVERAL)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    with threads(1):
        alone = everything_of(SEVERAL[name])
    for count in (2, 3, 7):
        with threads(count):
            together = everything_of(SEVERAL[name])
        differ = [
            what for what in alone if not torch.equal(alone[what].nan_to_num(7.0), together[what].nan_to_num(7.0))
        ]
        assert not differ, f"with {count} threads: {', '.join(differ)}"
