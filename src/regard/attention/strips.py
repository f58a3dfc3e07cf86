"""Attention a strip at a time: a block of query rows × the keys they see, within a fixed budget of memory.

The scores of one strip are formed, used and dropped, so that nothing of size (Lq, Lk) ever exists. Everything the
strip gives is exact, whatever the mask, bias, softcap or sink.

    b  | batch entries of one strip    h | its query heads   r | its query rows    n | its keys
    Hq | query heads of the call       Hkv | its key/value heads, G = Hq / Hkv
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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

NARROW = 4 * 2**20
"""Bytes of each matrix of a strip of few heads: with one the products are as fast as with all, and the caches serve."""

ROWS = 512
"""Rows of a strip of few heads: fewer make thin products. Half of them where rows see different keys, since a strip
holds all that any of its rows sees."""

NEVER = -1.0e38
"""The score of a key that may not be seen: far below any score, and finite, so that 0 · NEVER is 0 and not NaN."""


LOWEST = 0.9 * NEVER
"""The lowest score of a key that may be seen."""


@dataclass(frozen=True)
class Strip:
    """Which part of a call one step works on."""

    batch: slice
    heads: slice  # of queries, whole groups
    rows: Tensor  # (r,) row numbers of the call
    at: slice  # where these rows stand among the rows walked over
    keys: range
    clear: range = range(0)  # keys that every row sees, where that is known

    def part(self, tile: Tensor) -> Tensor:
        """What a tile (B|1, Hq|1, …) has of this strip: (b|1, h|1, …)."""
        tile = entries(tile, self.batch)
        return tile if tile.shape[1] == 1 else tile[:, self.heads]

    def of_keys(self, tensor: Tensor, Hq: int) -> Tensor:
        """Keys or values (B, Hkv, Lk, D) of this strip."""
        G = Hq // tensor.shape[1]
        heads = slice(self.heads.start // G, self.heads.stop // G)
        return tensor[self.batch, heads, self.keys.start : self.keys.stop]


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
    request: Request,
    view: Sight,
    rows: Tensor,
    *,
    copies: int,
    heads: int | None = None,
    most: int = 1 << 30,
    few_heads: bool = False,
) -> Iterator[Strip]:
    """Divides the rows `rows` (R,) of a call into strips of at most BUDGET bytes.

    Args:
        request: the call.
        view: its mask, lowered.
        rows: the row numbers to walk over, ascending for the narrowest strips.
        copies: how many matrices of the strip's size are alive at once.
        heads: how many heads these matrices have; all of them unless given.
        most: the most rows in a strip.
        few_heads: strips of many rows and few heads, where all heads would leave few rows to a strip.
    """
    R, G = max(1, rows.shape[0]), request.Hq // request.Hkv
    bytes_a_row = request.compute_dtype.itemsize * max(1, request.Lk)  # of one head and one matrix
    together, fitting = request.Hq, min(R, ROWS if view.first is None else max(1, ROWS // 2))
    if few_heads and request.Hq * R * bytes_a_row > NARROW:
        together = max(1, _rows_in(NARROW, bytes_a_row * G * fitting)) * G
    if together < request.Hq:
        size, step = 1, min(most, fitting, max(32, _rows_in(NARROW, bytes_a_row * together)))
    else:
        # Few rows make thin products: where even 32 rows of the whole batch do not fit, the batch is divided first.
        bytes_a_row *= copies * (heads or request.Hq)
        size = min(max(1, request.B), _rows_in(BUDGET, bytes_a_row * min(32, R)))
        step = min(most, _rows_in(BUDGET, bytes_a_row * size))
    for b in range(0, request.B, size):
        batch = slice(b, min(b + size, request.B))
        blocks = [slice(r, min(r + step, rows.shape[0])) for r in range(0, rows.shape[0], step)]
        keys = [_keys_of(request, view, batch, rows[at]) for at in blocks]
        for h in range(0, request.Hq, together):
            chosen = slice(h, min(h + together, request.Hq))
            for at, (seen, clear) in zip(blocks, keys, strict=True):
                yield Strip(batch, chosen, rows[at], at, seen, clear)


def _keys_of(request: Request, view: Sight, batch: slice, rows: Tensor) -> tuple[range, range]:
    """The keys that rows of a strip may see, all of them where the mask has no ranges; and those that all rows see."""
    if view.first is None or view.stop is None or torch.compiler.is_compiling():
        return range(request.Lk), range(request.Lk if request.mask is None else 0)
    first, stop = (entries(t, batch).index_select(1, rows) for t in (view.first, view.stop))
    some = stop > first
    if not bool(some.any()):
        return range(0, min(1, request.Lk)), range(0)  # one key, which no row sees, keeps every shape as usual
    keys = range(int(first[some].min()), int(stop[some].max()))
    return keys, range(int(first.max()), int(stop.min()))


def entries(tensor: Tensor, batch: slice) -> Tensor:
    """Some batch entries of a tensor whose first dimension is B or 1."""
    return tensor if tensor.shape[0] == 1 else tensor[batch]


def allowed(request: Request, strip: Strip) -> Tensor | None:
    """The boolean tile of a strip, (b|1, h|1, r|1, n|1), or None without a mask."""
    return None if request.mask is None else strip.part(request.mask.tile(request.frame, strip.rows, strip.keys))


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


class Room:
    """Memory for two matrices of one strip after another: to get it anew each time takes a third of the time in all.

    Args:
        request: the call.
        walked: all its strips.
    """

    def __init__(self, request: Request, walked: Sequence[Strip]) -> None:
        def size(strip: Strip) -> int:
            entries, heads = len(range(request.B)[strip.batch]), len(range(request.Hq)[strip.heads])
            return entries * heads * strip.rows.shape[0] * len(strip.keys)

        numbers = max(map(size, walked), default=0)
        self._both = request.query.new_empty(2, numbers, dtype=request.compute_dtype)

    def lend(self, which: int, *shape: int) -> Tensor:
        """Room for the first or the second matrix of a strip, until the next strip asks for it."""
        return self._both[which, : math.prod(shape)].view(shape)


def products(query: Tensor, key: Tensor, room: Room | None = None) -> Tensor:
    """query (b, Hq, r, D) · keyᵀ (b, Hkv, n, D) -> (b, Hq, r, n), without repeating keys for grouped queries."""
    b, Hq, r, D = query.shape
    Hkv, n = key.shape[1], key.shape[2]
    query, key = query.reshape(b * Hkv, Hq // Hkv * r, D), key.reshape(b * Hkv, n, D)
    out = None if room is None else room.lend(0, b * Hkv, Hq // Hkv * r, n)
    return torch.bmm(query, key.transpose(1, 2), out=out).view(b, Hq, r, n)


def mix(weights: Tensor, value: Tensor) -> Tensor:
    """weights (b, Hq, r, n) · value (b, Hkv, n, Dv) -> (b, Hq, r, Dv)."""
    b, Hq, r, n = weights.shape
    Hkv, Dv = value.shape[1], value.shape[3]
    return (weights.reshape(b, Hkv, -1, n) @ value).view(b, Hq, r, Dv)


def scores(request: Request, strip: Strip, room: Room | None = None) -> Tensor:
    """The scores of a strip of a prepared call, (b, h, r, n) in the compute dtype; NEVER where a key is not seen.

    With `room` they are in its memory, and have no gradients.
    """
    dtype = request.compute_dtype
    query = request.query[strip.batch, strip.heads].index_select(2, strip.rows)
    s = products(query.to(dtype) * request.scale, strip.of_keys(request.key, request.Hq).to(dtype), room)
    if request.softcap is not None:
        s = torch.tanh(s / request.softcap) * request.softcap
    bias = request.bias_tile(strip.rows, strip.keys)
    if bias is not None:
        bias = strip.part(bias).to(dtype)
        s = s + bias
    # In place where nobody needs what was there before: a new matrix costs more than what is written to it.
    s = s.clamp(min=LOWEST) if room is None else s.clamp_(min=LOWEST)
    if bias is not None:  # as a mask does; any finite bias, however low, only disfavours
        s = s.masked_fill(bias == -torch.inf, NEVER)
    if request.mask is None:
        return s
    if room is None or not len(strip.clear):
        may = strip.part(request.mask.tile(request.frame, strip.rows, strip.keys))
        return s.masked_fill(~may, NEVER)
    keys, clear = strip.keys, strip.clear
    for part in (range(keys.start, clear.start), range(clear.stop, keys.stop)):
        if len(part):
            may = strip.part(request.mask.tile(request.frame, strip.rows, part))
            s[..., part.start - keys.start : part.stop - keys.start].masked_fill_(~may, NEVER)
    return s


@dataclass(frozen=True, eq=False)
class Weights:
    """What a softmax over one strip gives."""

    weights: Tensor  # (b, h, r, n); 0 where a key may not be seen
    logsumexp: Tensor  # (b, h, r); -inf, or the sink's logit, where a row sees no key
    mass: Tensor  # (b, h, r), the sum of a row's weights: what the sink leaves to keys; 0 where a row sees no key
    sees: Tensor  # (b, h, r) boolean: the row sees at least one key


def softmax(s: Tensor, sink_logits: Tensor | None, room: Room | None = None, largest: Tensor | None = None) -> Weights:
    """The softmax of scores (b, h, r, n) over the keys and the sink (h,).

    Args:
        s: the scores.
        sink_logits: (h,), or None.
        room: as of `scores`.
        largest: where each row has its largest score, (b, h, r, 1), if that is known: it saves two passes.
    """
    scores = s.detach()
    top = scores.amax(-1) if largest is None else scores.gather(-1, largest)[..., 0]  # (b, h, r)
    sees = top > NEVER
    weights = torch.softmax(s, -1, out=None if room is None else room.lend(1, *s.shape))
    if sink_logits is None:
        # The largest weight is 1 / Σ exp(score - top), so that no second pass over the scores is needed.
        kept = weights.detach()
        most = kept.amax(-1) if largest is None else kept.gather(-1, largest)[..., 0]
        logsumexp, mass = torch.where(sees, top - most.log(), -torch.inf), sees.to(s.dtype)
        if room is None or not bool(sees.all()):
            weights = weights * sees[..., None]
    else:
        sink = sink_logits.to(s.dtype)[:, None]
        keys = s.logsumexp(-1)  # finite also where a row sees none
        total = torch.logaddexp(keys, sink)
        mass = torch.exp(keys - total) * sees
        weights = weights * mass[..., None]
        logsumexp = torch.where(sees, total, sink)
    return Weights(weights, logsumexp, mass, sees)
