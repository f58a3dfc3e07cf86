"""What an augmentation is, and those that mix the examples of a batch.

All random numbers come from torch's default generator, which the loop seeds for every batch.

B | examples in a batch    C | channels    H, W | height and width, or mel bins and frames    K | classes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


class Augmentation(ABC):
    """Changes a batch of examples, and what is to be answered where it mixes them."""

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            inputs: (B, C, H, W) floating point; left as it is.
            targets: (B, K), the part that each class has in each example.

        Returns:
            Both, of the same shapes.
        """
        return self.change(inputs), targets

    @abstractmethod
    def change(self, inputs: Tensor) -> Tensor:
        """The inputs (B, C, H, W), changed."""


@dataclass(frozen=True)
class MixUp(Augmentation):
    """Every example becomes a weighted mean of itself and another of the batch, and so do the targets.

    Args:
        alpha: the weight is drawn from Beta(alpha, alpha), once a batch; above 0.

    Raises:
        ValueError: if alpha is not positive.

    arXiv 1710.09412.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        kept = _beta(self.alpha)
        other = torch.randperm(len(inputs))
        return torch.lerp(inputs[other], inputs, kept), torch.lerp(targets[other], targets, kept)

    def change(self, inputs: Tensor) -> Tensor:
        """Not of itself: whoever mixes inputs must mix the targets."""
        raise TypeError("MixUp changes inputs and targets together: call it with both")


@dataclass(frozen=True)
class CutMix(Augmentation):
    """A box of every example is that of another of the batch, and its part of the area goes to the other's class.

    Args:
        alpha: the area that is kept is drawn from Beta(alpha, alpha), once a batch; above 0.
        p: probability that a batch is changed at all.

    Raises:
        ValueError: if alpha is not positive, or p is no probability.

    arXiv 1905.04899.
    """

    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)
        probability("p", self.p)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if float(torch.rand(())) >= self.p:
            return inputs, targets
        height, width = inputs.shape[-2:]
        edge = (1 - _beta(self.alpha)) ** 0.5
        rows, columns = round(height * edge), round(width * edge)
        top, left = whole(0, height - rows), whole(0, width - columns)
        other = torch.randperm(len(inputs))
        mixed = inputs.clone()
        box = (..., slice(top, top + rows), slice(left, left + columns))
        mixed[box] = inputs[other][box]
        kept = 1 - rows * columns / (height * width)
        return mixed, torch.lerp(targets[other], targets, kept)

    def change(self, inputs: Tensor) -> Tensor:
        """Not of itself: whoever mixes inputs must mix the targets."""
        raise TypeError("CutMix changes inputs and targets together: call it with both")


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (B,) → targets (B, K), float32."""
    return F.one_hot(labels, classes).to(torch.float32)


def whole(least: int, most: int) -> int:
    """A whole number from `least` to `most`, both among them."""
    return int(torch.randint(least, most + 1, ()))


def uniform(least: float, most: float) -> float:
    """A number from `least` to `most`."""
    return least + (most - least) * float(torch.rand(()))


def positive(name: str, value: float) -> None:
    """Raises ValueError for a number that is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} is {value}: it must be more than 0")


def probability(name: str, value: float) -> None:
    """Raises ValueError for a number outside 0 … 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: it must be from 0 to 1")


def _beta(alpha: float) -> float:
    return float(torch.distributions.Beta(alpha, alpha, validate_args=False).sample())
