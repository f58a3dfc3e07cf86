"""Methods beside their random control, over many inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from regard.relations.faithfulness.deletion import CONTROL, METRICS
from regard.relations.faithfulness.intervals import CONFIDENCE, RESAMPLES, Interval, interval_of, resampled_means


@dataclass(frozen=True)
class Comparison:
    """One method's mean over inputs by one metric, the control's, and the mean difference between the two."""

    method: str
    metric: str
    value: Interval
    control: Interval
    difference: Interval  # the method's less the control's, input by input

    @property
    def verdict(self) -> Literal["better", "worse", "no difference"]:
        """What the interval of the difference says of the method, beside rankings at random."""
        if self.difference.low <= 0 <= self.difference.high:
            return "no difference"
        return "better" if (self.difference.low > 0) is (METRICS[self.metric].better == "higher") else "worse"

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        return {
            "method": self.method,
            "metric": self.metric,
            "better": METRICS[self.metric].better,
            "value": self.value.to_dict(),
            CONTROL: self.control.to_dict(),
            "difference": self.difference.to_dict(),
            "verdict": self.verdict,
        }


def compare_with_control(
    found: Sequence[Mapping[str, Mapping[str, float]]],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Comparison]:
    """Every method and metric beside the control, with bootstrap intervals over the inputs.

    The same resamples serve all, so that the interval of a difference is that of a paired comparison. Intervals are
    of each comparison by itself: of twenty that have no difference, one is likely to show one at 95 %.

    Args:
        found: for each input what `faithfulness_of` gave, of the same methods and metrics.
        resamples: of the inputs.
        confidence: of the intervals.
        seed: of the resamples.

    Returns:
        By metric, then method, in the order of the first input.

    Raises:
        ValueError: there are no inputs, or an argument is out of range.
        KeyError: an input lacks a method or a metric of the first.
    """
    if not found:
        raise ValueError("found is empty; there must be one input or more")
    pairs = [(method, metric) for metric in found[0][CONTROL] for method in found[0]]
    values = torch.tensor([[of[method][metric] for method, metric in pairs] for of in found], dtype=torch.float64)
    means, samples = values.mean(0), resampled_means(values, resamples=resamples, seed=seed)
    place = {pair: i for i, pair in enumerate(pairs)}
    rows: list[Comparison] = []
    for method, metric in pairs:
        if method == CONTROL:
            continue
        i, c = place[method, metric], place[CONTROL, metric]
        rows.append(
            Comparison(
                method,
                metric,
                interval_of(float(means[i]), samples[:, i], confidence),
                interval_of(float(means[c]), samples[:, c], confidence),
                interval_of(float(means[i] - means[c]), samples[:, i] - samples[:, c], confidence),
            )
        )
    return rows
