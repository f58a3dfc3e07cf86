"""Attention a strip at a time: a block of query rows × the keys they see, within a fixed budget of memory.

The scores of one strip are formed, used and dropped, so that nothing of size (Lq, Lk) ever exists. Everything the
strip gives is exact, whatever the mask, bias, softcap or sink.

    b  | batch entries of one strip    r | its query rows    n | its keys
    Hq | query heads                   Hkv | key/value heads, G = Hq / Hkv
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from regard.attention.mask import Mask
from regard.attention.request import Request

P = ParamSpec("P")
T = TypeVar("T")

BUDGET = 16 * 2**20
"""Bytes that the matrices of one strip may take together: they stay near the caches; 64 MiB took twice as long."""

NEVER = -1.0e38
"""The score of a key that may not be seen: far below any score, and finite, so that 0 · NEVER is 0 and not NaN."""


LOWEST = 0.9 * NEVER
"""The lowest score of a key that may be seen."""


@dataclass(frozen=True)
class Strip:
    """Which part of a call one step works on."""

    batch: slice
    rows: Tensor  # (r,) row numbers of the call
    at: slice  # where these rows stand among the rows walked over
    keys: range


@dataclass(frozen=True, eq=False)
class Sight:
    """What a call's mask says, prepared once for all its strips: the keys of each row are [first, stop).

    Both are (B|1, Lq), or None where the mask has no ranges, or there is no mask.
    """

    first: Tensor | None
    stop: Tensor | None


def prepared(request: Request) -> tuple[Request, Sight]:
    """Lowers the mask of a call, and puts zeros where nothing is looked at.

    Queries of rows that see no key, and keys and values that no row sees, may hold NaN: padding, a cache not yet
    filled. As zeros they reach neither outputs nor gradients.
    """
    mask, frame = request.mask, request.frame
    if mask is None:
        return request, Sight(None, None)
    rows = frame.rows(range(frame.Lq))
    ranges = mask.ranges(frame, rows)
    if ranges is not None:
        first, stop = ranges
        sees, seen = (stop > first)[:, None], _covered(first, stop, frame.Lk)[:, None]  # (B|1, 1, Lq), (B|1, 1, Lk)
    else:
        first = stop = None
        sees, seen = _dense_sight(request, mask)
    query = _hide(request.query, sees)
    key, value = _hide(request.key, seen), _hide(request.value, seen)
    return replace(request, query=query, key=key, value=value), Sight(first, stop)


def _covered(first: Tensor, stop: Tensor, Lk: int) -> Tensor:
    """Which keys lie in at least one of the intervals [first, stop), each (B, Lq): (B, Lk) boolean."""
    change = first.new_zeros(first.shape[0], Lk + 1)
    one = torch.ones_like(first)
    change = change.scatter_add(1, first, one).scatter_add(1, stop, -one)  # empty intervals cancel
    return change.cumsum(-1)[:, :Lk] > 0


def _dense_sight(request: Request, mask: Mask) -> tuple[Tensor, Tensor]:
    """Which rows see a key, (B|1, H|1, Lq|1), and which keys are seen, (B|1, H|1, Lk|1), of a mask without ranges."""
    frame = request.frame
    sees: list[Tensor] = []
    seen = torch.zeros(1, 1, 1, dtype=torch.bool, device=frame.device)
    for rows in frame.rows(range(frame.Lq)).split(_rows_in(BUDGET, request.B * request.Hq * frame.Lk)):
        tile = mask.tile(frame, rows, range(frame.Lk))  # (B|1, H|1, r|1, Lk|1)
        sees.append(tile.any(-1).expand(-1, -1, rows.shape[0]))
        seen = seen | tile.any(-2)
    return torch.cat(sees, -1), seen


def _hide(tensor: Tensor, shown: Tensor) -> Tensor:
    """Queries, keys or values (B, H, L, D) with zeros where `shown` (B|1, H|1, L|1) is not."""
    if not torch.compiler.is_compiling() and bool(shown.all()):
        return tensor
    if shown.shape[1] not in (1, tensor.shape[1]):  # a mask that differs between the heads of one group
        shown = shown.unflatten(1, (tensor.shape[1], -1)).any(2)
    return tensor.masked_fill(~shown[..., None], 0)


def _rows_in(budget: int, bytes_a_row: int) -> int:
    return max(1, budget // max(1, bytes_a_row))


def walk(
    request: Request, view: Sight, rows: Tensor, *, copies: int, heads: int | None = None, most: int = 1 << 30
) -> Iterator[Strip]:
    """Divides the rows `rows` (R,) of a call into strips of at most BUDGET bytes.

    Args:
        request: the call.
        view: its mask, lowered.
        rows: the row numbers to walk over, ascending for the narrowest strips.
        copies: how many matrices of the strip's size are alive at once.
        heads: how many heads these matrices have; all of them unless given.
        most: the most rows in a strip.
    """
    bytes_a_row = copies * request.compute_dtype.itemsize * (heads or request.Hq) * max(1, request.Lk)
    # Few rows make thin products: where even 32 rows of the whole batch do not fit, the batch is divided first.
    entries = min(max(1, request.B), _rows_in(BUDGET, bytes_a_row * min(32, max(1, rows.shape[0]))))
    step = min(most, _rows_in(BUDGET, bytes_a_row * entries))
    for b in range(0, request.B, entries):
        batch = slice(b, min(b + entries, request.B))
        for r in range(0, rows.shape[0], step):
            at = slice(r, min(r + step, rows.shape[0]))
            yield Strip(batch, rows[at], at, _keys_of(request, view, batch, rows[at]))


def _keys_of(request: Request, view: Sight, batch: slice, rows: Tensor) -> range:
    """The keys that the rows of a strip may see; all of them where the mask has no ranges."""
    if view.first is None or view.stop is None or torch.compiler.is_compiling():
        return range(request.Lk)
    first, stop = (entries(t, batch).index_select(1, rows) for t in (view.first, view.stop))
    some = stop > first
    if not bool(some.any()):
        return range(0, min(1, request.Lk))  # one key, which no row sees, keeps every shape as usual
    return range(int(first[some].min()), int(stop[some].max()))


def entries(tensor: Tensor, batch: slice) -> Tensor:
    """Some batch entries of a tensor whose first dimension is B or 1."""
    return tensor if tensor.shape[0] == 1 else tensor[batch]


def allowed(request: Request, strip: Strip) -> Tensor | None:
    """The boolean tile of a strip, (b|1, H|1, r|1, n|1), or None without a mask."""
    if request.mask is None:
        return None
    return entries(request.mask.tile(request.frame, strip.rows, strip.keys), strip.batch)


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function compute in the precision it says, also under autocast: positions never pass through half."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return wrapped


def products(query: Tensor, key: Tensor) -> Tensor:
    """query (b, Hq, r, D) · keyᵀ (b, Hkv, n, D) -> (b, Hq, r, n), without repeating keys for grouped queries."""
    b, Hq, r, D = query.shape
    Hkv, n = key.shape[1], key.shape[2]
    return (query.reshape(b, Hkv, Hq // Hkv * r, D) @ key.transpose(-1, -2)).view(b, Hq, r, n)


def mix(weights: Tensor, value: Tensor) -> Tensor:
    """weights (b, Hq, r, n) · value (b, Hkv, n, Dv) -> (b, Hq, r, Dv)."""
    b, Hq, r, n = weights.shape
    Hkv, Dv = value.shape[1], value.shape[3]
    return (weights.reshape(b, Hkv, -1, n) @ value).view(b, Hq, r, Dv)


def scores(request: Request, strip: Strip) -> Tensor:
    """The scores of a strip of a prepared call, (b, Hq, r, n) in the compute dtype; NEVER where a key is not seen."""
    dtype = request.compute_dtype
    query = request.query[strip.batch].index_select(2, strip.rows)
    key = request.key[strip.batch, :, strip.keys.start : strip.keys.stop]
    s = products(query.to(dtype) * request.scale, key.to(dtype))
    if request.softcap is not None:
        s = torch.tanh(s / request.softcap) * request.softcap
    may = allowed(request, strip)
    bias = request.bias_tile(strip.rows, strip.keys)
    if bias is not None:
        bias = entries(bias, strip.batch).to(dtype)
        s = s + bias
        forbidden = bias == -torch.inf  # as a mask does; any finite bias, however low, only disfavours
        may = ~forbidden if may is None else may & ~forbidden
    s = s.clamp(min=LOWEST)
    return s if may is None else s.masked_fill(~may, NEVER)


@dataclass(frozen=True, eq=False)
class Weights:
    """What a softmax over one strip gives."""

    weights: Tensor  # (b, Hq, r, n); 0 where a key may not be seen
    logsumexp: Tensor  # (b, Hq, r); -inf, or the sink's logit, where a row sees no key
    sees: Tensor  # (b, Hq, r) boolean: the row sees at least one key


def softmax(s: Tensor, sink_logits: Tensor | None) -> Weights:
    """The softmax of scores (b, Hq, r, n) over the keys and the sink (Hq,)."""
    top = s.detach().amax(-1, keepdim=True)  # (b, Hq, r, 1)
    sees = top > NEVER
    if sink_logits is None:
        e = (s - top).exp_()
        total = e.sum(-1, keepdim=True)
        logsumexp = torch.where(sees, top + torch.log(total), -torch.inf)
    else:
        sink = sink_logits.to(s.dtype)[:, None, None]
        top = torch.maximum(top, sink.detach())
        e = (s - top).exp_()
        total = e.sum(-1, keepdim=True) * sees + torch.exp(sink - top)
        logsumexp = top + torch.log(total)
    share = torch.where(total > 0, sees / total, 0.0)  # a sink of -inf leaves a row that sees nothing without any total
    weights = e * share if e.requires_grad else e.mul_(share)
    return Weights(weights, logsumexp.squeeze(-1), sees.squeeze(-1))
