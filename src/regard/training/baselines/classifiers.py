"""Classifiers of texts without attention: recurrent in both directions, and convolutional.

n | texts in a batch    P | all their pieces    L | pieces of the longest    d | d_model    C | classes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.training.baselines.recurrent import Cell, cell_layer, run_packed
from regard.training.errors import TrainingError


class TextBaseline(nn.Module, ABC):
    """A classifier of texts that stand one after another."""

    @abstractmethod
    def scores(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Scores of the classes.

        Args:
            ids: (P,), text after text.
            lengths: (n,), pieces of each, at least 1.

        Returns:
            (n, C), before softmax.
        """

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """As `scores`."""
        return self.scores(ids, lengths)


@dataclass(frozen=True)
class RecurrentClassifierConfig:
    """The sizes of a `RecurrentClassifier`."""

    vocab_size: int
    classes: int
    cell: Cell = "lstm"
    d_model: int = 128  # width of the embedding and of both directions together
    layers: int = 2
    dropout: float = 0.1  # of the embedding, of every layer's output, and of what the head reads


class RecurrentClassifier(TextBaseline):
    """Cells in both directions; the largest and the mean of each feature over a text make the scores.

    Raises:
        TrainingError: if d_model is odd or there is no layer.
    """

    def __init__(self, config: RecurrentClassifierConfig) -> None:
        super().__init__()
        d = config.d_model
        if d < 2 or d % 2 or config.layers < 1:
            raise TrainingError(f"d_model is {d} and layers {config.layers}; they may be even, and 1 or more")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, d)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.cells = nn.ModuleList(cell_layer(config.cell, d, d // 2, both=True) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * d, config.classes)

    def scores(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """See `TextBaseline`."""
        x, real = padded(self.dropout(self.embedding(ids)), lengths)  # (n, L, d), (n, L)
        for cell, norm in zip(self.cells, self.norms, strict=True):
            x = x + self.dropout(run_packed(cell, norm(x), lengths))
        largest = x.masked_fill(~real[..., None], -torch.inf).amax(1)  # (n, d)
        mean = x.masked_fill(~real[..., None], 0).sum(1) / lengths[:, None]
        return self.head(self.dropout(torch.cat([largest, mean], 1)))


@dataclass(frozen=True)
class ConvolutionalClassifierConfig:
    """The sizes of a `ConvolutionalClassifier`; the defaults are those of the paper."""

    vocab_size: int
    classes: int
    d_model: int = 300  # width of the embedding
    widths: tuple[int, ...] = (3, 4, 5)  # pieces that a filter sees
    filters: int = 100  # of each width
    dropout: float = 0.5  # of what the head reads; half of it of the embedding


class ConvolutionalClassifier(TextBaseline):
    """Filters over a few pieces each, the largest answer of each over a text (arXiv 1408.5882).

    Raises:
        TrainingError: if there is no filter, or a width is less than 1.
    """

    def __init__(self, config: ConvolutionalClassifierConfig) -> None:
        super().__init__()
        if not config.widths or min(config.widths) < 1 or config.filters < 1:
            raise TrainingError(f"widths are {config.widths} with {config.filters} filters; all may be 1 or more")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.filters = nn.ModuleList(nn.Conv1d(config.d_model, config.filters, width) for width in config.widths)
        self.dropout_in, self.dropout = nn.Dropout(config.dropout / 2), nn.Dropout(config.dropout)
        self.head = nn.Linear(config.filters * len(config.widths), config.classes)

    def scores(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """See `TextBaseline`; short texts are filled up with zeros to the widest filter."""
        x, real = padded(self.dropout_in(self.embedding(ids)), lengths, least=max(self.config.widths))
        x = x.transpose(1, 2)  # (n, d, L)
        found: list[Tensor] = []
        for layer, width in zip(self.filters, self.config.widths, strict=True):
            y = layer(x).relu()  # (n, filters, L - width + 1)
            places = real[:, : y.shape[2]].clone()
            places[:, 1:] &= real[:, width:]  # a place counts where the filter sees real pieces alone, or is the first
            found.append(y.masked_fill(~places[:, None], 0).amax(2))
        return self.head(self.dropout(torch.cat(found, 1)))


def padded(x: Tensor, lengths: Tensor, *, least: int = 1) -> tuple[Tensor, Tensor]:
    """Rows one after another → right-padded with zeros, and where they are real.

    Args:
        x: (P, d).
        lengths: (n,), of which the sum is P.
        least: L at least.

    Returns:
        (n, L, d), and (n, L) boolean.
    """
    longest = max(int(lengths.max()), least)
    real = torch.arange(longest, device=x.device) < lengths[:, None]  # (n, L)
    rows = x.new_zeros(len(lengths), longest, x.shape[1])
    return rows.masked_scatter(real[..., None], x), real
