"""Convolutions that halve an image again and again: what a small Transformer's patches are made by, and a ResNet.

B | batch entries    C | channels    H, W | height and width, or mel bins and frames
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """Torch's batch normalisation (arXiv 1502.03167) without the count of batches, which it has no use for here.

    The state is floating-point numbers alone, as checkpoints have them.

    Args:
        channels: C.
        momentum: part of a batch in the running mean and variance.
    """

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__(channels, momentum=momentum)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        # Torch's own would add the count to a state that has none.
        nn.Module._load_from_state_dict(self, *arguments, **named)


class Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))): the residual block with the norms first (arXiv 1603.05027).

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first_norm = BatchNorm(channels)
        self.first = convolution(channels, channels)
        self.second_norm = BatchNorm(channels)
        self.second = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        y = self.first(F.relu(self.first_norm(x)))
        return x + self.second(F.relu(self.second_norm(y)))


class Stages(nn.Module):
    """Convolutions at full size, then at half, and so on; residual blocks within each; a norm and ReLU at the end.

    Args:
        channels: of the input.
        widths: channels of each stage.
        blocks: residual blocks of each stage, after the convolution that begins it.
        strides: of that convolution, along both axes.

    Raises:
        ValueError: if widths, blocks and strides differ in number, or there are none.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: Sequence[int], strides: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__()
        if not len(widths) == len(blocks) == len(strides) or not widths:
            raise ValueError(
                f"there are {len(widths)} widths, {len(blocks)} numbers of blocks and {len(strides)} strides: there"
                " must be as many, 1 or more"
            )
        layers: list[nn.Module] = []
        for width, count, stride in zip(widths, blocks, strides, strict=True):
            if layers:
                layers += [BatchNorm(channels), nn.ReLU()]
            layers.append(convolution(channels, width, stride))
            layers += [Residual(width) for _ in range(count)]
            channels = width
        self.layers = nn.Sequential(*layers, BatchNorm(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, the last width, H / all strides, W / all strides), rounded up."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))  # on CPUs the faster order by far


class GridFeedForward(nn.Module):
    """A feed-forward network whose hidden units also see their neighbours on the grid (arXiv 2104.05707).

    down(relu(u + depthwise 3 × 3 convolution(u))) with u = up(x). Weights are Xavier-uniform, biases zero; the
    convolution is zero at first, so that a new network is a plain one.

    Args:
        d: width of input and output.
        hidden: width between.
        grid: rows and columns of the positions.
    """

    def __init__(self, d: int, hidden: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.up = nn.Linear(d, hidden)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.down = nn.Linear(hidden, d)
        for linear in (self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.near.weight)
        nn.init.zeros_(self.near.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows * columns, d) → the same shape."""
        u = self.up(x)  # (B, G, hidden)
        image = u.unflatten(1, self.grid).permute(0, 3, 1, 2)  # (B, hidden, rows, columns), in place
        near = self.near(image).permute(0, 2, 3, 1).flatten(1, 2)  # (B, G, hidden)
        return self.down(F.relu(u + near))


def convolution(channels: int, width: int, stride: tuple[int, int] = (1, 1)) -> nn.Conv2d:
    """3 × 3, without a bias, which a norm after it would take out; He's initialisation (arXiv 1502.01852)."""
    made = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made
