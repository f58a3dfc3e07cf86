"""Which documents, turns, images or frames were used: what each head gave to each segment of its keys."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.attention import Observation
from regard.relations.sites import Site


@dataclass(frozen=True)
class SegmentShare:
    """How much of a head's weight went to one segment."""

    site: str
    head: int
    segment: int | None  # None: keys that belong to no segment
    name: str  # "" for these
    share: float  # of what each row gives, in the mean over the rows asked about


def segment_shares(
    site: Site, seen: Observation, mass: Tensor, names: list[str], rows: Collection[int] | None, item: int
) -> list[SegmentShare]:
    """The shares at one site, by head and segment; last of a head what belongs to no segment.

    Args:
        site: where.
        seen: what its call saw.
        mass: of the item's elements, (H, Lq, S).
        names: of the segments; numbers beyond them.
        rows: which rows; None is all.
        item: which batch entry.
    """
    H, Lq, S = mass.shape
    names = names + [str(number) for number in range(len(names), S)]
    chosen = torch.arange(Lq)[slice(None) if rows is None else [*rows]]
    found: list[SegmentShare] = []
    for head in range(H):
        looking = chosen[(seen.max_weight[item, head, chosen] > 0).cpu()]  # rows that may see anything
        shares, none = [0.0] * len(names), 0.0
        if len(looking):
            shares[:S] = mass[head, looking].mean(0).tolist()
            learned = 0.0 if seen.sink_weight is None else float(seen.sink_weight[item, head, looking].mean())
            none = max(0.0, 1 - learned - sum(shares))
        number = site.head_number(head)
        found += [SegmentShare(site.path, number, i, *of) for i, of in enumerate(zip(names, shares, strict=True))]
        found.append(SegmentShare(site.path, number, None, "", none))
    return found
