"""Random calls of the attention mechanism, each with the answer that the oracle gives to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import regard
from regard.attention.position import ALiBi, LogBuckets, RelativeBias
from tests.contract import oracle
from tests.contract.oracle import Rule

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SINGLE = torch.finfo(torch.float32).eps


def build(rule: Rule | None) -> Any:
    """The package's mask of a rule."""
    if rule is None:
        return None
    name, *rest = rule
    if name == "and":
        return build(rest[0]) & build(rest[1])
    if name == "or":
        return build(rest[0]) | build(rest[1])
    kinds = {
        "causal": regard.Causal,
        "window": regard.Window,
        "padding": regard.Padding,
        "prefix": regard.Prefix,
        "documents": regard.Documents,
        "dense": regard.Dense,
    }
    return kinds[name](*rest)


def both(*rules: Rule | None) -> Rule | None:
    """All of the rules at once."""
    there = [rule for rule in rules if rule is not None]
    joined: Rule | None = None
    for rule in there:
        joined = rule if joined is None else ("and", joined, rule)
    return joined


@dataclass(frozen=True)
class Call:
    """One call: its tensors, its mask as a rule, and everything else that `attend` takes."""

    query: Tensor
    key: Tensor
    value: Tensor
    rule: Rule | None = None
    bias: Any = None
    start: int | Tensor = 0
    scale: float | None = None
    softcap: float | None = None
    sink_logits: Tensor | None = None
    mask: Any = None  # one of the package's own, for tests that need no rule

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Batch, rows, keys."""
        return self.query.shape[0], self.query.shape[2], self.key.shape[2]

    @cached_property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the call."""
        return {
            "mask": self.mask if self.rule is None else build(self.rule),
            "bias": self.bias,
            "start": self.start,
            "scale": self.scale,
            "softcap": self.softcap,
            "sink_logits": self.sink_logits,
        }

    @property
    def allowed(self) -> Tensor:
        """(B, Hq, Lq, Lk)."""
        return oracle.sees(self.rule, *self.sizes, self.start).expand(
            self.query.shape[0], self.query.shape[1], self.query.shape[2], self.key.shape[2]
        )

    @property
    def dense_bias(self) -> Tensor | None:
        """The bias as the oracle takes it: a tensor."""
        if isinstance(self.bias, ALiBi):
            return oracle.alibi(self.bias.slopes.double(), *self.sizes, self.start)
        if isinstance(self.bias, RelativeBias):
            return oracle.relative_bias(self.bias.table.double(), self.bias.buckets, *self.sizes, self.start)
        return self.bias

    def answer(self) -> oracle.Answer:
        """What the oracle says."""
        return oracle.attend(
            *self.tensors,
            allowed=self.allowed,
            bias=self.dense_bias,
            start=self.start,
            scale=self.scale,
            softcap=self.softcap,
            sink_logits=self.sink_logits,
            real=oracle.real_rows(self.rule, self.sizes[0], self.sizes[1]),
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """The same call with every floating tensor in it changed: query, key, value, bias, sink, in this order."""
        query, key, value = (change(tensor) for tensor in self.tensors)
        bias = self.bias
        if isinstance(bias, ALiBi):
            bias = ALiBi(change(bias.slopes))
        elif isinstance(bias, RelativeBias):
            bias = RelativeBias(change(bias.table), bias.buckets)
        elif bias is not None:
            bias = change(bias)
        sink = None if self.sink_logits is None else change(self.sink_logits)
        return replace(self, query=query, key=key, value=value, bias=bias, sink_logits=sink)

    def to(self, dtype: torch.dtype) -> "Call":
        return self.map(lambda tensor: tensor.to(dtype))

    def leaves(self) -> list[Tensor]:
        """The floating tensors that gradients can reach, in one order."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return found

    def with_leaves(self, leaves: list[Tensor] | tuple[Tensor, ...]) -> "Call":
        """The same call on other floating tensors, in the order of `leaves()`."""
        order = iter(leaves)
        return self.map(lambda _: next(order))

    def tolerance(self, answer: oracle.Answer) -> float:
        """What single precision may cost a statistic of this call."""
        return max(1e-5, 8 * SINGLE * answer.largest_score)

    def output_tolerance(self, answer: oracle.Answer) -> float:
        """What single precision, and a few roundings in the tensors' dtype, may cost the output."""
        rounding = 4 * torch.finfo(self.query.dtype).eps
        return (self.tolerance(answer) + rounding) * max(1.0, float(answer.value.abs().max()))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal to `tolerance`, absolute or relative, whichever is looser; infinities and NaN in the same places."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    same = torch.equal(finite, actual.isfinite())
    same = same and torch.equal(actual[~finite].nan_to_num(7.0), expected[~finite].nan_to_num(7.0))
    assert same, f"{what}: infinities or NaN differ"
    off = (actual - expected)[finite].abs() / expected[finite].abs().clamp(min=1.0)
    worst = float(off.max()) if off.numel() else 0.0
    assert worst <= tolerance, f"{what}: off by {worst:.3g}, allowed {tolerance:.3g}"


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers (B, H, L, D) in another memory layout."""
    if layout == "heads inside":  # (B, L, H, D) in memory, as projections leave them
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "every other column":
        return torch.stack((tensor, tensor + 1), -1).flatten(-2)[..., ::2]
    if layout == "columns first":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "part of a longer buffer":
        buffer = tensor.new_zeros(*tensor.shape[:2], tensor.shape[2] + 3, tensor.shape[3])
        buffer[:, :, 1:-2] = tensor
        return buffer[:, :, 1:-2]
    return tensor.contiguous()


LAYOUTS = ("contiguous", "heads inside", "every other column", "columns first", "part of a longer buffer")


@contextmanager
def own_random_state(seed: int) -> Iterator[torch.Generator]:
    """A generator of its own, so that drawing a case leaves the global state alone."""
    yield torch.Generator().manual_seed(seed)


def lengths(draw: Any, batch: int, most: int) -> Tensor:
    return torch.tensor([draw(st.integers(0, most)) for _ in range(batch)])


def documents(draw: Any, batch: int, longest: int) -> Rule:
    """Packed documents of queries, and sometimes others of keys."""
    count = draw(st.integers(1, 4))
    shared = draw(st.booleans())

    def some() -> Tensor:
        rows = [[draw(st.integers(0, max(1, longest))) for _ in range(count)] for _ in range(1 if shared else batch)]
        return torch.tensor(rows[0] if shared else rows)

    return ("documents", some(), some() if draw(st.booleans()) else None)


@st.composite
def simple_rules(draw: Any, batch: int, heads: int, rows: int, keys: int) -> Rule:
    """One mask of any kind."""
    kind = draw(st.sampled_from(["causal", "window", "padding", "prefix", "documents", "dense"]))
    side = st.none() | st.integers(0, keys)
    if kind == "causal":
        return ("causal",)
    if kind == "window":
        return ("window", draw(side), draw(side))
    if kind == "padding":
        return ("padding", lengths(draw, batch, keys), None, draw(st.booleans()))
    if kind == "prefix":
        return ("prefix", draw(st.integers(0, keys)))
    if kind == "documents":
        return documents(draw, batch, max(rows, keys))
    shape = [draw(st.sampled_from([1, size])) for size in (batch, heads, rows, keys)]
    seed, share = draw(st.integers(0, 99)), draw(st.sampled_from([0.3, 0.9]))
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    return ("dense", allowed[0, 0] if shape[:2] == [1, 1] and draw(st.booleans()) else allowed)


@st.composite
def rules(draw: Any, batch: int, heads: int, rows: int, keys: int) -> Rule | None:
    """No mask, one, or up to three joined by & and |, with padding of the query rows on top now and then."""
    simple = simple_rules(batch, heads, rows, keys)
    rule = draw(st.none() | simple)
    while rule is not None and draw(st.integers(0, 2)) == 0:
        rule = (draw(st.sampled_from(["and", "or"])), rule, draw(simple))
    if draw(st.integers(0, 3)) == 0:
        padding = ("padding", lengths(draw, batch, keys), lengths(draw, batch, rows), draw(st.booleans()))
        rule = both(rule, padding)
    return rule


@st.composite
def calls(
    draw: Any,
    *,
    longest: int = 70,
    widest: int = 24,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    inputs: str = "plain",
    square: bool = False,
    empty_starts: bool = True,
) -> Call:
    """Any call: grouped heads, unequal lengths and sizes, layouts, masks, biases, softcap, sinks.

    Args:
        inputs: plain, "offset" (shifted by 100) or "peaked" (scaled by 30).
        square: as many keys as rows, and Dv = D.
        empty_starts: start may be any position; otherwise it is 0.
    """
    batch, kv_heads, group = (draw(st.integers(1, 3)) for _ in range(3))
    heads = kv_heads * group
    rows, size = draw(st.integers(1, longest)), draw(st.integers(1, widest))
    keys = rows if square else draw(st.integers(1, longest))
    value_size = size if square else draw(st.integers(1, widest))
    dtype = draw(st.sampled_from(dtypes))
    with own_random_state(draw(st.integers(0, 2**16))) as generator:

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def part(*shape: int) -> Tensor:
            tensor = normal(*shape)
            tensor = tensor + 100 if inputs == "offset" else tensor * 30 if inputs == "peaked" else tensor
            return laid_out(tensor.to(dtype), draw(st.sampled_from(LAYOUTS)))

        query, key = part(batch, heads, rows, size), part(batch, kv_heads, keys, size)
        value = part(batch, kv_heads, keys, value_size)
        position = st.integers(0, keys)
        start: int | Tensor = 0
        if empty_starts and draw(st.booleans()):
            start = draw(position)
            if draw(st.booleans()):
                start = torch.tensor([draw(position) for _ in range(batch)])
        bias: Any = None
        kind = draw(st.sampled_from(["none", "none", "tensor", "alibi", "relative"]))
        if kind == "tensor":
            shape = [draw(st.sampled_from([1, full])) for full in (batch, heads, rows, keys)]
            bias = normal(*shape[draw(st.integers(0, 3)) if shape[:2] == [1, 1] else 0 :]).to(dtype)
        elif kind == "alibi":
            bias = ALiBi(normal(heads).abs())
        elif kind == "relative":
            bias = RelativeBias(normal(8, heads), LogBuckets(8, 20, bidirectional=draw(st.booleans())))
        sink = normal(heads) if draw(st.booleans()) else None
    return Call(
        query,
        key,
        value,
        rule=draw(rules(batch, heads, rows, keys)),
        bias=bias,
        start=start,
        scale=draw(st.none() | st.floats(0.05, 2.0)),
        softcap=draw(st.none() | st.sampled_from([0.7, 5.0, 30.0])),
        sink_logits=sink,
    )


def fixed(
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    rows: int = 9,
    keys: int = 11,
    size: int = 8,
    value_size: int | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Call:
    """A call of given sizes on normal random numbers."""
    with own_random_state(seed) as generator:
        shapes = ((heads, rows, size), (kv_heads, keys, size), (kv_heads, keys, value_size or size))
        parts = [torch.randn(batch, *shape, generator=generator).to(dtype) for shape in shapes]
    return Call(*parts, **options)
