"""PyTorch's fused attention for the output, strips for everything it cannot say. Serves every call on every device.

A call that `scaled_dot_product_attention` computes without forming (Lq, Lk) goes there whole, or by blocks of rows
where a mask or bias would otherwise be held whole. Softcap, sinks, dropout, gradients of a bias, and observation are
computed by strips (`strips.py`). In training, strips are recomputed in the backward pass instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.attention import strips
from regard.attention.mask import Causal
from regard.attention.observation import Collector, Observation, Watch
from regard.attention.request import Request, transformed
from regard.attention.strips import Sight, Strip

# Rows of one block when a fused call needs its mask as a matrix: enough to keep the kernel busy, few enough that the
# keys no row of the block sees are mostly skipped.
_BLOCK = 512


def attend(request: Request) -> Tensor:
    """softmax(scores) · value, (B, Hq, Lq, Dv)."""
    if request.Lk == 0:
        return request.query.new_zeros(*request.query.shape[:3], request.value.shape[3])
    if is_one_call(request):
        return _sdpa(request.query, request.key, request.value, request.scale, None, request.mask is not None)
    if _by_strips(request):
        return _attend_by_strips(request, None)
    call, view = strips.prepared(request)

    def step(strip: Strip) -> Tensor:
        return _sdpa_strip(call, view, strip)

    rows = request.frame.rows(slice(None))
    heads = 1 if request.bias is None and view.first is not None else request.Hq  # of the tiles of mask and bias
    return _assemble(call, list(strips.walk(call, view, rows, copies=1, heads=heads, most=_BLOCK)), step)


@strips.in_full_precision
def attend_observed(request: Request, watch: Watch) -> tuple[Tensor, Observation]:
    """The output of `attend`, and what each row saw."""
    collector = Collector(request, watch)
    if watch.rows is None:
        return _attend_by_strips(request, collector), collector.observation()
    with torch.no_grad():
        call, view = strips.prepared(request)
        for strip in strips.walk(call, view, collector.rows, copies=4):
            s = strips.scores(call, strip)
            collector.add(strip, s, strips.softmax(s, request.sink_logits), collector.top_of(s))
    return attend(request), collector.observation()


def is_one_call(request: Request) -> bool:
    """Whether stock SDPA computes a call as it is."""
    plain = request.bias is None and (request.mask is None or _is_square_causal(request))
    return plain and not _by_strips(request)


def _by_strips(request: Request) -> bool:
    """Whether stock SDPA cannot compute this call, or only by forming the whole matrix or rounding positions."""
    half_bias = request.bias is not None and request.query.dtype != request.compute_dtype
    return (
        request.softcap is not None
        or request.sink_logits is not None
        or request.dropout > 0
        or half_bias
        or request.bias_needs_grad()
    )


def _is_square_causal(request: Request) -> bool:
    square = isinstance(request.start, int) and request.start == 0 and request.Lq == request.Lk
    # The CPU kernel fills in -inf before it multiplies by the scale: a scale of 0 or less would turn it around.
    return isinstance(request.mask, Causal) and square and request.scale > 0


@strips.in_full_precision
def _attend_by_strips(request: Request, collector: Collector | None) -> Tensor:
    call, view = strips.prepared(request)
    rows, few_heads = request.frame.rows(slice(None)), request.query.is_cpu
    walked = list(strips.walk(call, view, rows, copies=4, few_heads=few_heads))
    followed = request.needs_grad() or transformed(request.query, request.key, request.value)
    room = None if followed or torch.compiler.is_compiling() else strips.Room(call, walked)
    collected: set[int] = set()

    def step(strip: Strip) -> Tensor:
        s = strips.scores(call, strip, room)
        sinks, top = request.sink_logits, None if collector is None else collector.top_of(s)
        largest = None if top is None else top[..., :1]
        seen = strips.softmax(s, None if sinks is None else sinks[strip.heads], room, largest)
        weights = F.dropout(seen.weights, request.dropout) if request.dropout else seen.weights
        out = strips.mix(weights, strip.of_keys(call.value, request.Hq).to(weights.dtype)).to(request.query.dtype)
        if collector is not None and id(strip) not in collected:  # a recomputed strip has been seen already
            collected.add(id(strip))
            collector.add(strip, s, seen, top)
        return out

    return _assemble(call, walked, step)


def _assemble(request: Request, walked: list[Strip], step: Callable[[Strip], Tensor]) -> Tensor:
    """The outputs (b, h, r, Dv) of all strips, put together to (B, Hq, Lq, Dv)."""
    if len(walked) == 1:
        return step(walked[0])
    if walked and request.needs_grad():
        parts = [checkpoint(step, strip, use_reentrant=False) for strip in walked]
        by_heads: dict[tuple[int, int], list[Tensor]] = {}
        for strip, part in zip(walked, parts, strict=True):
            by_heads.setdefault((strip.batch.start, strip.heads.start), []).append(part)
        by_entry: dict[int, list[Tensor]] = {}
        for (entry, _), rows in by_heads.items():
            by_entry.setdefault(entry, []).append(torch.cat(rows, 2))
        return torch.cat([torch.cat(heads, 1) for heads in by_entry.values()], 0)
    out = request.query.new_empty(*request.query.shape[:3], request.value.shape[3])
    for strip in walked:
        out[strip.batch, strip.heads, strip.at] = step(strip)
    return out


def _sdpa_strip(request: Request, view: Sight, strip: Strip) -> Tensor:
    """One block of rows by SDPA, with its tile of mask and bias."""
    keys = slice(strip.keys.start, strip.keys.stop)
    query = request.query[strip.batch, :, strip.at]
    tile, blind = _mask_tile(request, view, strip)
    key, value = request.key[strip.batch, :, keys], request.value[strip.batch, :, keys]
    out = _sdpa(query, key, value, request.scale, tile, False)
    return out if blind is None else out.masked_fill(blind, 0)


def _mask_tile(request: Request, view: Sight, strip: Strip) -> tuple[Tensor | None, Tensor | None]:
    """What SDPA takes as its mask, (b|1, H|1, r, n), and which rows see nothing, (b|1, H|1, r, 1)."""
    may = None if _sees_all(view, strip) else strips.allowed(request, strip)
    bias = request.bias_tile(strip.rows, strip.keys)
    if bias is not None:
        tile = strips.entries(bias, strip.batch).to(request.query.dtype)
        if may is not None:
            tile = tile.masked_fill(~may, -torch.inf)
        blind = tile.amax(-1, keepdim=True) == -torch.inf
        tile = tile.masked_fill(blind, 0)
    elif may is not None:
        blind = ~may.any(-1, keepdim=True)
        tile = may | blind  # a row that sees nothing looks at anything, and its output is set to 0
    else:
        return None, None
    tile = tile.expand(-1, -1, strip.rows.shape[0], len(strip.keys))
    if not torch.compiler.is_compiling() and not bool(blind.any()):
        return tile, None
    return tile, blind


def _sees_all(view: Sight, strip: Strip) -> bool:
    """Whether every row of a strip sees every key of it, so that no mask is needed."""
    if view.first is None or view.stop is None or torch.compiler.is_compiling():
        return False
    first, stop = (strips.entries(t, strip.batch).index_select(1, strip.rows) for t in (view.first, view.stop))
    return int(first.max()) <= strip.keys.start and int(stop.min()) >= strip.keys.stop


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float, tile: Tensor | None, causal: bool) -> Tensor:
    """PyTorch's fused attention; sizes of keys and values are made equal, since it forms (Lq, Lk) where they differ."""
    D, Dv, dtype = query.shape[3], value.shape[3], query.dtype
    if D < Dv:
        query, key = F.pad(query, (0, Dv - D)), F.pad(key, (0, Dv - D))
    elif Dv < D:
        value = F.pad(value, (0, D - Dv))
    if dtype == torch.float16 and query.device.type == "cpu":
        # The CPU kernel rounds its weights to float16 before it mixes the values.
        query, key, value = query.float(), key.float(), value.float()
    # Where the last dimension is not contiguous, PyTorch forms the whole matrix.
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=tile, is_causal=causal, scale=scale, enable_gqa=grouped
    ).to(dtype)
    return out[..., :Dv] if Dv < D else out
