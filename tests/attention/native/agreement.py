"""Holds what the native kernel gives for a call against the reference in float64."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from regard import Observation, Watch
from regard.attention import reference
from regard.attention.native import library
from regard.attention.request import checked
from tests.contract.backends import attend, attend_observed, cotangent, leaf_names
from tests.contract.cases import Call, assert_near
from tests.contract.oracle import Answer, first_positions
from tests.contract.test_observing import check_rows, check_top

ISAS = library.isas()
"""The instruction sets that this machine runs; none where the library was not built."""


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """While active, the kernel computes with the instruction set `name`."""
    before = library.isa()
    library.use_isa(name)
    try:
        yield
    finally:
        if before is not None:
            library.use_isa(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """While active, PyTorch and the kernel work on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def answer_of(call: Call) -> Answer:
    """What the reference says, as whole matrices in float64."""
    exact = call.to(torch.float64)
    request = checked(*exact.tensors, **exact.options)
    raw, capped, scores, weights = reference._matrices(request)
    batch, rows, _ = call.sizes
    allowed = scores > -math.inf
    value = exact.value.repeat_interleave(weights.shape[1] // exact.value.shape[1], 1)
    logsumexp = reference._logsumexp(request, scores)
    sink = torch.zeros_like(logsumexp)
    if exact.sink_logits is not None:
        sink = torch.exp(exact.sink_logits[:, None] - logsumexp)
    return Answer(
        output=reference._output(request, weights),
        raw=raw,
        capped=capped,
        scores=scores,
        weights=weights,
        allowed=allowed,
        real=torch.ones(batch, rows, dtype=torch.bool),  # the weights of other rows are zero
        logsumexp=logsumexp,
        sink_weight=sink,
        value=value.masked_fill(~allowed.any(2)[..., None], 0.0),
        positions=first_positions(call.start, batch)[:, None] + torch.arange(rows),
        largest_score=max(float(raw.abs().max()), float(scores.masked_fill(~allowed, 0.0).abs().max())),
    )


def sorted_keys(answer: Answer, k: int) -> Tensor:
    """(B, Hq, Lq, k): the keys of the largest scores, equal ones by lowest key, -1 where a row sees no more."""
    there = min(k, answer.scores.shape[-1])
    values, order = (found[..., :there] for found in answer.scores.sort(dim=-1, descending=True, stable=True))
    keys = torch.full((*answer.scores.shape[:-1], k), -1)
    keys[..., :there] = order.masked_fill(values == -math.inf, -1)
    return keys


def check_output(call: Call, answer: Answer, output: Tensor) -> None:
    """The output, to the precision of its dtype."""
    assert output.dtype == call.query.dtype
    assert_near(output, answer.output, call.output_tolerance(answer), "output")


def check_observation(call: Call, answer: Answer, watch: Watch, seen: Observation) -> None:
    """Every field of an Observation that was asked for; the others are None."""
    tolerance = call.tolerance(answer)
    everything = slice(None)
    if watch.entropy and watch.position:
        check_rows(seen, answer, tolerance, everything, call.sink_logits is not None)
    else:
        assert (seen.entropy is not None) == watch.entropy
        assert (seen.mean_position is not None) == (seen.mean_distance is not None) == watch.position
        assert_near(seen.logsumexp, answer.logsumexp, tolerance, "logsumexp")
        assert_near(seen.max_weight, answer.weights.amax(-1), tolerance, "max_weight")
    if watch.top:
        check_top(seen, answer, watch.top, tolerance, everything)
    else:
        assert seen.top_keys is None and seen.top_weights is None and seen.rest is None
    assert (seen.received is not None) == watch.received
    if seen.received is not None:
        assert_near(seen.received, answer.received(), tolerance, "received")
    assert (seen.segment_mass is not None) == (watch.segments is not None)
    if seen.segment_mass is not None and watch.segments is not None:
        count = max(int(watch.segments.max()) + 1, 0)
        expected = answer.segment_mass(torch.atleast_2d(watch.segments), count)
        assert_near(seen.segment_mass, expected, tolerance, "segment_mass")


def gradients(call: Call, backend: str, watch: Watch | None = None) -> dict[str, Tensor]:
    """The gradients, under `cotangent`, of all that the kernel gives one to; with `watch`, of an observed call."""
    names = leaf_names(call)
    leaves = [leaf.detach() for leaf in call.leaves()]
    wanted = {
        name: leaf.requires_grad_()
        for name, leaf in zip(names, leaves, strict=True)
        if name != "bias" or not isinstance(call.bias, Tensor)
    }
    same = call.with_leaves(leaves)
    output = attend(same, backend) if watch is None else attend_observed(same, backend, watch)[0]
    found = torch.autograd.grad(output, list(wanted.values()), cotangent(output).to(output.dtype))
    return dict(zip(wanted, found, strict=True))


def check_gradients(call: Call, answer: Answer, found: dict[str, Tensor]) -> None:
    """Every gradient of the call, in proportion to the largest of its tensor."""
    tolerance, eps = 20 * call.tolerance(answer), torch.finfo(call.query.dtype).eps
    for name, exact in gradients(call.to(torch.float64), "reference").items():
        largest, allowed = max(1.0, float(exact.abs().max())), tolerance
        if call.query.dtype != torch.float32:
            allowed += 8 * eps
        assert_near(found[name] / largest, exact / largest, allowed, f"gradient of {name}")


def check(call: Call, watch: Watch | None = None, *, differentiate: bool = True) -> None:
    """Output, observation and gradients of the native kernel agree with the reference."""
    watch = watch or Watch(top=5, segments=torch.arange(call.key.shape[2]) // 7 % 4 - 1)
    answer = answer_of(call)
    check_output(call, answer, attend(call, "native"))
    output, seen = attend_observed(call, "native", watch)
    check_output(call, answer, output)
    check_observation(call, answer, watch, seen)
    if differentiate:
        check_gradients(call, answer, gradients(call, "native"))
