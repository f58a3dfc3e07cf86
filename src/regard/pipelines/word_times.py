"""When each piece of a text was spoken: read off the cross-attention of a model that heard it (arXiv 2212.04356).

    H | heads that follow the sound    R | rows: pieces of the text, and its end    C | positions of the sound

Weights are compared over the rows, smoothed along the sound and averaged over the heads; dynamic time warping then
finds the path through rows and positions with the largest sum, which never goes back.
"""

from __future__ import annotations

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

_SMOOTHED = 7  # positions of the median


def piece_times(weights: Tensor) -> list[int]:
    """The position of the sound at which each row begins.

    Args:
        weights: (H, R, C), attention of each row to each position.

    Returns:
        R positions, none before the one before it.
    """
    mean = weights.mean(1, keepdim=True)
    spread = weights.std(1, keepdim=True, unbiased=False).clamp(min=torch.finfo(weights.dtype).tiny)
    matrix = smoothed((weights - mean) / spread, _SMOOTHED).mean(0)  # (R, C)
    rows, columns = warp(-matrix.double().cpu().numpy())
    _, first = numpy.unique(rows, return_index=True)
    return [int(position) for position in columns[first]]


def smoothed(values: Tensor, width: int) -> Tensor:
    """The median of each `width` neighbours (..., C); values beyond the ends mirror those before them."""
    beyond = width // 2
    if values.shape[-1] <= beyond:
        return values
    padded = torch.nn.functional.pad(values, (beyond, beyond), mode="reflect")
    return padded.unfold(-1, width, 1).sort(-1).values[..., beyond]


def warp(cost: NDArray[numpy.float64]) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
    """The cheapest path from the first row and column to the last, by steps of one down, right or both.

    Args:
        cost: (R, C), of each place on the path.

    Returns:
        The rows and the columns of its places, in order.
    """
    R, C = cost.shape
    total = numpy.full((R + 1, C + 1), numpy.inf)
    total[0, 0] = 0
    steps = numpy.zeros((R + 1, C + 1), dtype=numpy.int8)  # 0: from above and left, 1: from above, 2: from the left
    for diagonal in range(2, R + C + 1):  # every place on it depends on the two diagonals before it alone
        i = numpy.arange(max(1, diagonal - C), min(R, diagonal - 1) + 1)
        j = diagonal - i
        both, above, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        step = numpy.where((both < above) & (both < left), 0, numpy.where((above < both) & (above < left), 1, 2))
        total[i, j] = cost[i - 1, j - 1] + numpy.choose(step, (both, above, left))
        steps[i, j] = step
    steps[0, :], steps[:, 0] = 2, 1
    i, j, path = R, C, list[tuple[int, int]]()
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        step = steps[i, j]
        i, j = i - (step != 2), j - (step != 1)
    places = numpy.array(path[::-1], dtype=numpy.int64)
    return places[:, 0], places[:, 1]
