"""Relations as the data that views draw and `--json` writes: lists, numbers and names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from regard.attention import Observation
from regard.relations.heads import HeadRole
from regard.relations.sites import Site


def site_data(site: Site, seen: Observation, roles: Iterable[HeadRole], lengths: tuple[int, int], item: int) -> Any:
    """One item at a site: what the site is, its statistics, its largest weights and what its heads do.

    Args:
        site: where it was seen.
        seen: what its call saw.
        roles: what each head does.
        lengths: how many rows and keys are elements of the item.
        item: which batch entry.
    """
    Lq, Lk = lengths
    data: dict[str, Any] = {
        "path": site.path,
        "kind": site.kind,
        "part": site.part,
        "layer": site.layer,
        "heads": site.heads,
        "query": site.query,
        "key": site.key,
    }
    for name in ("top_keys", "top_weights", "rest", "entropy", "max_weight", "mean_distance"):
        statistic: Tensor | None = getattr(seen, name)
        data[name] = None if statistic is None else _numbers(statistic[item, :, :Lq])
    data["received"] = None if seen.received is None else _numbers(seen.received[item, :, :Lk])
    data["roles"] = [{"name": role.name, "score": role.score} for role in roles]
    return data


def _numbers(tensor: Tensor) -> list[Any]:
    """Nested lists; NaN and infinities become None."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
        return value if math.isfinite(value) else None

    return plain(tensor.tolist()) if not bool(torch.isfinite(tensor).all()) else tensor.tolist()
