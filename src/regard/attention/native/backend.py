"""The native kernel as a backend: what it serves, what it is preferred for, and the calls themselves."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from regard.attention import fused
from regard.attention.native import compiled, operator
from regard.attention.native.lowering import Lowered, lowered
from regard.attention.native.questions import Answers
from regard.attention.native.refusal import refuses as refuses
from regard.attention.observation import SEEN, Observation, Watch, kept
from regard.attention.request import Request

MOST_TOP = 64
SMALL = 1 << 20
"""Multiplications of a call with gradients, or in torch.compile, below which PyTorch's own kernel is called."""


def attend(request: Request) -> Tensor:
    """softmax(scores) · value, (B, Hq, Lq, Dv)."""
    call = lowered(request)
    if torch.compiler.is_compiling():
        return compiled.attend(*call)[0].to(call.query.dtype)
    if _needs_gradient(call):
        return operator.Attend.apply(*call)  # type: ignore[no-any-return]
    return operator.output_of(call)


def attend_observed(request: Request, watch: Watch) -> tuple[Tensor, Observation]:
    """The output of `attend`, and what each row saw."""
    if watch.rows is not None or watch.top > MOST_TOP:
        return fused.attend_observed(request, watch)
    call = lowered(request)
    segments, count = None, 0
    if watch.segments is not None:
        segments = torch.atleast_2d(watch.segments).to(torch.int32).contiguous()
        count = max(int(segments.max()) + 1, 0) if segments.numel() else 0
    asked = (watch.top, watch.received, watch.entropy, watch.position, segments, count)
    what = kept(request) if watch.keep else None
    if torch.compiler.is_compiling():
        output, fields = _compiled(call, watch, segments, count)
        return output, Observation(kept=what, **fields)
    if _needs_gradient(call):
        output, *seen = operator.AttendObserved.apply(asked, *call)  # type: ignore[misc]
        answers = None if what is None else Answers(what, seen[0])
        return output, Observation(kept=what, answers=answers, **dict(zip(SEEN, seen, strict=True)))
    output, packed = operator.forward_observed(call, *asked)
    answers = None if what is None else Answers(what, cast("Tensor", packed.field("logsumexp")))
    return output, Observation.unpacked_later(packed, what, answers)


def _compiled(call: Lowered, watch: Watch, segments: Tensor | None, count: int) -> tuple[Tensor, dict[str, Any]]:
    """`operator.forward_observed` inside torch.compile. Where gradients are needed, they come from a second pass."""
    tensors, *numbers = compiled.split(call)
    detached = [None if tensor is None else tensor.detach() for tensor in tensors]
    asked = [watch.received, watch.entropy, watch.position]
    output, *fields = compiled.attend_observed(detached, *numbers, watch.top, asked, segments, count)
    if _needs_gradient(call):
        output = compiled.attend(*call)[0].to(call.query.dtype)
    wanted = {
        "top_keys": watch.top > 0,
        "top_weights": watch.top > 0,
        "rest": watch.top > 0,
        "entropy": watch.entropy,
        "sink_weight": call.sink is not None,
        "mean_position": watch.position,
        "mean_distance": watch.position,
        "received": watch.received,
        "segment_mass": segments is not None,
    }
    named = zip(SEEN, fields, strict=True)
    return output, {name: field if wanted.get(name, True) else None for name, field in named}


def prefers(request: Request, observed: bool) -> bool:
    """Whether the kernel is not slower than PyTorch's for a call.

    It is but in small calls that go through autograd or torch.compile, whose entry into Python takes longer than they
    do: forward and backward of 12 heads of 16 × 16 rows of 64 take PyTorch 310 µs and the kernel 440, of 50 × 50 rows
    580 and 660. Without gradients 12 heads of one row and 64 keys of 64 take the kernel 28 µs and `fused` 36.
    """
    if observed or not (torch.compiler.is_compiling() or request.needs_grad()):
        return True
    if not fused.is_one_call(request):
        return True
    B, Hq, Lq, D = request.query.shape
    return B * Hq * Lq * request.Lk * (D + request.value.shape[3]) >= SMALL


def _needs_gradient(call: Lowered) -> bool:
    if not torch.is_grad_enabled():
        return False
    tensors = (call.query, call.key, call.value, call.distance, call.sink)
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
