"""The native kernel as PyTorch calls it: plain functions, their gradients, and operators that torch.compile can see.

Called directly where nothing is compiled, since an operator of `torch.library` takes ten times as long to call as the
kernel does; inside torch.compile the same functions are the operators `regard::attend` and `regard::attend_observed`.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regard.attention.native import library
from regard.attention.native.lowering import Lowered, packed_call, packed_gradients, packed_push, packed_seen
from regard.attention.observation import SEEN


class Seen:
    """What an observed call saw, in one buffer but for the keys, which are integers: `Packed` of an Observation.

    Args:
        call: that is observed.
        top, received, entropy, position: as in a Watch.
        segments: how many there are; None where none were given.
    """

    __slots__ = ("_at", "_buffer", "_sizes", "_top_keys")

    def __init__(
        self, call: Lowered, top: int, received: bool, entropy: bool, position: bool, segments: int | None
    ) -> None:
        B, Hq, Lq, _ = call.query.shape
        Lk = call.key.shape[2]
        rows = B * Hq * Lq
        at = {"logsumexp": 0, "max_weight": rows}  # where each begins, in numbers of four bytes
        end = 2 * rows
        if top:
            at["rest"], at["top_weights"] = end, end + rows
            end += rows + rows * top
        if entropy:
            at["entropy"] = end
            end += rows
        if position:
            at["mean_position"], at["mean_distance"] = end, end + rows
            end += 2 * rows
        if call.sink is not None:
            at["sink_weight"] = end
            end += rows
        if segments is not None:
            at["segment_mass"] = end
            end += rows * segments
        if received:
            at["received"] = end
            end += B * Hq * Lk
        self._at, self._sizes = at, (B, Hq, Lq, Lk, top, segments)
        # PyTorch saves no two tensors of one piece of memory that differ in dtype.
        self._top_keys = torch.empty(B, Hq, Lq, top, dtype=torch.int32, device="cpu") if top else None
        self._buffer = torch.empty(end, dtype=torch.float32, device="cpu")

    def addresses(self) -> dict[str, int]:
        """Where the kernel writes each field."""
        begin = self._buffer.data_ptr()
        found = {name: begin + 4 * at for name, at in self._at.items()}
        if self._top_keys is not None:
            found["top_keys"] = self._top_keys.data_ptr()
        return found

    def field(self, name: str) -> Tensor | None:
        """See `Packed.field`."""
        if name == "top_keys":
            return self._top_keys
        at = self._at.get(name)
        if at is None:
            return None
        B, Hq, Lq, Lk, top, segments = self._sizes
        size = (Lk,) if name == "received" else (Lq,)
        if name == "top_weights":
            size = (Lq, top)
        elif name == "segment_mass":
            size = (Lq, segments or 0)
        shape = (B, Hq, *size)
        return self._buffer[at : at + math.prod(shape)].view(shape)


def output_of(call: Lowered) -> Tensor:
    """The output (B, Hq, Lq, Dv)."""
    output = _output(call)
    _succeed(_library().regard_attend(packed_call(call, output, 0, torch.get_num_threads())))
    return output


def forward(call: Lowered) -> tuple[Tensor, Tensor]:
    """The output and the logsumexp (B, Hq, Lq), both float32 whatever the call's dtype is, as the gradient needs them.

    It takes differences between what an output and its values are worth, and in half precision a large output would be
    rounded by more than that.
    """
    logsumexp = torch.empty(call.query.shape[:3], dtype=torch.float32, device="cpu")
    output = _output(call, torch.float32)
    packed = packed_call(call, output, logsumexp.data_ptr(), torch.get_num_threads())
    _succeed(_library().regard_attend(packed))
    return output, logsumexp


def forward_observed(
    call: Lowered,
    top: int,
    received: bool,
    entropy: bool,
    position: bool,
    segments: Tensor | None,
    segment_count: int,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Seen]:
    """The output, and the fields of an Observation that were asked for.

    Args:
        call: what is computed.
        top, received, entropy, position: as in a Watch.
        segments: (B|1, Lk) int32, or None.
        segment_count: how many there are.
        dtype: of the output: float32 where a gradient is wanted; None is the call's.
    """
    output = _output(call, dtype)
    seen = Seen(call, top, received, entropy, position, None if segments is None else segment_count)
    at = seen.addresses()
    packed = packed_call(call, output, at["logsumexp"], torch.get_num_threads())
    _succeed(_library().regard_attend_observed(packed, packed_seen(at, top, segments, segment_count)))
    return output, seen


def backward(
    call: Lowered, output: Tensor, logsumexp: Tensor, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of query, key, value, distances and sink, from what `forward` returned."""
    gradients = (torch.empty_like(call.query), torch.empty_like(call.key), torch.empty_like(call.value))
    distance = None
    if call.distance is not None:
        distance = call.distance.new_zeros(call.query.shape[0], *call.distance.shape)
    packed = packed_call(call, output, logsumexp.data_ptr(), torch.get_num_threads())
    _succeed(_library().regard_backward(packed, packed_gradients(grad_output, gradients, distance)))
    sink = None
    if call.sink is not None:
        weight = torch.exp(call.sink[:, None] - logsumexp)  # (B, Hq, Lq), which went nowhere
        sink = -(weight * (grad_output.float() * output).sum(-1)).sum((0, 2))
    return (*gradients, None if distance is None else distance.sum(0), sink)


def push(call: Lowered, logsumexp: Tensor, r: Tensor, grad_output: Tensor | None) -> Tensor:
    """rᵀ P, or with grad_output rᵀ (G ⊙ P)₊, (B, Hq, Lk, d) of r (B, Hq, Lq, d), all of them float32."""
    B, Hq = logsumexp.shape[:2]
    out = torch.empty(B, Hq, call.key.shape[2], r.shape[3], dtype=torch.float32, device="cpu")
    packed = packed_call(call, call.query, logsumexp.data_ptr(), torch.get_num_threads())
    _succeed(_library().regard_push(packed, packed_push(r, grad_output, out)))
    return out


def _output(call: Lowered, dtype: torch.dtype | None = None) -> Tensor:
    query, Dv = call.query, call.value.shape[3]
    B, Hq, Lq, _ = query.shape
    if Lq == 1:
        return query.new_empty(B, Hq, 1, Dv, dtype=dtype)
    # (B, Lq, Hq, Dv) in memory: joining the heads afterwards copies nothing.
    return query.new_empty(B, Lq, Hq, Dv, dtype=dtype).transpose(1, 2)


def _library() -> Any:
    found = library.load()
    if found is None:
        raise RuntimeError(f"the native kernel is not there: {library.why_missing()}")
    return found


def _succeed(status: int) -> None:
    if status:
        raise MemoryError("attention: not enough memory")


class Attend(torch.autograd.Function):
    """`forward` with gradients, in the call's dtype."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """The output; `arguments` are the fields of a Lowered."""
        call = Lowered(*arguments)
        output, logsumexp = forward(call)
        _remember(ctx, call, output, logsumexp)
        return output.to(call.query.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """The gradients of all arguments of `forward`."""
        return _gradients(ctx, grad_outputs[0])


class AttendObserved(torch.autograd.Function):
    """`forward_observed` with gradients of the output."""

    @staticmethod
    def forward(ctx: Any, watch: tuple[Any, ...], *arguments: Any) -> tuple[Tensor | None, ...]:
        """The output, then SEEN; `watch` holds the further arguments of `forward_observed`."""
        call = Lowered(*arguments)
        output, seen = forward_observed(call, *watch, dtype=torch.float32)
        fields = [seen.field(name) for name in SEEN]
        # A copy: whoever writes to any of the fields writes to what the backward pass needs otherwise.
        _remember(ctx, call, output, cast("Tensor", fields[0]).clone())
        ctx.mark_non_differentiable(*(field for field in fields if field is not None))
        return (output.to(call.query.dtype), *fields)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """The gradients of all arguments of `forward`; only the output has one."""
        return (None, *_gradients(ctx, grad_outputs[0]))


def _remember(ctx: Any, call: Lowered, output: Tensor, logsumexp: Tensor) -> None:
    arguments = tuple(call)
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    ctx.save_for_backward(*tensors, output, logsumexp)
    ctx.arguments = [None if isinstance(argument, Tensor) else (argument,) for argument in arguments]


@once_differentiable
def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, output, logsumexp = ctx.saved_tensors
    left = iter(tensors)
    call = Lowered(*(next(left) if kept is None else kept[0] for kept in ctx.arguments))
    query, key, value, distance, sink = backward(call, output, logsumexp, grad_output)
    gradients = {"query": query, "key": key, "value": value, "distance": distance, "sink": sink}
    return tuple(gradients.get(name) for name in Lowered._fields)
