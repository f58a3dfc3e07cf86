"""Random changes of shape and colour, with tensors alone, every image its own.

B | images in a batch    n | images that one operation is done to
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from regard.training.augment.base import Augmentation, probability

# A level is the strength of a change, (n,): −1 … 1 where there are two directions.
Change = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RandAugment(Augmentation):
    """Some operations an image, drawn from fourteen: shears, shifts, a turn, and changes of colour.

    The operations are those of the paper, with inversion in place of equalisation. What a shape leaves open is grey.

    Args:
        count: operations an image.
        magnitude: strength at most, 0 … 1: at 1 a shear by 0.3, a shift by 0.3 of the image, a turn by 30°, colours
            scaled by 0.1 … 1.9.
        p: probability that each of them is done.

    Raises:
        ValueError: if count is less than 1, or magnitude or p is outside 0 … 1.

    arXiv 1909.13719; that the strength is drawn as well: arXiv 2103.10158.
    """

    count: int = 2
    magnitude: float = 0.5
    p: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}: it must be 1 or more")
        probability("magnitude", self.magnitude)
        probability("p", self.p)

    def change(self, inputs: Tensor) -> Tensor:
        for _ in range(self.count):
            kind = torch.randint(len(OPERATIONS), (len(inputs),))
            kind[torch.rand(len(inputs)) >= self.p] = -1  # of these, none
            level = (2 * torch.rand(len(inputs)) - 1) * self.magnitude
            inputs = _shaped(_coloured(inputs, kind, level), kind, level)
        return inputs


def _coloured(images: Tensor, kind: Tensor, level: Tensor) -> Tensor:
    changed = images.clone()
    for number, operation in enumerate(COLOURS.values(), len(SHAPES)):
        chosen = torch.nonzero(kind == number).flatten()
        if len(chosen):
            changed[chosen] = operation(images[chosen], level[chosen, None, None, None]).clamp(0, 1)
    return changed


def _shaped(images: Tensor, kind: Tensor, level: Tensor) -> Tensor:
    """Those images whose operation is one of shape, through one grid of sampling points."""
    chosen = torch.nonzero((kind >= 0) & (kind < len(SHAPES))).flatten()
    if not len(chosen):
        return images
    tables = torch.stack([operation(level[chosen]) for operation in SHAPES.values()])  # (shapes, n, 2, 3)
    table = tables[kind[chosen], torch.arange(len(chosen))]  # (n, 2, 3)
    part = images[chosen]
    height, width = part.shape[-2:]
    ratio = height / width  # of the square in which a turn stays one
    table[:, 0, 1] *= ratio
    table[:, 1, 0] /= ratio
    grid = F.affine_grid(table.to(part), list(part.shape), align_corners=False)
    changed = images.clone()
    # Outside is 0: moved so that grey is 0, what lies outside becomes grey.
    changed[chosen] = F.grid_sample(part - 0.5, grid, mode="bilinear", align_corners=False) + 0.5
    return changed


def _table(level: Tensor, values: dict[tuple[int, int], Tensor]) -> Tensor:
    """(n, 2, 3): the unit table but for these entries; from a place in the result to one in the image, in −1 … 1."""
    table = torch.eye(2, 3).repeat(len(level), 1, 1)
    for (row, column), value in values.items():
        table[:, row, column] = value
    return table


def _turned(level: Tensor) -> Tensor:
    angle = level * math.pi / 6
    return _table(level, {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()})


def _blend(plain: Tensor, image: Tensor, level: Tensor) -> Tensor:
    """From `plain`, at −1 nearly, over the image, at 0, to as far beyond."""
    return plain + (1 + 0.9 * level) * (image - plain)


def _grey(image: Tensor) -> Tensor:
    """(n, C, H, W) → (n, 1, H, W): brightness as ITU-R BT.601 weighs red, green and blue; else the channels' mean."""
    if image.shape[1] != 3:
        return image.mean(1, keepdim=True)
    return (image * torch.tensor([0.299, 0.587, 0.114]).to(image)[:, None, None]).sum(1, keepdim=True)


def _blurred(image: Tensor) -> Tensor:
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]).to(image) / 13
    channels = image.shape[1]
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)


def _stretched(image: Tensor, _: Tensor) -> Tensor:
    least, most = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    return torch.where(most > least, (image - least) / (most - least).clamp(min=1e-6), image)


def _posterised(image: Tensor, level: Tensor) -> Tensor:
    steps = torch.exp2(8 - (5 * level.abs()).round()) - 1  # of brightness: from 255 down to 7
    return (image * steps).round() / steps


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "shear_x": lambda level: _table(level, {(0, 1): 0.3 * level}),
    "shear_y": lambda level: _table(level, {(1, 0): 0.3 * level}),
    "shift_x": lambda level: _table(level, {(0, 2): 0.6 * level}),  # the image is 2 wide
    "shift_y": lambda level: _table(level, {(1, 2): 0.6 * level}),
    "turn": _turned,
}
COLOURS: dict[str, Change] = {
    "brightness": lambda image, level: _blend(torch.zeros_like(image), image, level),
    "contrast": lambda image, level: _blend(_grey(image).mean((2, 3), keepdim=True), image, level),
    "saturation": lambda image, level: _blend(_grey(image), image, level),
    "sharpness": lambda image, level: _blend(_blurred(image), image, level),
    "stretch": _stretched,
    "posterise": _posterised,
    "solarise": lambda image, level: torch.where(image >= 1 - level.abs(), 1 - image, image),
    "invert": lambda image, level: 1 - image,
    "nothing": lambda image, level: image,
}
OPERATIONS = (*SHAPES, *COLOURS)
"""Their names, in the order in which they are drawn."""
