"""Masks as other people write them, boolean or added to the scores, as this library says them.

A matrix of allowed keys is O(Lq · Lk). Almost all are one interval of keys a row (causal, padded, a window), and as
intervals they are kept in O(Lq), and the kernel skips what no row sees.

    B | batch    H | heads    Lq, Lk | query rows, keys; sizes of 1 broadcast
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from regard.attention import Causal, Dense, Mask
from regard.attention.frame import Frame
from regard.attention.mask import Ranges, register_pytree

_BLOCK = 1 << 24  # numbers of a matrix that are looked at together


@dataclass(frozen=True, eq=False)
class Intervals(Mask):
    """Row i of this call sees the keys first[i] <= j < stop[i].

    Args:
        first: (B|1, Lq) int64.
        stop: (B|1, Lq) int64, at least first.
    """

    first: Tensor
    stop: Tensor
    relative = True  # it is made for the rows and keys of one call

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges:
        rows = rows.to(self.first.device)
        return self.first.index_select(1, rows), self.stop.index_select(1, rows)


register_pytree(Intervals)


class MaskReader:
    """Reads the masks of a forward pass; one that several layers share is read once."""

    def __init__(self) -> None:
        self._read: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def read(self, mask: Tensor, Lq: int, Lk: int) -> tuple[Mask | None, Tensor | None]:
        """A boolean mask (true: may be seen) or one that is added to the scores, as a mask and a bias.

        Args:
            mask: broadcasts to (B, H, Lq, Lk). Of floats, -inf and what lies near the lowest number of the dtype hide a
                key. A row whose every key has such a low number, but none -inf, sees all these alike: so does a
                softmax to which the number is added, as it swallows the scores.
            Lq: query rows of the call.
            Lk: its keys.
        """
        version = 0 if mask.is_inference() else mask._version
        known = self._read.get(mask)
        if known is not None and known[0] == (version, Lq, Lk):
            return known[1]
        found = _boolean(mask, Lq, Lk) if mask.dtype == torch.bool else _additive(mask, Lq, Lk)
        if not isinstance(found[0], Dense) and found[1] is not mask:  # or else the entry would keep its own key alive
            self._read[mask] = (version, Lq, Lk), found
        return found


def _boolean(allowed: Tensor, Lq: int, Lk: int) -> tuple[Mask | None, Tensor | None]:
    intervals = _intervals(allowed, Lq, Lk)
    if intervals is None:
        return Dense(allowed), None
    if bool((intervals.first == 0).all()) and bool((intervals.stop == Lk).all()):
        return None, None
    return intervals, None


def _additive(mask: Tensor, Lq: int, Lk: int) -> tuple[Mask | None, Tensor | None]:
    lowest = torch.finfo(mask.dtype).min
    allowed = mask > lowest / 2
    blind = ~allowed.any(-1, keepdim=True)  # (B|1, H|1, Lq|1, 1)
    bias = None
    if mask.requires_grad or bool((mask.masked_fill(~allowed, 0) != 0).any()):
        bias = mask.masked_fill(~allowed, 0)
    if bool(blind.any()):
        alike = blind & (mask > -torch.inf)
        if bool(alike.any()):
            allowed = allowed | alike
            swallows = blind.float() * torch.finfo(torch.float32).min
            bias = swallows if bias is None else bias + swallows
    return _boolean(allowed, Lq, Lk)[0], bias


def _intervals(allowed: Tensor, Lq: int, Lk: int) -> Intervals | None:
    """A boolean matrix as intervals, or None where a row has gaps or heads differ."""
    allowed = allowed.reshape((1,) * (4 - allowed.dim()) + tuple(allowed.shape))
    if allowed.shape[1] != 1:
        if allowed.stride(1) != 0 and not bool((allowed == allowed[:, :1]).all()):
            return None
        allowed = allowed[:, :1]
    allowed = allowed[:, 0]  # (B|1, Lq|1, Lk|1)
    if allowed.stride(1) == 0:
        allowed = allowed[:, :1]
    if allowed.stride(0) == 0:
        allowed = allowed[:1]
    allowed = allowed.expand(-1, -1, Lk)
    first, stop = [], []
    for block in allowed.split(max(1, _BLOCK // max(1, allowed.shape[0] * Lk)), 1):
        count, number = block.sum(-1), block.to(torch.uint8)
        begin = number.argmax(-1)
        end = torch.where(count > 0, Lk - number.flip(-1).argmax(-1), begin)
        if bool((end - begin != count).any()):
            return None
        first.append(begin)
        stop.append(end)
    return Intervals(torch.cat(first, 1).expand(-1, Lq), torch.cat(stop, 1).expand(-1, Lq))


def start_of(kind: str, Lq: int, Lk: int, mask: Mask | None) -> int:
    """The position of the first query row among the keys.

    Rows of self-attention that are fewer than their keys continue what a cache holds: the last of them stands at the
    last key that it sees. Rows of cross-attention are counted from 0.
    """
    if kind == "cross" or Lq >= Lk or isinstance(mask, Causal):
        return 0
    if isinstance(mask, Intervals):
        return max(0, int(mask.stop[:, -1].max()) - Lq)
    return Lk - Lq
