"""How an answer changes as elements are deleted from an input, the most relevant first, or as these alone are kept.

N | elements that may be deleted    n | copies of the input    R | rankings    K | points of a curve

How an element is deleted is the caller's: what is here says which elements a copy keeps, and reads the answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BINS = (1.0, 5.0, 10.0, 20.0, 50.0)
"""Percent of the elements, of which comprehensiveness and sufficiency take the mean (arXiv 1911.03429)."""
POINTS = 10
"""Steps of a curve at most, evenly spread: one element a step where there are no more."""
CONTROL = "random"
"""What the mean over rankings at random is called among methods."""
Answer = Callable[[Tensor], Tensor]
"""Which elements each copy keeps, (n, N) boolean → the answer to each copy, such as a class's probability, (n,)."""

_Copy = tuple[bool, int]  # so many of the highest elements: kept alone, or deleted


@dataclass(frozen=True)
class Metric:
    """A measure of how well a ranking tells what an answer depends on.

    Args:
        name: of the metric.
        kept: whether the highest elements alone are kept, or deleted and all others kept.
        over: all of the curve (its area, from 0 to all elements), or the mean over `BINS`.
        better: which values speak for a ranking.
        definition: for a person.
    """

    name: str
    kept: bool
    over: Literal["curve", "bins"]
    better: Literal["lower", "higher"]
    definition: str


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "deletion",
            False,
            "curve",
            "lower",
            "area under the answer while elements are deleted, most relevant first (arXiv 1806.07421)",
        ),
        Metric(
            "insertion",
            True,
            "curve",
            "higher",
            "area under the answer while elements are put back, most relevant first (arXiv 1806.07421)",
        ),
        Metric(
            "comprehensiveness",
            False,
            "bins",
            "higher",
            "how far the answer falls without the most relevant 1, 5, 10, 20, 50 % (arXiv 1911.03429)",
        ),
        Metric(
            "sufficiency",
            True,
            "bins",
            "lower",
            "how far the answer falls with these alone (arXiv 1911.03429)",
        ),
    )
}


def faithfulness_of(
    answer: Answer,
    scores: Mapping[str, Tensor],
    *,
    metrics: Sequence[str] = tuple(METRICS),
    controls: int = 5,
    generator: torch.Generator | None = None,
    bins: Sequence[float] = BINS,
    points: int = POINTS,
) -> dict[str, dict[str, float]]:
    """How faithful relevance scores are for one input, by several methods, beside rankings at random.

    Elements are ranked by their scores, largest first, equal ones by lowest index; nothing else of the scores counts.
    The answers to all rankings are asked for together, and each different copy of the input once.

    `deletion` and `insertion` are areas under the answer over the share of elements, by the trapezoid rule.
    `comprehensiveness` and `sufficiency` are means over the bins of what the answer to the whole input has more than
    the one without the highest elements, or with them alone: of N elements, ⌈bin · N / 100⌉. The paper's sum also has
    a bin of no elements, which is the same for every ranking.

    >>> weights = torch.tensor([3.0, 1.0, 0.0, 2.0])
    >>> found = faithfulness_of(lambda kept: kept.float() @ weights, {"exact": weights}, metrics=["deletion"])
    >>> found["exact"]["deletion"]  # of 6, 3, 1, 0, 0
    1.75

    Args:
        answer: the model on copies of the input; see `Answer`.
        scores: by method, (N,) each.
        metrics: names in `METRICS`.
        controls: how many rankings at random; their mean is the method "random".
        generator: of these rankings; one with seed 0 unless given. Give one for all inputs of a comparison.
        bins: percent of the elements.
        points: steps of a curve at most, evenly spread.

    Returns:
        By method, "random" last, and metric.

    Raises:
        ValueError: there are no elements, scores differ in length or are not numbers, the answers are not one number
            a copy, or an argument is out of range.
    """
    N = _checked(scores, metrics, controls, bins, points)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    orders = [s.detach().cpu().argsort(descending=True, stable=True) for s in scores.values()]
    orders += [torch.randperm(N, generator=generator) for _ in range(controls)]
    ranks = torch.stack(orders).argsort(-1)  # (R, N), 0 for the element with the highest score
    in_bins = [math.ceil(N * bin / 100) for bin in bins]
    steps = min(N, points)
    curve = [round(N * i / steps) for i in range(steps + 1)]
    of = _answers(answer, ranks, [METRICS[name] for name in metrics], curve, in_bins)
    values = {name: _value(METRICS[name], of, curve, in_bins, N) for name in metrics}  # (R,) each
    found = {method: {name: float(values[name][i]) for name in metrics} for i, method in enumerate(scores)}
    found[CONTROL] = {name: float(values[name][len(scores) :].mean()) for name in metrics}
    return found


def _answers(
    answer: Answer, ranks: Tensor, metrics: Sequence[Metric], curve: Sequence[int], bins: Sequence[int]
) -> dict[_Copy, Tensor]:
    """The answer to every copy that these metrics need, of each ranking, (R,)."""
    asked: dict[_Copy, Tensor] = {}  # which elements each ranking's copy keeps, (R, N)
    for kept in sorted({metric.kept for metric in metrics}):
        over = {metric.over for metric in metrics if metric.kept is kept}
        everything = ranks.shape[-1] if kept else 0
        for count in {*(curve if "curve" in over else ()), *((everything, *bins) if "bins" in over else ())}:
            asked[kept, count] = (ranks < count) if kept else (ranks >= count)
    copies, place = torch.unique(torch.cat([*asked.values()]), dim=0, return_inverse=True)
    answers = answer(copies).detach().double().cpu()
    if answers.shape != (len(copies),):
        raise ValueError(f"answer gave {tuple(answers.shape)} for {len(copies)} copies; it must be one number each")
    return dict(zip(asked, answers[place].unflatten(0, (len(asked), -1)), strict=True))


def _value(metric: Metric, of: Mapping[_Copy, Tensor], curve: Sequence[int], bins: Sequence[int], N: int) -> Tensor:
    """One metric of every ranking, (R,)."""
    if metric.over == "curve":
        shares = torch.tensor(curve, dtype=torch.float64) / N
        return torch.trapezoid(torch.stack([of[metric.kept, count] for count in curve], -1), shares)
    everything = of[metric.kept, N if metric.kept else 0]
    return torch.stack([everything - of[metric.kept, count] for count in bins]).mean(0)


def _checked(
    scores: Mapping[str, Tensor], metrics: Sequence[str], controls: int, bins: Sequence[float], points: int
) -> int:
    """How many elements there are, if the arguments are what they may be."""
    shapes = {tuple(s.shape) for s in scores.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or 0 in next(iter(shapes)):
        raise ValueError(f"scores have shapes {sorted(shapes)}; it must be one, (N,), with an element or more")
    for method, of_elements in scores.items():
        if method == CONTROL:
            raise ValueError(f"scores has the method {CONTROL!r}, which is the control's name")
        if bool(of_elements.isnan().any()):
            raise ValueError(f"scores of {method!r} hold NaN; they must be numbers, to be ranked")
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metrics has {unknown[0]!r}; it may have {', '.join(METRICS)}")
    if controls < 1 or points < 1:
        raise ValueError(f"controls is {controls} and points {points}; each must be at least 1")
    if not bins or not all(0 < bin <= 100 for bin in bins):
        raise ValueError(f"bins is {tuple(bins)}; it must be percents above 0, 100 at most")
    return next(iter(shapes))[0]
