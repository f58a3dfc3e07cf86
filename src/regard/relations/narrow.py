"""Parts of a call: one entry of a batch, some heads, some rows, or all but some edges, at what they cost alone.

H | heads    r | rows asked for    Lk | keys
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.attention import ALiBi, Dense, Observation, RelativeBias
from regard.attention.frame import Frame
from regard.attention.mask import Mask, Ranges
from regard.attention.request import Bias, Request


def narrowed(seen: Observation, item: int, heads: list[int] | None = None) -> Observation:
    """What was seen, with the queries and keys of one batch entry and some heads (None: all) alone.

    Its `weights` are (1, heads, r, Lk); the statistics stay those of the whole call.
    """
    return seen if seen.kept is None else replace(seen, kept=narrowed_request(seen.kept, item, heads))


def visible(seen: Observation, item: int, rows: range) -> Tensor:
    """Which keys each row of a batch entry may see, (H|1, r|1, Lk|1) boolean.

    Raises:
        ValueError: the call was observed with keep=False, or loaded.
    """
    if seen.kept is None:
        raise ValueError(
            "what a row may see needs queries and keys: this call has none (observed with keep=False, or loaded)"
        )
    request = narrowed_request(seen.kept, item, None)
    numbers, keys = request.frame.rows(rows), range(request.Lk)
    may = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=request.query.device)
    if request.mask is not None:
        may = request.mask.tile(request.frame, numbers, keys)
    bias = request.bias_tile(numbers, keys)
    return (may if bias is None else may & (bias != -torch.inf))[0]


def narrowed_request(request: Request, item: int | None, heads: list[int] | None) -> Request:
    """A call with one batch entry (None: all) and some heads (None: all) alone."""
    # Slices where that will do: they copy nothing, and this is asked for a block of rows at a time.
    first = None if item is None else range(request.B)[item]
    entries = slice(None) if first is None else slice(first, first + 1)
    chosen = [*range(request.Hq)] if heads is None else heads
    every = slice(None)
    pairs = [head // (request.Hq // request.Hkv) for head in chosen]  # the key head of each query head
    start, sinks = request.start, request.sink_logits
    return replace(
        request,
        query=request.query[entries][:, every if heads is None else heads],
        key=request.key[entries][:, every if heads is None else pairs],
        value=request.value[entries][:, every if heads is None else pairs],
        mask=None if request.mask is None else _Narrow(request.mask, request.frame, item, chosen),
        bias=_bias(request.bias, item, chosen),
        start=start[entries] if isinstance(start, Tensor) else start,
        sink_logits=None if sinks is None else sinks[chosen],
    )


def rows_of(request: Request, rows: Tensor) -> Request:
    """A call with some rows (r,) alone; what mask and bias say of them is held, (B|1, H|1, r, Lk)."""
    keys = range(request.Lk)
    mask = None if request.mask is None else Dense(request.mask.tile(request.frame, rows, keys))
    return replace(request, query=request.query[:, :, rows], mask=mask, bias=request.bias_tile(rows, keys), start=0)


@dataclass(frozen=True, eq=False)
class Cut(Mask):
    """All but some edges: the query of a head at one position does not see one key.

    Args:
        edges: (n, 3) integers: head, query position, key.
        heads: of the call.
    """

    edges: Tensor
    heads: int

    def tile(self, frame: Frame, rows: Tensor, keys: range) -> Tensor:
        edges = self.edges.to(frame.device)
        positions = frame.positions(rows)  # (B|1, R)
        may = torch.ones(
            positions.shape[0], self.heads, rows.shape[0], len(keys), dtype=torch.bool, device=frame.device
        )
        edges = edges[(edges[:, 2] >= keys.start) & (edges[:, 2] < keys.stop)]
        edge, item, row = (edges[:, 1, None, None] == positions).nonzero().unbind(-1)
        may[item, edges[edge, 0], row, edges[edge, 2] - keys.start] = False
        return may


def _bias(bias: Bias | None, item: int | None, heads: list[int]) -> Bias | None:
    if isinstance(bias, ALiBi):
        return ALiBi(bias.slopes[heads])
    if isinstance(bias, RelativeBias):
        return RelativeBias(bias.table[:, heads], bias.buckets)
    if bias is None:
        return None
    return _pick(bias.reshape((1,) * (4 - bias.dim()) + tuple(bias.shape)), item, heads)


def _pick(tile: Tensor, item: int | None, heads: list[int]) -> Tensor:
    """(B|1, H|1, …) -> (1, len(heads)|1, …), or with all entries."""
    tile = tile if item is None or tile.shape[0] == 1 else tile[[item]]
    return tile if tile.shape[1] == 1 else tile[:, heads]


@dataclass(frozen=True, eq=False)
class _Narrow(Mask):
    """A mask of a whole call, as one batch entry (None: all) and some heads see it."""

    mask: Mask
    frame: Frame  # of the whole call
    item: int | None
    heads: list[int]

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges | None:
        ranges = self.mask.ranges(self.frame, rows)
        if ranges is None:
            return None
        first, stop = (t if self.item is None or t.shape[0] == 1 else t[[self.item]] for t in ranges)
        return first, stop

    def tile(self, frame: Frame, rows: Tensor, keys: range) -> Tensor:
        return _pick(self.mask.tile(self.frame, rows, keys), self.item, self.heads)
