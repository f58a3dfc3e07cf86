"""What a head does, read off its weights: each role is a number between 0 and 1 with a definition of one line.

A row counts in a role where it may see a key that the role asks for, and has a choice: two keys at least that it may
see. A head is named by its best specific role where that carries at least `SPECIFIC` of the weight; else "local", else
"broad" where these reach their thresholds; else "mixed".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal["self", "cross"]
Labels: TypeAlias = tuple[list[str], list[str]]
Block: TypeAlias = tuple[Tensor, Tensor]
"""Weights of some rows (H, r, Lk), and which keys these may see, (H|1, r|1, Lk|1) boolean."""

SPECIFIC = 0.4
LOCAL = 0.7
BROAD = 0.7

HEAD_ROLES: dict[str, str] = {
    "previous": "mean weight on the element just before the one that looks",
    "same": "mean weight on the very element that looks",
    "diagonal": "in cross-attention: mean weight on the key that stands at the same share of the way through",
    "next": "mean weight on the element just after the one that looks",
    "first": "mean weight on the first element, from others",
    "last": "mean weight on the last element, often the end mark, from others",
    "repeat": "mean weight on other elements with the same label, over rows that may see any",
    "local": "mean weight on elements at most 2 away, itself included",
    "broad": "entropy, as a share of what looking alike at all elements that may be seen would give",
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
    blocks: Iterable[Block], shape: tuple[int, int], kind: Kind, labels: Labels | None = None
) -> list[HeadRole]:
    """The role of every head.

    Args:
        blocks: the weights and what may be seen, a block of rows after another; rows sum to 1, or to 0 where nothing
            is seen. The whole matrix is one block; many keep memory linear in the length.
        shape: (Lq, Lk).
        kind: of the attention.
        labels: of the rows and of the keys, for "repeat"; None leaves it out.
    """
    scores = role_scores(blocks, shape, kind, labels)
    heads = next(iter(scores.values())).shape[0]
    return [_named({name: float(score[head]) for name, score in scores.items()}) for head in range(heads)]


def _named(scores: dict[str, float]) -> HeadRole:
    specific = {name: score for name, score in scores.items() if name not in ("local", "broad")}
    best = max(specific, key=lambda name: specific[name])
    if scores[best] >= SPECIFIC:
        name = best
    elif scores.get("local", 0.0) >= LOCAL:
        name = "local"
    elif scores["broad"] >= BROAD:
        name = "broad"
    else:
        return HeadRole("mixed", max(scores.values()), scores)
    return HeadRole(name, scores[name], scores)


def role_scores(
    blocks: Iterable[Block], shape: tuple[int, int], kind: Kind, labels: Labels | None = None
) -> dict[str, Tensor]:
    """Every role's score for every head, (H,) each; arguments as for `roles_of`."""
    numbers = None if labels is None else _numbers(labels)
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    first = 0
    for block in blocks:
        weights = block[0].cpu()
        visible = block[1].cpu()  # often far smaller: every head, or every row, may see the same
        rows = torch.arange(first, first + weights.shape[1])
        first += weights.shape[1]
        choice = visible.expand(*visible.shape[:-1], shape[1]).sum(-1)  # (H|1, r|1): between so many keys
        chooses = (choice > 1) & (weights.sum(-1) > 0)
        for name, (keys, real) in _keys_of(rows, shape, kind).items():
            on = _taken(weights, keys) * real
            able = chooses & (_taken(visible.expand(-1, len(rows), shape[1]), keys) & real).any(-1)
            _add(totals, counts, name, on.sum(-1), able)  # the first row has nothing before it
        if kind == "self" and numbers is not None:
            same = (numbers[0][rows, None] == numbers[1][None]) & (rows[:, None] != torch.arange(shape[1]))
            on = weights.new_zeros(weights.shape[:2])
            if bool(same.any()):
                on = torch.einsum("hrk,rk->hr", weights, same.to(weights.dtype))  # no copy of the weights
            _add(totals, counts, "repeat", on, chooses & (visible & same).any(-1))
        # torch.special.entr goes through its input one number after another; this is zero at zero, too.
        logarithms = weights.clamp(min=torch.finfo(weights.dtype).tiny).log_()
        entropy = -torch.linalg.vecdot(weights, logarithms) / torch.log(choice.clamp(min=2).float())
        _add(totals, counts, "broad", entropy.clamp(max=1), chooses)
    return {name: total / counts[name].clamp(min=1) for name, total in totals.items()}


def _keys_of(rows: Tensor, shape: tuple[int, int], kind: Kind) -> dict[str, tuple[Tensor, Tensor]]:
    """For each role that asks for certain keys of each row: these, (r, n), and which of them there are."""
    Lq, Lk = shape
    i = rows[:, None]
    ends = {"first": torch.zeros_like(i), "last": torch.full_like(i, Lk - 1)}
    if kind == "cross":
        wanted = ends | {"diagonal": (i * (Lk - 1) / max(Lq - 1, 1)).round().long()}
        return {name: (keys, torch.ones_like(keys, dtype=torch.bool)) for name, keys in wanted.items()}
    found = {name: (keys, keys != i) for name, keys in ends.items()}
    near = {"previous": i - 1, "same": i, "next": i + 1, "local": i + torch.arange(-2, 3)}
    return found | {name: (keys.clamp(0, Lk - 1), (keys >= 0) & (keys < Lk)) for name, keys in near.items()}


def _taken(values: Tensor, keys: Tensor) -> Tensor:
    """Of values (H, r, Lk) those at each row's keys (r, n): (H, r, n)."""
    return values.gather(2, keys.expand(len(values), -1, -1))


def _numbers(labels: Labels) -> tuple[Tensor, Tensor]:
    """Equal labels as equal numbers."""
    number = {label: n for n, label in enumerate({*labels[0], *labels[1]})}
    rows, keys = (torch.tensor([number[label] for label in names]) for names in labels)
    return rows, keys


def _add(totals: dict[str, Tensor], counts: dict[str, Tensor], name: str, values: Tensor, counted: Tensor) -> None:
    """Adds values (H, r) of the rows that count, and how many these are."""
    totals[name] = totals.get(name, 0) + (values * counted).sum(-1)
    counted = counted.expand(values.shape)
    counts[name] = counts.get(name, 0) + counted.sum(-1)
