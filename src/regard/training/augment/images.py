"""Augmentations of images: crops, flips, holes. Images are (B, C, H, W), in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from regard.training.augment.base import Augmentation, probability, uniform, whole


@dataclass(frozen=True)
class RandomCrop(Augmentation):
    """Each image is moved by up to so many pixels along both axes; where it was not, its edge is mirrored.

    Args:
        padding: pixels, 0 or more, less than the images are high and wide.

    Raises:
        ValueError: if padding is negative.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding is {self.padding}: it must be 0 or more")

    def change(self, inputs: Tensor) -> Tensor:
        if not self.padding:
            return inputs
        height, width = inputs.shape[-2:]
        if self.padding >= min(height, width):
            raise ValueError(f"padding is {self.padding}: it must be less than the images' {height} × {width} pixels")
        padded = F.pad(inputs, (self.padding,) * 4, mode="reflect")
        places = torch.randint(0, 2 * self.padding + 1, (len(inputs), 2)).tolist()
        return torch.stack(
            [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)]
        )


@dataclass(frozen=True)
class HorizontalFlip(Augmentation):
    """Each image is mirrored, left for right, with a probability.

    Args:
        p: that probability.

    Raises:
        ValueError: if p is no probability.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        probability("p", self.p)

    def change(self, inputs: Tensor) -> Tensor:
        turned = torch.rand(len(inputs)) < self.p
        return torch.where(turned[:, None, None, None], inputs.flip(-1), inputs)


@dataclass(frozen=True)
class RandomErasing(Augmentation):
    """A box within each image is filled with noise, with a probability; grey, it is cut-out (arXiv 1708.04552).

    Args:
        p: probability that an image gets a box.
        area: least and largest part of the image that the box covers.
        noise: whether it is filled with noise, and not with grey, 0.5.

    Raises:
        ValueError: if p is no probability, or area are not two parts, least first.

    arXiv 1708.04896.
    """

    p: float = 0.25
    area: tuple[float, float] = (0.02, 0.33)
    noise: bool = True

    def __post_init__(self) -> None:
        probability("p", self.p)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {self.area}: it must be two parts above 0 and up to 1, least first")

    def change(self, inputs: Tensor) -> Tensor:
        chosen = torch.nonzero(torch.rand(len(inputs)) < self.p).flatten().tolist()
        changed = inputs.clone()
        channels, height, width = inputs.shape[1:]
        for index in chosen:
            area, ratio = uniform(*self.area) * height * width, math.exp(uniform(-1.2, 1.2))  # 0.3 … 3.3
            rows = min(height, max(1, round(math.sqrt(area * ratio))))
            columns = min(width, max(1, round(math.sqrt(area / ratio))))
            top, left = whole(0, height - rows), whole(0, width - columns)
            fill = torch.rand(channels, rows, columns) if self.noise else 0.5
            changed[index, :, top : top + rows, left : left + columns] = fill
        return changed
