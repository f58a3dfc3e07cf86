"""The largest scores of every row and where they stand, exactly, equal ones by lowest key.

n | keys of a row    k | how many are looked for    m | groups
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from regard.attention import strips


def top_indices(s: Tensor, k: int) -> Tensor:
    """The indices (…, k) of the k largest scores of s (…, n), largest first, equal ones by lowest index.

    Those of keys that may not be seen, which come last, are in any order.
    """
    size = 1 if not s.is_cpu or torch.compiler.is_compiling() else _group_size(s.shape[-1], k)
    values, index, tied = _top(s.clone(), k) if size == 1 else _top_of_groups(s, k, size)
    tied |= ((values[..., 1:] == values[..., :-1]) & (values[..., 1:] > strips.NEVER)).any(-1)
    if torch.compiler.is_compiling() or bool(tied.any()):
        exact = s[tied].sort(dim=-1, descending=True, stable=True).indices[..., :k]
        index = index.masked_scatter(tied[..., None], exact)
    return index


@cache
def _group_size(n: int, k: int) -> int:
    """The size of groups that makes `_top_of_groups` soonest done; 1 where `_top` is."""

    def time_of(count: int) -> float:
        """Of PyTorch's topk, in ns: from 64 k numbers on it takes another way, which is shorter."""
        return 190 + 8.5 * count if count < 64 * k else 1000 + 1.5 * count

    sizes = [1 << i for i in range(8) if k <= n >> i]
    return min(sizes, key=lambda size: time_of(n // size) + (time_of(size * k) if size > 1 else 0.3 * n), default=1)


def _top(s: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of s (…, n), which is overwritten, their indices, and whether another equals the last of them."""
    values, index = s.topk(k, -1)
    last = values[..., -1:]
    others = s.scatter_(-1, index, -torch.inf).amax(-1, keepdim=True)
    return values, index, ((others == last) & (last > strips.NEVER))[..., 0]


def _top_of_groups(s: Tensor, k: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`_top` of s (…, n), which stays as it is, by groups of `size` elements, every m-th.

    The k largest stand in the k groups with the largest maxima, if no other group has an equal one.
    """
    m = s.shape[-1] // size
    groups = s[..., : size * m].unflatten(-1, (size, m))  # (…, size, m)
    _, chosen, unsure = _top(groups.amax(-2), k)  # (…, k)
    found = groups.gather(-1, chosen[..., None, :].expand(*groups.shape[:-1], k)).flatten(-2)  # (…, size · k)
    values, at, tied = _top(torch.cat([found, s[..., size * m :]], -1), k)
    inside = at < size * k
    index = chosen.gather(-1, torch.where(inside, at % k, 0)) + at.div(k, rounding_mode="floor") * m
    return values, torch.where(inside, index, at + size * (m - k)), tied | unsure
