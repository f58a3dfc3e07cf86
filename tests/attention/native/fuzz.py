"""Random calls of the native kernel, held against the reference in float64, for as long as one likes.

    python -m tests.attention.native.fuzz --seconds 60 --seed 0

Every tensor that the kernel reads or writes lies in a bigger buffer, with numbers around it that must neither reach a
result nor change. A failure prints the command that repeats its case alone.
"""

import argparse
import math
import random
import sys
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regard import Watch
from regard.attention.native import library
from regard.attention.native.lowering import Lowered, lowered, packed_call, packed_gradients, packed_seen
from regard.attention.observation import SEEN
from regard.attention.position import ALiBi, LogBuckets, RelativeBias
from regard.attention.request import checked
from tests.attention.native.agreement import (
    answer_of,
    check_gradients,
    check_observation,
    check_output,
    gradients,
    instruction_set,
    sorted_keys,
    threads,
)
from tests.contract.backends import attend, attend_observed, cotangent
from tests.contract.cases import DTYPES, Call, both
from tests.contract.oracle import Rule

MOST_WORK = 6_000_000
"""Multiplications of one product of a case: what the reference does in some milliseconds."""


class Buffers:
    """Makes tensors that are views into bigger buffers, and knows whether what lies around them has changed."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._made: list[tuple[Tensor, Tensor, Tensor]] = []  # buffer, as it was, and which of it belongs to the view

    def place(self, tensor: Tensor, *, compact: bool = False) -> Tensor:
        """The same numbers as a view of another memory; `compact`: without gaps between them."""
        view = self.room(tuple(tensor.shape), tensor.dtype, compact=compact)
        return view.copy_(tensor)

    def room(self, shape: tuple[int, ...], dtype: torch.dtype, *, compact: bool = False) -> Tensor:
        """A view of such a shape, of anything."""
        choose, strides = self._choose, [0] * len(shape)
        order = list(range(len(shape)))  # outermost dimension first
        distance = 1
        if not compact:
            if choose.random() < 0.5:
                order = choose.choice([[0, 2, 1, 3], [2, 0, 1, 3], [0, 1, 3, 2], [3, 2, 1, 0]])
            distance = choose.choice([1, 1, 1, 1, 2, 3])
        for dimension in reversed(order):
            strides[dimension] = distance
            distance *= shape[dimension]
            if not compact:
                distance += choose.choice([0, 0, 0, 1, 5, -distance % 512])
        offset, after = choose.choice([0, 1, 7, 40]), choose.choice([0, 0, 40])  # a sanitizer sees what is past the end
        size = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1 + after
        guard = math.nan if dtype.is_floating_point else -77
        buffer = torch.full((size,), guard, dtype=dtype)
        inside = torch.zeros(size, dtype=torch.bool)
        inside.as_strided(shape, strides, offset).fill_(True)
        self._made.append((buffer, buffer.clone(), inside))
        return buffer.as_strided(shape, strides, offset)

    def check(self) -> None:
        """Raises AssertionError where a number around a view is not what it was."""
        for buffer, before, inside in self._made:
            changed = (_bits(buffer) != _bits(before)) & ~inside
            assert not bool(changed.any()), f"written at {changed.nonzero()[:8, 0].tolist()} of {len(buffer)} numbers"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view({4: torch.int32, 2: torch.int16, 8: torch.int64, 1: torch.int8}[tensor.element_size()])


def same_bits(one: Tensor, other: Tensor, what: str) -> None:
    """Raises AssertionError where two tensors differ; NaN equals NaN."""
    same = torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)) and torch.equal(one.isnan(), other.isnan())
    assert same, f"{what} differs from what regard.attend gives"


# -- Drawing a case


@dataclass(frozen=True)
class Case:
    """A call, what to watch, and on how many threads."""

    call: Call
    watch: Watch
    threads: int
    inputs: str
    poisoned: bool

    def __str__(self) -> str:
        call = self.call
        shapes = ", ".join(f"{tuple(tensor.shape)} by {tensor.stride()}" for tensor in call.tensors)
        bias = tuple(call.bias.shape) if isinstance(call.bias, Tensor) else type(call.bias).__name__
        return (
            f"{self.inputs} {call.query.dtype}: {shapes}; rule {call.rule and call.rule[0]}, bias {bias},"
            f" start {call.start}, scale {call.scale}, softcap {call.softcap}, sink {call.sink_logits is not None},"
            f" top {self.watch.top}, {self.threads} threads, {'with' if self.poisoned else 'without'} NaN unseen"
        )


class Draw:
    """Everything about one case, from one seed."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.buffers = Buffers(self.choose)

    def chance(self, probability: float) -> bool:
        return self.choose.random() < probability

    def up_to(self, *most: int) -> int:
        """A number from 1 to one of `most`."""
        return self.choose.randint(1, self.choose.choice(most))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def sizes(self) -> tuple[int, ...]:
        """B, Hq, Hkv, Lq, Lk, D, Dv."""
        while True:
            batch, kv_heads, group = self.up_to(1, 3), self.up_to(1, 3), self.up_to(1, 1, 4, 6)
            rows, keys = self.up_to(1, 8, 40, 200), self.up_to(8, 70, 300, 2500)
            size, value_size = (self.choose.choice([self.up_to(16, 70), 8 * self.up_to(8, 32)]) for _ in range(2))
            if batch * kv_heads * group * rows * keys * max(size, value_size) <= MOST_WORK:
                return batch, kv_heads * group, kv_heads, rows, keys, size, value_size

    def lengths(self, count: int, most: int) -> Tensor:
        return torch.tensor([self.choose.choice([0, most, self.choose.randint(0, most)]) for _ in range(count)])

    def simple_rule(self, batch: int, heads: int, rows: int, keys: int) -> Rule:
        kind = self.choose.choice(["causal", "causal", "window", "padding", "prefix", "documents", "dense"])
        if kind == "window":
            sides = [None, 0, self.choose.randint(0, keys)]
            return ("window", self.choose.choice(sides), self.choose.choice(sides))
        if kind == "padding":
            padded_rows = self.lengths(batch, rows) if self.chance(0.5) else None
            return ("padding", self.lengths(batch, keys), padded_rows, self.chance(0.5))
        if kind == "prefix":
            return ("prefix", self.choose.choice([self.choose.randint(0, keys), self.lengths(batch, keys)]))
        if kind == "documents":
            count, entries = self.up_to(6), self.choose.choice([1, batch])
            some = [
                torch.stack([self.lengths(count, max(1, 2 * n // count)) for _ in range(entries)]) for n in (rows, keys)
            ]
            return ("documents", some[0], self.choose.choice([None, some[1]]))
        if kind == "dense":
            shape = [self.choose.choice([1, n]) for n in (batch, heads, rows, keys)]
            return ("dense", torch.rand(shape, generator=self.generator) < self.choose.choice([0.1, 0.6, 0.97]))
        return ("causal",)

    def rule(self, *sizes: int) -> Rule | None:
        rule = None if self.chance(0.2) else self.simple_rule(*sizes)
        while rule is not None and self.chance(0.3):
            other = self.simple_rule(*sizes)
            rule = both(rule, other) if self.chance(0.7) else ("or", rule, other)
        return rule

    def bias(self, dtype: torch.dtype, batch: int, heads: int, rows: int, keys: int) -> Any:
        kind = self.choose.choice(["none", "none", "none", "tensor", "alibi", "relative"])
        if kind == "alibi":
            return ALiBi(self.normal(heads).abs())
        if kind == "relative":
            return RelativeBias(self.normal(8, heads), LogBuckets(8, 20, bidirectional=self.chance(0.5)))
        if kind == "none":
            return None
        shape = [self.choose.choice([1, n]) for n in (batch, heads, rows, keys)]
        bias = self.normal(*shape).to(self.choose.choice([dtype, *DTYPES]))
        if self.chance(0.3):
            bias = bias.masked_fill(torch.rand(shape, generator=self.generator) < 0.2, -math.inf)
        return self.buffers.place(bias)

    def part(self, inputs: str, dtype: torch.dtype, *shape: int) -> Tensor:
        whole = [1 if n > 1 and self.chance(0.04) else n for n in shape[:2]]  # one entry or head, expanded
        tensor = self.normal(*whole, *shape[2:])
        tensor = {
            "plain": lambda: tensor,
            "offset": lambda: tensor + 10,
            "peaked": lambda: tensor * 20,
            "tied": lambda: tensor.round(),
            "zero": lambda: tensor * 0,
        }[inputs]()
        return self.buffers.place(tensor.to(dtype)).expand(shape)

    def watch(self, batch: int, keys: int) -> Watch:
        segments = None
        if self.chance(0.6):
            shape = self.choose.choice([(keys,), (1, keys), (batch, keys)])
            segments = torch.randint(-1, self.up_to(4, 20), shape, generator=self.generator)
        top = self.choose.choice([0, 1, self.up_to(8), self.up_to(8), self.up_to(64)])
        asked = {name: self.chance(0.85) for name in ("received", "entropy", "position")}
        return Watch(top=top, segments=segments, keep=False, **asked)

    def case(self) -> Case:
        batch, heads, kv_heads, rows, keys, size, value_size = self.sizes()
        inputs = self.choose.choice(["plain", "plain", "plain", "peaked", "tied", "zero", "offset"])
        dtype = self.choose.choice([torch.float32, *DTYPES])
        inputs = "plain" if inputs == "offset" and size > 64 else inputs  # long sums of large numbers lose digits
        shapes = ((heads, rows, size), (kv_heads, keys, size), (kv_heads, keys, value_size))
        query, key, value = (self.part(inputs, dtype, batch, *shape) for shape in shapes)

        def start() -> int:
            return self.choose.choice([0, keys - rows, self.choose.randint(-rows, keys)])

        call = Call(
            query,
            key,
            key if size == value_size and self.chance(0.1) else value,
            rule=self.rule(batch, heads, rows, keys),
            bias=self.bias(dtype, batch, heads, rows, keys),
            start=start() if self.chance(0.7) else torch.tensor([start() for _ in range(batch)]),
            scale=self.choose.choice([None, None, None, 1.0, 0.3, 0.0, -0.2]),
            softcap=self.choose.choice([None, None, None, 0.5, 30.0]),
            sink_logits=self.normal(heads) if self.chance(0.3) else None,
        )
        return Case(call, self.watch(batch, keys), self.up_to(1, 4), inputs, self.chance(0.5))

    def poison(self, call: Call) -> Call:
        """The call with NaN in keys and values that no row sees, and in the queries of rows that see nothing."""
        request = checked(*call.tensors, **call.options)
        if request.mask is None:
            return call
        tile = request.mask.tile(request.frame, request.frame.rows(slice(None)), range(request.Lk))
        allowed = tile.expand(request.B, request.Hq, request.Lq, request.Lk)
        unseen = ~allowed.any(2).unflatten(1, (request.Hkv, -1)).any(2)[..., None]
        key, value = (self.buffers.place(t.masked_fill(unseen, math.nan)) for t in (call.key, call.value))
        query = self.buffers.place(call.query.masked_fill(~allowed.any(3, keepdim=True), math.nan))
        return replace(call, query=query, key=key, value=value)


# -- Running it


def run(seed: int) -> None:
    """One case; raises AssertionError, or whatever else goes wrong."""
    draw = Draw(seed)
    case = draw.case()
    try:
        answer = answer_of(case.call)
        call = draw.poison(case.call) if case.poisoned else case.call
        with threads(case.threads):
            output = attend(call, "native")
            check_output(call, answer, output)
            observed_output, seen = attend_observed(call, "native", case.watch)
            check_output(call, answer, observed_output)
            check_observation(call, answer, case.watch, seen)
            exact = case.inputs in ("tied", "zero") and call.bias is None and call.softcap is None
            if exact and seen.top_keys is not None:
                assert torch.equal(seen.top_keys.long(), sorted_keys(answer, case.watch.top)), (
                    "equal scores: lowest key"
                )
            found = gradients(call, "native")
        # What large outputs lose, in half precision above all, adds up in the gradients of what all rows use.
        small = case.inputs not in ("peaked", "offset")
        if small or (call.query.dtype == torch.float32 and call.bias is None and call.sink_logits is None):
            check_gradients(case.call, answer, found)
        fields = {name: getattr(seen, name) for name in SEEN}
        _run_guarded(draw, case, call, output, {"output": observed_output, **fields}, found)
        draw.buffers.check()
    except Exception as error:
        error.add_note(str(case))
        raise


def _run_guarded(
    draw: Draw, case: Case, call: Call, output: Tensor, seen: dict[str, Tensor | None], found: dict[str, Tensor]
) -> None:
    """The same once more, on other threads, with results in guarded memory: the same bits, whatever their layout."""
    room, low = draw.buffers.room, lowered(checked(*call.tensors, **call.options))
    case = replace(case, threads=case.threads % 4 + 1)
    logsumexp = room(tuple(output.shape[:3]), torch.float32, compact=True)
    for dtype in {torch.float32, output.dtype}:  # the gradients are of what was not rounded
        ours = room(tuple(output.shape), dtype)
        assert library.load().regard_attend(packed_call(low, ours, logsumexp.data_ptr(), case.threads)) == 0
        same_bits(ours.to(output.dtype), output, "output")
        if dtype == torch.float32:
            _differentiate(draw, case, low, ours, logsumexp, found)

    ours = room(tuple(output.shape), output.dtype)
    fields = {
        name: None if field is None else room(tuple(field.shape), field.dtype, compact=True)
        for name, field in seen.items()
        if name != "output"
    }
    segments = case.watch.segments
    if segments is not None:
        segments = draw.buffers.place(torch.atleast_2d(segments).to(torch.int32), compact=True)
    at = {name: field.data_ptr() for name, field in fields.items() if field is not None}
    mass = fields["segment_mass"]
    where = packed_seen(at, case.watch.top, segments, 0 if mass is None else mass.shape[-1])
    packed = packed_call(low, ours, at["logsumexp"], case.threads)
    assert library.load().regard_attend_observed(packed, where) == 0
    for name, field in {"output": ours, **fields}.items():
        if field is not None:
            same_bits(field, seen[name], name)


def _differentiate(
    draw: Draw, case: Case, low: Lowered, output: Tensor, logsumexp: Tensor, found: dict[str, Tensor]
) -> None:
    room = draw.buffers.room
    grad_output = draw.buffers.place(cotangent(output).to(low.query.dtype))
    ours = [room(tuple(tensor.shape), tensor.dtype) for tensor in (low.query, low.key, low.value)]
    distance = None
    if low.distance is not None:
        distance = room((low.query.shape[0], *low.distance.shape), torch.float32, compact=True).zero_()
    packed = packed_call(low, output, logsumexp.data_ptr(), case.threads)
    assert library.load().regard_backward(packed, packed_gradients(grad_output, tuple(ours), distance)) == 0
    for name, gradient in zip(("query", "key", "value"), ours, strict=True):
        same_bits(gradient, found[name], f"gradient of {name}")


def main(arguments: list[str] | None = None) -> int:
    """Runs cases until the time is over or one fails; returns 1 if one did."""
    parser = argparse.ArgumentParser(prog="python -m tests.attention.native.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after so many seconds")
    parser.add_argument("--cases", type=int, help="stop after so many cases")
    parser.add_argument("--seed", type=int, default=0, help="the first case has this seed, the next one the next")
    parser.add_argument("--isa", help="one instruction set; all of them in turn unless given")
    given = parser.parse_args(arguments)
    if library.load() is None:
        print(library.why_missing())
        return 1
    names = [given.isa] if given.isa else library.isas()
    began, done = time.monotonic(), 0
    while time.monotonic() - began < given.seconds and (given.cases is None or done < given.cases):
        seed, name = given.seed + done, names[done % len(names)]
        try:
            with instruction_set(name):
                run(seed)
        except Exception:
            print(traceback.format_exc())
            print(f"again: python -m tests.attention.native.fuzz --cases 1 --seed {seed} --isa {name}")
            return 1
        done += 1
    print(f"{done} cases from seed {given.seed} on agree ({', '.join(names)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
