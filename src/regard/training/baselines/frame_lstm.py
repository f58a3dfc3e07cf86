"""A bidirectional LSTM over the frames of a spectrogram (arXiv 1303.5778), layer norms between its layers.

B | batch entries    M | mel bins    T | frames    K | classes
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class FrameLSTMConfig:
    """The sizes of a `FrameLSTM`."""

    mels: int  # M
    width: int  # of each direction's state
    layers: int
    labels: tuple[str, ...]  # names of the classes
    stacked: int = 1  # frames that make a step
    dropout: float = 0.0  # of each layer's output

    def __post_init__(self) -> None:
        for name in ("mels", "width", "layers", "stacked"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not self.labels:
            raise ValueError("labels is empty: there must be a class")


class FrameLSTM(nn.Module):
    """Layers of a bidirectional LSTM, the mean over all steps, and a linear classifier.

    Args:
        config: the sizes.
    """

    def __init__(self, config: FrameLSTMConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.mels * config.stacked, *[2 * config.width] * config.layers]
        self.norms = nn.ModuleList([nn.LayerNorm(size) for size in sizes])
        self.layers = nn.ModuleList(
            [nn.LSTM(size, config.width, batch_first=True, bidirectional=True) for size in sizes[:-1]]
        )
        self.dropout = nn.Dropout(config.dropout)
        self.scores = nn.Linear(sizes[-1], len(config.labels))

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Spectrograms (B, 1, M, T) → scores of the classes (B, K); what is left of the last step's frames is cut off.

        Raises:
            ValueError: if they have another number of mel bins, or fewer frames than make a step.
        """
        batch, channels, mels, frames = spectrograms.shape
        config = self.config
        if channels != 1 or mels != config.mels or frames < config.stacked:
            raise ValueError(
                f"spectrograms is of shape {tuple(spectrograms.shape)}: it must be (B, 1, {config.mels}, T) with T at"
                f" least {config.stacked}"
            )
        steps = frames // config.stacked
        x = spectrograms[:, 0, :, : steps * config.stacked].transpose(1, 2).reshape(batch, steps, -1)
        for norm, layer in zip(self.norms, self.layers, strict=False):  # the last norm is before the classifier
            x = self.dropout(layer(norm(x))[0])  # (B, steps, 2 · width)
        return self.scores(self.norms[-1](x).mean(1))
