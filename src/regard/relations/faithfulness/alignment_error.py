"""Alignment error rate (Och & Ney 2003) of word alignments against ones made by hand, beside two that read nothing.

n | sentence pairs    A | links found    S | sure links    P | possible links, the sure ones among them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.relations.faithfulness.intervals import CONFIDENCE, RESAMPLES, Interval, interval_of, resampled_means

Link = tuple[int, int]
"""(target word, source word), each counted from 0."""
DIAGONAL, RANDOM = "diagonal", "random"


@dataclass(frozen=True)
class ReferencePair:
    """A sentence pair as it was aligned by hand.

    Args:
        target: how many words the target sentence has.
        source: how many words the source sentence has.
        sure: links that have to be found.
        possible: links that may be found; the sure ones may be left out of it.

    Raises:
        ValueError: a link names a word that there is not.
    """

    target: int
    source: int
    sure: frozenset[Link]
    possible: frozenset[Link] = frozenset()

    def __post_init__(self) -> None:
        for t, s in sorted(self.sure | self.possible):
            if not (0 <= t < self.target and 0 <= s < self.source):
                raise ValueError(f"link {(t, s)} is not in a pair of {self.target} and {self.source} words")


@dataclass(frozen=True)
class AlignmentScores:
    """What an alignment is worth against one made by hand, over all pairs together.

    Args:
        method: how it was found.
        error: alignment error rate, 1 - (|A ∩ S| + |A ∩ P|) / (|A| + |S|).
        precision: |A ∩ P| / |A|; 0 where no link was found.
        recall: |A ∩ S| / |S|.
        coverage: the share of all words, of both sides, that have a link.
        beyond_diagonal: the error rate less that of the diagonal.
        beyond_random: the error rate less that of links at random.
    """

    method: str
    error: Interval
    precision: Interval
    recall: Interval
    coverage: Interval
    beyond_diagonal: Interval
    beyond_random: Interval

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        return {
            name: value.to_dict() if isinstance(value, Interval) else value for name, value in self.__dict__.items()
        }


def diagonal_links(target: int, source: int) -> frozenset[Link]:
    """Every target word with the source word at the same share of its sentence: what needs no model.

    >>> sorted(diagonal_links(3, 5))
    [(0, 0), (1, 2), (2, 4)]
    """
    return frozenset((t, round(t * (source - 1) / max(target - 1, 1))) for t in range(target) if source)


def alignment_scores(
    found: Mapping[str, Sequence[AbstractSet[Link]]],
    reference: Sequence[ReferencePair],
    *,
    controls: int = 10,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[AlignmentScores]:
    """Alignments against one made by hand, beside the diagonal and one random link a target word.

    Rates are of all pairs together, their sums divided, and intervals are bootstrapped over pairs, the same resamples
    for all.

    Args:
        found: by method, the links of each pair.
        reference: the pairs.
        controls: how many alignments at random; their counts are averaged.
        resamples: of the pairs.
        confidence: of the intervals.
        seed: of links at random and of resamples.

    Returns:
        The methods in order, then "diagonal" and "random".

    Raises:
        ValueError: there are no pairs or no sure links, a method has links of another number of pairs, bears the name
            of a baseline, or links a word that there is not; an argument is out of range.
    """
    if controls < 1:
        raise ValueError(f"controls is {controls}; it must be at least 1")
    if not any(pair.sure for pair in reference):
        raise ValueError(f"reference has {len(reference)} pairs and no sure link; there must be some")
    counts: dict[str, Tensor] = {}
    for method, links in found.items():
        if len(links) != len(reference) or method in (DIAGONAL, RANDOM):
            raise ValueError(f"found has {len(links)} pairs for {method!r}; the reference has {len(reference)}")
        counts[method] = _counts(links, reference)
    counts[DIAGONAL] = _counts([diagonal_links(p.target, p.source) for p in reference], reference)
    generator = torch.Generator().manual_seed(seed)
    drawn = [_counts([_at_random(p, generator) for p in reference], reference) for _ in range(controls)]
    counts[RANDOM] = torch.stack(drawn).mean(0)
    names = [*counts]
    values = torch.stack([*counts.values()], 1)  # (n, methods, 6)
    sums = resampled_means(values.flatten(1), resamples=resamples, seed=seed).unflatten(1, values.shape[1:])
    samples, points = _rates(sums), _rates(values.mean(0)[None])[:, 0]  # (4, R, methods), (4, methods)
    baselines = [names.index(name) for name in (DIAGONAL, RANDOM)]
    rows: list[AlignmentScores] = []
    for i, name in enumerate(names):
        rates = [interval_of(float(points[j, i]), samples[j, :, i], confidence) for j in range(4)]
        beyond = [
            interval_of(float(points[0, i] - points[0, b]), samples[0, :, i] - samples[0, :, b], confidence)
            for b in baselines
        ]
        rows.append(AlignmentScores(name, *rates, *beyond))
    return rows


def _at_random(pair: ReferencePair, generator: torch.Generator) -> frozenset[Link]:
    """Every target word with one source word, whichever."""
    if not pair.source:
        return frozenset()
    return frozenset(enumerate(torch.randint(pair.source, (pair.target,), generator=generator).tolist()))


def _counts(found: Sequence[AbstractSet[Link]], reference: Sequence[ReferencePair]) -> Tensor:
    """(n, 6): |A|, |S|, |A ∩ S|, |A ∩ P|, words with a link, words."""
    rows: list[list[int]] = []
    for number, (links, pair) in enumerate(zip(found, reference, strict=True)):
        for t, s in links:
            if not (0 <= t < pair.target and 0 <= s < pair.source):
                raise ValueError(
                    f"link {(t, s)} of pair {number} is not in a pair of {pair.target} and {pair.source} words"
                )
        sure, possible = len(links & pair.sure), len(links & (pair.sure | pair.possible))
        linked = len({t for t, _ in links}) + len({s for _, s in links})
        rows.append([len(links), len(pair.sure), sure, possible, linked, pair.target + pair.source])
    return torch.tensor(rows, dtype=torch.float64)


def _rates(sums: Tensor) -> Tensor:
    """(…, methods, 6) → error, precision, recall and coverage, (4, …, methods); 0 of nothing is 0."""
    found, sure, both, allowed, linked, words = sums.unbind(-1)
    parts = [(found + sure - both - allowed, found + sure), (allowed, found), (both, sure), (linked, words)]
    return torch.stack([torch.where(whole > 0, part / whole, 0.0) for part, whole in parts])
