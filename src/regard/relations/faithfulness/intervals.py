"""Bootstrap intervals over inputs (Efron 1979): how much a mean would vary with other inputs of the same kind.

n | inputs    S | statistics    R | resamples
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95
_BLOCK = 2**22  # numbers drawn at once


@dataclass(frozen=True)
class Interval:
    """A value, and the interval in which the same percentage of resamples leaves out as much above as below."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """As data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resampled_means(values: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Means over as many inputs as there are, drawn with replacement: whole rows, so that what belongs together stays.

    Args:
        values: (n, S).
        resamples: how many times.
        seed: of the draw.

    Returns:
        (R, S) float64.

    Raises:
        ValueError: there are no inputs, or fewer than 1 resamples.
    """
    n = len(values)
    if values.dim() != 2 or n == 0 or resamples < 1:
        raise ValueError(
            f"values has shape {tuple(values.shape)} and resamples is {resamples}; there must be inputs, (n, S), and"
            " one resample or more"
        )
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for first in range(0, resamples, block := max(1, _BLOCK // n)):
        drawn = torch.randint(n, (min(block, resamples - first), n), generator=generator)
        shares = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(
            1, drawn, torch.full(drawn.shape, 1 / n, dtype=torch.float64)
        )
        found.append(shares @ values.double())
    return torch.cat(found)


def interval_of(value: float, samples: Tensor, confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of resampled values, (R,).

    Raises:
        ValueError: the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1")
    tail = (1 - confidence) / 2
    low, high = samples.double().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value, low, high)
