"""What a head does, read off its weights: each role is a number between 0 and 1 with a definition of one line.

Rows with nothing to see count in no role. A head is named by its best specific role where that carries at least
`SPECIFIC` of the weight; else "local", else "broad" where these reach their thresholds; else "mixed".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SPECIFIC = 0.4
LOCAL = 0.7
BROAD = 0.7

HEAD_ROLES: dict[str, str] = {
    "previous": "mean weight on the element just before the one that looks",
    "same": "mean weight on the very element that looks (in cross-attention: at the same share of the way through)",
    "next": "mean weight on the element just after the one that looks",
    "first": "mean weight on the first element",
    "last": "mean weight on the last element, often the end mark",
    "repeat": "mean weight on other elements with the same label, over rows that have any",
    "local": "mean weight on elements at most 2 away, itself included",
    "broad": "entropy, as a share of what looking at every visible element alike would give",
    "mixed": "none of these: the score is that of the best of them",
}
"""The definition of every role."""


@dataclass(frozen=True)
class HeadRole:
    """The role of one head: its name, a key of HEAD_ROLES, and its score; `scores` has all of them."""

    name: str
    score: float
    scores: dict[str, float]


def roles_of(
    weights: Tensor, kind: Literal["self", "cross"], labels: tuple[list[str], list[str]] | None = None
) -> list[HeadRole]:
    """The role of every head.

    Args:
        weights: (H, Lq, Lk), rows sum to 1, or to 0 where nothing is seen.
        kind: of the attention.
        labels: of the rows and of the keys, for "repeat"; None leaves it out.
    """
    scores = role_scores(weights, kind, labels)
    roles: list[HeadRole] = []
    for head in range(weights.shape[0]):
        own = {name: float(score[head]) for name, score in scores.items()}
        specific = {name: score for name, score in own.items() if name not in ("local", "broad")}
        name = max(specific, key=lambda n: specific[n]) if specific else "broad"
        if own.get(name, 0.0) < SPECIFIC:
            if own.get("local", 0.0) >= LOCAL:
                name = "local"
            elif own["broad"] >= BROAD:
                name = "broad"
            else:
                roles.append(HeadRole("mixed", max(own.values()), own))
                continue
        roles.append(HeadRole(name, own[name], own))
    return roles


def role_scores(
    weights: Tensor, kind: Literal["self", "cross"], labels: tuple[list[str], list[str]] | None = None
) -> dict[str, Tensor]:
    """Every role's score for every head, (H,) each; arguments as for `roles_of`."""
    Lq, Lk = weights.shape[1:]
    i, j = torch.arange(Lq)[:, None], torch.arange(Lk)[None]
    sees = weights.sum(-1) > 0  # (H, Lq)
    diagonal = i if kind == "self" else (i * (Lk - 1) / max(Lq - 1, 1)).round()
    masks = {"same": j == diagonal, "first": (j == 0).expand(Lq, -1), "last": (j == Lk - 1).expand(Lq, -1)}
    if kind == "self":
        masks |= {"previous": j == i - 1, "next": j == i + 1, "local": (j - i).abs() <= 2}
        if labels is not None:
            number = {label: n for n, label in enumerate({*labels[0], *labels[1]})}
            rows, keys = (torch.tensor([number[label] for label in names]) for names in labels)
            masks["repeat"] = (rows[:Lq, None] == keys[None, :Lk]) & (i != j)
    scores: dict[str, Tensor] = {}
    for name, mask in masks.items():
        able = sees & mask.any(-1)  # the first row has nothing before it
        scores[name] = _mean((weights * mask).sum(-1), able)
    visible = (weights > 0).sum(-1)
    widest = torch.log(visible.clamp(min=2).float())
    scores["broad"] = _mean(torch.special.entr(weights).sum(-1) / widest, sees & (visible > 1)).clamp(max=1)
    return scores


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over the rows that count: (H, Lq) → (H,); 0 where none does."""
    return (values * counted).sum(-1) / counted.sum(-1).clamp(min=1)
