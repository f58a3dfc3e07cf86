"""A residual convolutional network (arXiv 1512.03385, norms first: 1603.05027) for images and spectrograms.

B | batch entries    C | channels    K | classes
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from regard.models.convolutions import Stages


@dataclass(frozen=True)
class ResidualConfig:
    """The sizes of a `ResidualNetwork`."""

    channels: int  # of the input
    widths: tuple[int, ...]  # channels of each stage; each but the first halves height and width
    blocks: tuple[int, ...]  # residual blocks of each stage
    labels: tuple[str, ...]  # names of the classes
    first_stride: int = 1  # 2: the first stage halves height and width, too
    dropout: float = 0.0  # of what the classifier reads

    def __post_init__(self) -> None:
        if self.first_stride not in (1, 2):
            raise ValueError(f"first_stride is {self.first_stride}: it must be 1 or 2")
        if not self.labels:
            raise ValueError("labels is empty: there must be a class")


class ResidualNetwork(nn.Module):
    """Convolutions, the mean over all places, and a linear classifier.

    Args:
        config: the sizes.

    Raises:
        ValueError: if widths and blocks differ in number.
    """

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        first = config.first_stride
        strides = [(first, first), *[(2, 2)] * (len(config.widths) - 1)]
        self.stages = Stages(config.channels, config.widths, config.blocks, strides)
        self.dropout = nn.Dropout(config.dropout)
        self.scores = nn.Linear(config.widths[-1], len(config.labels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Images (B, C, H, W), or spectrograms (B, 1, mel bins, frames) → scores of the classes (B, K)."""
        return self.scores(self.dropout(self.stages(pixels).mean((2, 3))))
