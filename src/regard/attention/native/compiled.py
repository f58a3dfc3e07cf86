"""The operators that torch.compile sees: `regard::attend`, `regard::attend_observed` and the gradient of the first.

Outside of a compiled function nothing comes through here: calling an operator takes longer than a small call of the
kernel does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from regard.attention.native import operator
from regard.attention.native.lowering import Lowered
from regard.attention.observation import SEEN

_NAMES = tuple(Lowered._fields)


@custom_op("regard::attend", mutates_args=())
def attend(  # noqa: PLR0913, what has a gradient must be an argument of its own
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first: Tensor | None,
    stop: Tensor | None,
    starts: Tensor | None,
    allowed: Tensor | None,
    bias: Tensor | None,
    distance: Tensor | None,
    sink: Tensor | None,
    range_kind: int,
    left: int,
    right: int,
    start: int,
    origin: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """`operator.forward` of a Lowered's fields: in float32, to be rounded by the caller."""
    return operator.forward(
        Lowered(
            *(query, key, value, first, stop, starts, allowed, bias, distance, sink),
            *(range_kind, left, right, start, origin),
            *(scale, softcap),
        )
    )


@custom_op("regard::attend_backward", mutates_args=())
def attend_backward(
    tensors: list[Tensor | None], numbers: list[int], factors: list[float], saved: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`operator.backward`; `saved` are output, logsumexp and the output's gradient. What has no gradient is empty."""
    output, logsumexp, grad_output = saved
    call = _joined(tensors, numbers, factors)
    grad_output = grad_output.to(call.query.dtype)  # what it was before the output's rounding passed it on
    query, key, value, distance, sink = operator.backward(call, output, logsumexp, grad_output)
    empty = query.new_empty
    return query, key, value, empty(0) if distance is None else distance, empty(0) if sink is None else sink


@custom_op("regard::attend_observed", mutates_args=())
def attend_observed(
    tensors: list[Tensor | None],
    numbers: list[int],
    factors: list[float],
    top: int,
    asked: list[bool],
    segments: Tensor | None,
    segment_count: int,
) -> list[Tensor]:
    """`operator.forward_observed`: output and SEEN. What was not asked for is empty."""
    call = _joined(tensors, numbers, factors)
    received, entropy, position = asked
    output, seen = operator.forward_observed(call, top, received, entropy, position, segments, segment_count)
    fields = (seen.field(name) for name in SEEN)  # copied, since an operator must not return parts of one buffer
    return [output, *(output.new_empty(0) if field is None else field.clone() for field in fields)]


def _joined(tensors: list[Tensor | None], numbers: list[int], factors: list[float]) -> Lowered:
    fields: list[Any] = [*tensors, *numbers, *factors]
    return Lowered(*fields)


def _like_output(query: Tensor, value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    B, Hq, Lq, _ = query.shape
    output = query.new_empty(B, Lq, Hq, value.shape[3], dtype=dtype).transpose(1, 2)
    return output, query.new_empty(B, Hq, Lq, dtype=torch.float32)


@attend.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _like_output(arguments[0], arguments[2], torch.float32)


@attend_backward.register_fake
def _(tensors: list[Any], *_: Any) -> tuple[Tensor, ...]:
    query, key, value = tensors[:3]
    distance, sink = tensors[-2:]
    like = [torch.empty_like(tensor) for tensor in (query, key, value)]
    return (*like, *(query.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in (distance, sink)))


@attend_observed.register_fake
def _(
    tensors: list[Any], numbers: Any, factors: Any, top: int, asked: list[bool], segments: Any, segment_count: int
) -> list[Tensor]:
    output, logsumexp = _like_output(tensors[0], tensors[2], tensors[0].dtype)
    B, Hq, Lq = logsumexp.shape
    sizes: dict[str, tuple[int, ...] | None] = {
        "logsumexp": (Lq,),
        "max_weight": (Lq,),
        "top_keys": (Lq, top) if top else None,
        "top_weights": (Lq, top) if top else None,
        "rest": (Lq,) if top else None,
        "entropy": (Lq,) if asked[1] else None,
        "sink_weight": (Lq,) if tensors[-1] is not None else None,
        "mean_position": (Lq,) if asked[2] else None,
        "mean_distance": (Lq,) if asked[2] else None,
        "received": (tensors[1].shape[2],) if asked[0] else None,
        "segment_mass": (Lq, segment_count) if segments is not None else None,
    }
    fields: list[Tensor] = []
    for name in SEEN:
        size = sizes[name]
        if size is None:
            fields.append(output.new_empty(0))
        else:
            dtype = torch.int32 if name == "top_keys" else torch.float32
            fields.append(logsumexp.new_empty(B, Hq, *size, dtype=dtype))
    return [output, *fields]


def split(arguments: tuple[Any, ...]) -> tuple[list[Tensor | None], list[int], list[float]]:
    """The fields of a Lowered as three lists: tensors, integers and floating-point numbers."""
    return list(arguments[:10]), list(arguments[10:15]), list(arguments[15:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, numbers, factors = split(inputs)
    ctx.there = [tensor is not None for tensor in tensors]
    ctx.numbers, ctx.factors = numbers, factors
    ctx.save_for_backward(*(tensor for tensor in tensors if tensor is not None), *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *there, output, logsumexp = ctx.saved_tensors
    left = iter(there)
    tensors = [next(left) if is_there else None for is_there in ctx.there]
    found = attend_backward(tensors, ctx.numbers, ctx.factors, [output, logsumexp, grad_output])
    names = ("query", "key", "value", "distance", "sink")
    present = dict(zip(_NAMES, tensors, strict=False))
    gradients = {name: gradient for name, gradient in zip(names, found, strict=True) if present[name] is not None}
    return tuple(gradients.get(name) for name in _NAMES)


attend.register_autograd(_backward, setup_context=_setup)
