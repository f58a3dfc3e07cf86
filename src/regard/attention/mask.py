"""Who may see whom: masks are small frozen values, combined with & and |.

A mask knows nothing of the call it is used in. The call supplies its `Frame`: how many rows and keys there are,
and at which position of the sequence the first row stands. A mask then lowers in two ways:

- `key_ranges`: one interval [first, stop) of keys a query row, O(L) memory, so that a kernel skips whole tiles;
- `dense`: the boolean strip for a block of rows, for whatever is not an interval.

    L  | length: Lq query rows, Lk keys          R | rows of one block
    B  | batch; 1 where all entries are alike    i | position of a query row (start + row), j: index of a key
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from regard.attention.frame import Frame, Rows, check_broadcast, tile_of

Ranges: TypeAlias = tuple[Tensor, Tensor]


class Mask:
    """The base of all masks. `a & b` allows what both allow, `a | b` what either allows."""

    from_zero: bool = False
    """Whether each row's interval, where it is not empty, begins at key 0: unions of such masks stay exact."""

    relative: bool = False
    """Whether only the distance between query and key counts, so that both may be counted from anywhere."""

    def key_ranges(self, Lq: int, Lk: int, start: int | Tensor = 0) -> Ranges | None:
        """The keys [first, stop) that each row sees, two int64 tensors (B|1, Lq), or None where that is not exact."""
        frame = Frame(Lq, Lk, start)
        return self.ranges(frame, frame.rows(range(Lq)))

    def dense(self, rows: Rows, Lk: int, start: int | Tensor = 0, *, Lq: int | None = None) -> Tensor:
        """The boolean strip for a block of rows, broadcasting to (B, H, R, Lk).

        Args:
            rows: the row numbers, a range, a slice with both ends, or an int64 tensor (R,).
            Lk: number of keys.
            start: position of row 0, an int or (B,).
            Lq: number of rows of the whole call; by default the rows end with this block.
        """
        if Lq is None:
            Lq = int(rows.max()) + 1 if isinstance(rows, Tensor) else int(rows.stop)
        frame = Frame(Lq, Lk, start)
        return self.tile(frame, frame.rows(rows), range(Lk))

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges | None:
        """`key_ranges` of the rows `rows` (R,) alone: 0 <= first <= stop <= Lk, each (B|1, R), or None."""
        return None

    def tile(self, frame: Frame, rows: Tensor, keys: range) -> Tensor:
        """The boolean tile of the rows `rows` (R,) and the keys `keys`, broadcasting to (B, H, R, len(keys))."""
        ranges = self.ranges(frame, rows)
        if ranges is None:
            raise TypeError(f"{type(self).__name__} gives neither key ranges nor a tile")
        j = torch.arange(keys.start, keys.stop, device=frame.device)
        first, stop = ranges
        return ((j >= first[..., None]) & (j < stop[..., None]))[:, None]  # (B|1, 1, R, K)

    def check(self, B: int, H: int, Lq: int, Lk: int) -> None:
        """Raises ValueError where the mask cannot belong to a call of these sizes."""

    def __and__(self, other: Mask) -> Mask:
        return Intersection(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        return Union(self, other) if isinstance(other, Mask) else NotImplemented


def _clip(first: Tensor, stop: Tensor, Lk: int) -> Ranges:
    first = first.clamp(0, Lk)
    return first, torch.maximum(stop.clamp(0, Lk), first)


@dataclass(frozen=True, eq=False)
class Causal(Mask):
    """A query at position i sees key j when j <= i."""

    from_zero = True
    relative = True

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges:
        i = frame.positions(rows)
        return _clip(torch.zeros_like(i), i + 1, frame.Lk)


@dataclass(frozen=True, eq=False)
class Window(Mask):
    """A query at position i sees key j when i - left <= j <= i + right, both inclusive.

    Args:
        left: how many keys before its own position a query sees; None is unbounded.
        right: how many keys after it; None is unbounded.

    Raises:
        ValueError: a side is negative.
    """

    left: int | None = None
    right: int | None = None
    relative = True

    def __post_init__(self) -> None:
        for name, side in (("left", self.left), ("right", self.right)):
            if side is not None and side < 0:
                raise ValueError(f"Window {name} is {side}; it may be None or an integer of at least 0")

    @property
    def from_zero(self) -> bool:  # type: ignore[override]
        return self.left is None

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges:
        i = frame.positions(rows)
        first = torch.zeros_like(i) if self.left is None else i - self.left
        stop = torch.full_like(i, frame.Lk) if self.right is None else i + self.right + 1
        return _clip(first, stop, frame.Lk)


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Batch entries of unequal length: only real keys are seen, and padded query rows see nothing.

    Args:
        key_lengths: (B,) integers, how many of the Lk keys of this call are real.
        query_lengths: (B,) integers, how many of the Lq rows of this call are real; None: all of them. A padded row
            has output 0 and counts in no statistic.
        left: the padding stands before the real elements instead of after them.

    Raises:
        ValueError: lengths that are not one-dimensional integers.
    """

    key_lengths: Tensor
    query_lengths: Tensor | None = None
    left: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_lengths", _lengths("key_lengths", self.key_lengths, (1,)))
        if self.query_lengths is not None:
            object.__setattr__(self, "query_lengths", _lengths("query_lengths", self.query_lengths, (1,)))

    @property
    def from_zero(self) -> bool:  # type: ignore[override]
        return not self.left

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges:
        real = self.key_lengths.to(frame.device)[:, None].expand(-1, rows.shape[0])  # (B, R)
        first = frame.Lk - real if self.left else torch.zeros_like(real)
        stop = torch.full_like(real, frame.Lk) if self.left else real
        if self.query_lengths is not None:
            lengths = self.query_lengths.to(frame.device)[:, None]
            padded = rows < frame.Lq - lengths if self.left else rows >= lengths  # (B, R)
            first, stop = first.masked_fill(padded, 0), stop.masked_fill(padded, 0)
        return _clip(first, stop, frame.Lk)

    def check(self, B: int, H: int, Lq: int, Lk: int) -> None:
        _check_lengths("key_lengths", self.key_lengths, B, Lk, "keys")
        if self.query_lengths is not None:
            _check_lengths("query_lengths", self.query_lengths, B, Lq, "query rows")


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """Every query sees key j when j < n; used as `Causal() | Prefix(n)`.

    Args:
        n: length of the prefix, an integer or integers (B,).
    """

    n: int | Tensor
    from_zero = True

    def __post_init__(self) -> None:
        if isinstance(self.n, Tensor):
            object.__setattr__(self, "n", _lengths("n", self.n, (1,)))
        elif self.n < 0:
            raise ValueError(f"Prefix n is {self.n}; it may be an integer of at least 0")

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges:
        if isinstance(self.n, Tensor):
            stop = self.n.to(frame.device)[:, None].expand(-1, rows.shape[0])
        else:
            stop = torch.full_like(rows, self.n)[None]
        return _clip(torch.zeros_like(stop), stop, frame.Lk)

    def check(self, B: int, H: int, Lq: int, Lk: int) -> None:
        if isinstance(self.n, Tensor) and self.n.shape != (B,):
            raise ValueError(f"Prefix n has shape {tuple(self.n.shape)}; it may be an integer or ({B},)")


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """Packed sequences: a query at position i sees key j when both belong to the same document.

    Args:
        lengths: (n,) integers for every batch entry, or (B, n), where zeros fill up entries with fewer documents.
            Positions past the last document belong to none.
        key_lengths: the same for the keys where they are another sequence (cross-attention); document d of the
            queries sees document d of the keys. None: the same lengths.

    Raises:
        ValueError: lengths that are not integers of one or two dimensions, or unequal numbers of documents.
    """

    lengths: Tensor
    key_lengths: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", _lengths("lengths", self.lengths, (1, 2)))
        if self.key_lengths is not None:
            object.__setattr__(self, "key_lengths", _lengths("key_lengths", self.key_lengths, (1, 2)))
            if self.key_lengths.shape[-1] != self.lengths.shape[-1]:
                raise ValueError(
                    f"Documents has {self.lengths.shape[-1]} query documents and {self.key_lengths.shape[-1]} key"
                    " documents; the numbers must be equal"
                )

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges:
        lengths = torch.atleast_2d(self.lengths).to(frame.device)  # (B|1, n)
        key_lengths = lengths if self.key_lengths is None else torch.atleast_2d(self.key_lengths).to(frame.device)
        i = frame.positions(rows)
        B = max(lengths.shape[0], key_lengths.shape[0], i.shape[0])
        ends = lengths.cumsum(-1).expand(B, -1).contiguous()
        document = torch.searchsorted(ends, i.expand(B, -1).contiguous(), right=True)  # (B, R); n: past the last
        document = document.masked_fill(i < 0, ends.shape[1])
        nothing = key_lengths.new_zeros(B, 1)
        key_lengths = torch.cat((key_lengths.expand(B, -1), nothing), -1)
        stop = key_lengths.cumsum(-1).gather(-1, document)
        return _clip(stop - key_lengths.gather(-1, document), stop, frame.Lk)

    def check(self, B: int, H: int, Lq: int, Lk: int) -> None:
        for name, lengths in (("lengths", self.lengths), ("key_lengths", self.key_lengths)):
            if lengths is not None and lengths.dim() == 2 and lengths.shape[0] not in (1, B):
                raise ValueError(f"Documents {name} has {lengths.shape[0]} batch entries; the query has {B}")
            if lengths is not None and _readable(lengths) and int(lengths.min()) < 0:
                raise ValueError(f"Documents {name} has a length of {int(lengths.min())}; lengths are at least 0")


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Row i of this call sees key j when `allowed` says so.

    Args:
        allowed: a boolean tensor that broadcasts to (B, H, Lq, Lk).

    Raises:
        TypeError: `allowed` is not boolean.
    """

    allowed: Tensor
    relative = True  # it is made for the rows and keys of one call

    def __post_init__(self) -> None:
        if self.allowed.dtype != torch.bool:
            raise TypeError(f"Dense allowed has dtype {self.allowed.dtype}; it must be torch.bool")
        if self.allowed.dim() > 4:
            raise ValueError(f"Dense allowed has shape {tuple(self.allowed.shape)}; at most 4 dimensions")

    def tile(self, frame: Frame, rows: Tensor, keys: range) -> Tensor:
        return tile_of(self.allowed, rows, keys, frame.device)

    def check(self, B: int, H: int, Lq: int, Lk: int) -> None:
        check_broadcast("Dense allowed", self.allowed, (B, H, Lq, Lk))


@dataclass(frozen=True, eq=False)
class _Pair(Mask):
    a: Mask
    b: Mask

    @property
    def from_zero(self) -> bool:  # type: ignore[override]
        return self.a.from_zero and self.b.from_zero

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.a.relative and self.b.relative

    def check(self, B: int, H: int, Lq: int, Lk: int) -> None:
        self.a.check(B, H, Lq, Lk)
        self.b.check(B, H, Lq, Lk)


@dataclass(frozen=True, eq=False)
class Intersection(_Pair):
    """What both masks allow: `a & b`."""

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges | None:
        a, b = self.a.ranges(frame, rows), self.b.ranges(frame, rows)
        if a is None or b is None:
            return None
        return _clip(torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1]), frame.Lk)

    def tile(self, frame: Frame, rows: Tensor, keys: range) -> Tensor:
        return self.a.tile(frame, rows, keys) & self.b.tile(frame, rows, keys)


@dataclass(frozen=True, eq=False)
class Union(_Pair):
    """What either mask allows: `a | b`. An interval only where both begin at key 0."""

    def ranges(self, frame: Frame, rows: Tensor) -> Ranges | None:
        if not self.from_zero:
            return None
        a, b = self.a.ranges(frame, rows), self.b.ranges(frame, rows)
        if a is None or b is None:
            return None
        stop = torch.maximum(a[1], b[1])
        return torch.zeros_like(stop), stop

    def tile(self, frame: Frame, rows: Tensor, keys: range) -> Tensor:
        return self.a.tile(frame, rows, keys) | self.b.tile(frame, rows, keys)


def _lengths(name: str, lengths: Tensor | Sequence[int], dimensions: tuple[int, ...]) -> Tensor:
    lengths = torch.as_tensor(lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {lengths.dtype}; lengths are integers")
    if lengths.dim() not in dimensions:
        raise ValueError(
            f"{name} has shape {tuple(lengths.shape)}; it may have {' or '.join(map(str, dimensions))} dimension(s)"
        )
    return lengths.to(torch.int64)


def _check_lengths(name: str, lengths: Tensor, B: int, L: int, what: str) -> None:
    if lengths.shape != (B,):
        raise ValueError(f"{name} has shape {tuple(lengths.shape)}; the batch asks for ({B},)")
    if _readable(lengths):
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > L:
            raise ValueError(f"{name} goes from {low} to {high}; there are {L} {what}")


def _readable(lengths: Tensor) -> bool:
    """Whether values may be checked: from an accelerator, or while compiling, that costs more than it is worth."""
    return lengths.device.type == "cpu" and not torch.compiler.is_compiling() and lengths.numel() > 0


def register_pytree(*types: type) -> None:
    """Makes frozen dataclasses pytrees, so that torch.compile, vmap and optimisers see the tensors inside."""
    for kind in types:
        names = [f.name for f in fields(kind)]

        def flatten(value: object, names: list[str] = names) -> tuple[list[object], None]:
            return [getattr(value, name) for name in names], None

        def unflatten(children: Iterable[object], _: None, kind: type = kind, names: list[str] = names) -> object:
            value = object.__new__(kind)  # leaves need not be tensors here, so nothing is validated again
            for name, child in zip(names, children, strict=True):
                object.__setattr__(value, name, child)
            return value

        pytree.register_pytree_node(  # type: ignore[attr-defined]
            kind, flatten, unflatten, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}"
        )


register_pytree(Causal, Window, Padding, Prefix, Documents, Dense, Intersection, Union)
