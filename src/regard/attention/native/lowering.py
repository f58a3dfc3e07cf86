"""A checked call as the native kernel takes it: plain numbers, pointers and strides, packed field by field.

`Call`, `Seen`, `Gradients` and `Push` in cpp/call.h are the other side of what is packed here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from regard.attention import strips
from regard.attention.mask import Causal, Dense, Intersection, Mask, Window
from regard.attention.position import ALiBi, RelativeBias
from regard.attention.request import Request

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ALL_KEYS, OFFSETS, INTERVALS = range(3)
SPARE = 64
"""Numbers past the end of a bias of distances that the widest panel may read."""

LARGEST_MATRIX = 64 * 2**20
"""Bytes up to which a mask that is no intervals is written out as a boolean matrix."""

_CALL = struct.Struct("=10q 20q 2d 6q 2q")  # up to `start`
_REST = struct.Struct("=11q 3q 2q")  # from `allowed` on
_NO_REST = bytes(_REST.size)
_SEEN = struct.Struct("=14q")
_GRADIENTS = struct.Struct("=22q")
_PUSH = struct.Struct("=12q")
_NO_TENSOR = (0, 0, 0, 0, 0)


class Lowered(NamedTuple):
    """What the kernel's operators take: tensors first, then numbers.

    `first` and `stop` (B|1, Lq) are int64; `starts` (B,), too; `allowed` and `bias` have four dimensions; `distance`
    (Hq, …) is a bias by position - key + origin, in float32; left or right is -1 where unbounded; softcap 0 is none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    first: Tensor | None
    stop: Tensor | None
    starts: Tensor | None
    allowed: Tensor | None
    bias: Tensor | None
    distance: Tensor | None
    sink: Tensor | None
    range_kind: int
    left: int
    right: int
    start: int
    origin: int
    scale: float
    softcap: float


def lowered(request: Request) -> Lowered:
    """A call whose mask and bias the kernel can evaluate a tile at a time."""
    kind, left, right, ranges, allowed = _mask(request)
    if allowed is not None:
        request = strips.prepared(request)[0]
    starts, start, bias, distance, origin = None, request.start, request.bias, None, 0
    if isinstance(start, Tensor):
        starts, start = start.to(torch.int64).contiguous(), 0
    if bias is not None:
        distance, origin = _distances(request)
        bias = _four_dimensions(bias, request) if isinstance(bias, Tensor) else None
    return Lowered(  # by position: every call pays for it, and names cost more than the rest
        request.query,
        request.key,
        request.value,
        None if ranges is None else ranges[0].contiguous(),
        None if ranges is None else ranges[1].contiguous(),
        starts,
        None if allowed is None else _four_dimensions(allowed, request),
        bias,
        distance,
        None if request.sink_logits is None else request.sink_logits.float().contiguous(),
        kind,
        left,
        right,
        start,
        origin,
        request.scale,
        request.softcap or 0.0,
    )


def has_form(request: Request) -> bool:
    """Whether the mask is intervals, or small enough, or given, as a boolean matrix."""
    if request.mask is None or isinstance(request.mask, Causal | Window):
        return True
    parts = _parts(request.mask)
    given = [part for part in parts if isinstance(part, Dense)]
    rest = [part for part in parts if not isinstance(part, Dense)]
    matrix = len(given) > 1 or any(not _has_ranges(part) for part in rest)
    return not matrix or request.B * request.Hq * request.Lq * request.Lk <= LARGEST_MATRIX


def _parts(mask: Mask) -> list[Mask]:
    """Masks of which the intersection is `mask`."""
    return _parts(mask.a) + _parts(mask.b) if isinstance(mask, Intersection) else [mask]


def _has_ranges(mask: Mask) -> bool:
    return mask.key_ranges(0, 0) is not None


def _mask(request: Request) -> tuple[int, int, int, tuple[Tensor, Tensor] | None, Tensor | None]:
    """The kind of ranges, two offsets, two arrays, and a boolean matrix, for what cannot be said by ranges."""
    mask = request.mask
    if mask is None:
        return ALL_KEYS, -1, -1, None, None
    if isinstance(mask, Causal):
        return OFFSETS, -1, 0, None, None
    if isinstance(mask, Window):
        left, right = (-1 if side is None else side for side in (mask.left, mask.right))
        return OFFSETS, left, right, None, None
    frame = request.frame
    rows = frame.rows(range(frame.Lq))
    ranges: tuple[Tensor, Tensor] | None = mask.ranges(frame, rows)
    if ranges is not None:
        return INTERVALS, -1, -1, ranges, None
    allowed: Tensor | None = None
    for part in _parts(mask):
        found = part.ranges(frame, rows)
        if found is None:
            tile = part.tile(frame, rows, range(frame.Lk))
            allowed = tile if allowed is None else allowed & tile
        elif ranges is None:
            ranges = found
        else:
            first = torch.maximum(ranges[0], found[0])
            ranges = first, torch.maximum(torch.minimum(ranges[1], found[1]), first)
    return (ALL_KEYS if ranges is None else INTERVALS), -1, -1, ranges, allowed


def _four_dimensions(tensor: Tensor, request: Request) -> Tensor:
    """A view (B, Hq, Lq, Lk) whose broadcast dimensions have stride 0."""
    return tensor.expand(request.B, request.Hq, request.Lq, request.Lk)


def _distances(request: Request) -> tuple[Tensor | None, int]:
    """The bias of every distance position - key that the call has, (Hq, …), and where distance 0 stands."""
    bias, start = request.bias, request.start
    if not isinstance(bias, ALiBi | RelativeBias):
        return None, 0
    low, high = (int(start.min()), int(start.max())) if isinstance(start, Tensor) else (start, start)
    origin = request.Lk - 1 - low
    distance = torch.arange(-origin, high + request.Lq + SPARE)
    if isinstance(bias, ALiBi):
        return -bias.slopes.float()[:, None] * distance.abs().float(), origin
    return bias.table.float()[bias.buckets(-distance)].t().contiguous(), origin


def _tensor(tensor: Tensor | None) -> tuple[int, ...]:
    """Pointer and four strides, 0 where a dimension is broadcast."""
    return _NO_TENSOR if tensor is None else (tensor.data_ptr(), *tensor.stride())


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def packed_call(call: Lowered, output: Tensor, logsumexp: int, threads: int) -> bytes:
    """`Call`, for as long as the tensors of `call` live; `logsumexp` is its address, or 0 where nobody asks for it."""
    query, key, value, first, bias, distance = call.query, call.key, call.value, call.first, call.bias, call.distance
    B, Hq, Lq, D = query.shape
    _, Hkv, Lk, Dv = value.shape
    intervals = (0, 0, 0)
    if first is not None:
        intervals = (first.data_ptr(), _pointer(call.stop), 0 if first.shape[0] == 1 else Lq)
    packed = _CALL.pack(
        *(B, Hq, Hkv, Lq, Lk, D, Dv, DTYPES[query.dtype], DTYPES[output.dtype], threads),
        *(query.data_ptr(), *query.stride(), key.data_ptr(), *key.stride()),
        *(value.data_ptr(), *value.stride(), output.data_ptr(), *output.stride()),
        *(call.scale, call.softcap, call.range_kind, call.left, call.right, *intervals),
        *(0 if call.starts is None else call.starts.data_ptr(), call.start),
    )
    if not logsumexp and call.allowed is bias is distance is call.sink is None:
        return packed + _NO_REST
    return packed + _REST.pack(
        *(*_tensor(call.allowed), *_tensor(bias), 0 if bias is None else DTYPES[bias.dtype]),
        *(_pointer(distance), 0 if distance is None else distance.shape[1], call.origin),
        *(_pointer(call.sink), logsumexp),
    )


def packed_seen(at: Mapping[str, int], top: int, segments: Tensor | None, segment_count: int) -> bytes:
    """`Seen`: the address where each field of an Observation is written; what has none is left out."""
    batch = 0 if segments is None or segments.shape[0] == 1 else segments.shape[1]
    address = at.get
    return _SEEN.pack(
        *(top, segment_count, address("top_keys", 0), address("top_weights", 0), address("rest", 0)),
        *(address("max_weight", 0), address("entropy", 0), address("sink_weight", 0), address("mean_position", 0)),
        *(address("mean_distance", 0), address("received", 0), _pointer(segments), batch, address("segment_mass", 0)),
    )


def packed_gradients(grad_output: Tensor, gradients: tuple[Tensor, Tensor, Tensor], distance: Tensor | None) -> bytes:
    """`Gradients`: of the output, read, and of query, key, value and distances (B, Hq, …), written."""
    width = 0 if distance is None else distance.shape[-1]
    tensors = [number for tensor in (grad_output, *gradients) for number in _tensor(tensor)]
    return _GRADIENTS.pack(*tensors, _pointer(distance), width)


def packed_push(r: Tensor, grad_output: Tensor | None, out: Tensor) -> bytes:
    """`Push`: r (B, Hq, Lq, d) and the gradient of the output (B, Hq, Lq, Dv), read, and (B, Hq, Lk, d), written."""
    return _PUSH.pack(*_tensor(r), *_tensor(grad_output), r.shape[3], out.data_ptr())
