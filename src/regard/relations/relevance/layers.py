"""What the methods that go through the layers share: the layers in order, the row asked about, the result.

L | elements
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.attention import Observation
from regard.relations.narrow import narrowed
from regard.relations.relations import Relations
from regard.relations.sites import Sequence, Site


@dataclass(frozen=True)
class Relevance:
    """How much each element mattered for one target, by one method.

    Args:
        method: how it was computed, for a person.
        sites: paths of the attention it was computed from, first layer first.
        scores: (L,) float32, of each element.
        sequence: what the elements are; None where `observe` was not told.
    """

    method: str
    sites: tuple[str, ...]
    scores: Tensor
    sequence: Sequence | None = None

    def top(self, count: int = 8) -> list[tuple[int, float]]:
        """The elements with the largest scores, largest first: index and score; equal ones by lowest index."""
        order = self.scores.argsort(descending=True, stable=True)[:count]
        return [(int(index), float(self.scores[index])) for index in order]

    def to_dict(self) -> dict[str, Any]:
        """As data for views and `--json`."""
        return {
            "method": self.method,
            "sites": [*self.sites],
            "sequence": None if self.sequence is None else self.sequence.to_dict(),
            "scores": self.scores.tolist(),
        }


def layers_under(relations: Relations, under: str) -> list[Site]:
    """The self-attention under a path, one site a layer, first layer first."""

    def below(path: str) -> bool:
        return not under or path == under or path.startswith(under + ".")

    where = f"under {under!r}" if under else "in this model"
    sites = [site for site in relations.sites if site.kind == "self" and below(site.path)]
    missed = [path for path in relations.missed if below(path)]
    if not sites:
        raise ValueError(f"no self-attention was observed {where}; there is {[s.path for s in relations.sites]}")
    if missed:
        raise ValueError(f"attention {where} was not observed at {missed}, and rollout goes through every layer")
    kinds = sorted({re.sub(r"\d+", "*", site.path) for site in sites})
    if len(kinds) > 1:
        raise ValueError(f"under is {under!r}; it must be the path of one stack of layers, and there is {kinds}")
    found = [re.search(r"\d+", site.path[len(under) :]) for site in sites]
    numbers = [0 if number is None else int(number.group()) for number in found]
    if numbers != [*range(len(sites))]:
        raise ValueError(f"layers {numbers} were observed {where}; rollout needs all, from 0 on")
    return sites


def entry_of(relations: Relations, site: Site, item: int, step: int | None) -> Observation:
    """What one forward pass saw of one batch entry; its questions are answered for this one alone."""
    steps = len(relations.steps(site.path))
    if step is None and steps > 1:
        raise ValueError(f"step is None; {site.path!r} was observed {steps} times, and it must say which")
    seen = relations.observation(site.path, -1 if step is None else step)
    entries = seen.logsumexp.shape[0]
    if not 0 <= item < entries:
        raise ValueError(f"item is {item}; {site.path!r} has batch entries 0 … {entries - 1}")
    return seen if entries == 1 else narrowed(seen, item)


def common_length(sites: list[Site], seen: list[Observation]) -> int:
    """How many rows, which are also the keys, every layer has."""
    found: set[int] = set()
    for site, layer in zip(sites, seen, strict=True):
        if layer.kept is None:
            raise ValueError(f"rollout needs queries and keys, and {site.path!r} was observed with keep=False")
        if layer.kept.Lq != layer.kept.Lk:
            raise ValueError(
                f"{site.path!r} has {layer.kept.Lq} rows of {layer.kept.Lk} keys; rollout needs all rows in one pass"
            )
        found.add(layer.kept.Lq)
    if len(found) > 1:
        raise ValueError(f"layers have lengths {sorted(found)}; rollout needs one length")
    return found.pop()


def shares_of(target: int | Tensor, length: int, rows: int) -> Tensor:
    """(rows,): how much of each row is asked about; 0 for padding."""
    shares = torch.zeros(rows)
    if isinstance(target, Tensor):
        if target.shape != (length,):
            raise ValueError(f"target has shape {tuple(target.shape)}; it may be a row, or a share a row, ({length},)")
        shares[:length] = target.detach().to("cpu", torch.float32)
    elif -length <= target < length:
        shares[target % length] = 1.0
    else:
        raise ValueError(f"target is {target}; there are rows 0 … {length - 1}")
    return shares
