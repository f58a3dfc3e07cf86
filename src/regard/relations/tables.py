"""The edges of observed calls as columns: what data frames, Arrow tables and Parquet files are made of.

n | edges    H | heads    R | query rows
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.attention import Observation
from regard.relations.sites import Site


class Links(NamedTuple):
    """The edges of one batch entry in one call, by head, row and falling weight."""

    item: int
    step: int
    site: str
    places: Tensor  # (n, 3) int64: head (by the model's number), query, key
    weights: Tensor  # (n,)
    ranks: Tensor  # (n,) int64: 0 for the largest weight of its row


def links_of(
    seen: Observation, site: Site, item: int, step: int, rows: int, heads: slice = slice(None)
) -> Links | None:
    """The edges of the first `rows` rows of an item, and of some heads; None where no largest weights were kept."""
    if seen.top_keys is None or seen.top_weights is None:
        return None
    numbers = torch.tensor([site.head_number(head) for head in range(site.heads)])[heads]
    keys, weights = (t[item, heads, :rows].cpu() for t in (seen.top_keys, seen.top_weights))  # (H, R, k)
    there = keys >= 0
    head, row, rank = there.nonzero().unbind(-1)
    row = row if seen.rows is None else seen.rows.cpu()[row]
    return Links(item, step, site.path, torch.stack([numbers[head], row, keys[there]], -1), weights[there], rank)


def columns_of(links: Iterable[Links]) -> dict[str, Any]:
    """Edges as columns: item, step, site, head, query, key, weight."""
    links = [*links]
    counts = torch.tensor([len(some.weights) for some in links], dtype=torch.int64)

    def repeated(numbers: list[int]) -> Any:
        return torch.tensor(numbers, dtype=torch.int64).repeat_interleave(counts).numpy()

    places = torch.cat([torch.zeros(0, 3, dtype=torch.int64), *(some.places for some in links)])
    return {
        "item": repeated([some.item for some in links]),
        "step": repeated([some.step for some in links]),
        "site": [some.site for some in links for _ in range(len(some.weights))],
        **{name: places[:, i].numpy() for i, name in enumerate(("head", "query", "key"))},
        "weight": torch.cat([torch.zeros(0), *(some.weights for some in links)]).numpy(),
    }
