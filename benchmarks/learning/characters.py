"""A small decoder of characters that spends its parameters where they cost no time: in tables of n-grams.

A position's vector is that of its character, and, by a projection, those of the two, three, four … characters that end
there, each looked up in a table by a hash (as in arXiv 2412.09871, section 3.2.1). A row that is looked up costs a few
numbers, a weight of a matrix a multiplication a position: with the parameters of four layers, one layer and the tables
read several times as many characters in the same time. Attention then has what the last few characters say already, and
looks further back. Rows of rare n-grams learn a text by heart; that a table is silent now and then while the model
learns teaches it to fall back on shorter ones (as smoothing does, arXiv 1703.02573).

    B | windows in a batch    T | context    d | d_model    e | width of a table's rows
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.attention import Causal
from regard.attention.position import LearnedPositions
from regard.transformer import Block, Decoder, FeedForward, LayerNorm, MultiHeadAttention


@dataclass(frozen=True)
class CharacterConfig:
    """The sizes of a `CharacterDecoder`."""

    vocab_size: int
    d_model: int = 96
    layers: int = 2
    heads: int = 2
    feed_forward: int = 384
    max_positions: int = 128
    rows: dict[int, int] = field(default_factory=lambda: {2: 2048, 3: 6144, 4: 9216})  # of the table of n characters
    width: int = 32  # of these rows
    silence: float = 0.0  # probability that a table says nothing of a place, while the model learns


class CharacterDecoder(nn.Module):
    """Characters in, scores of the next one out; `hidden`, `embedding` and `head` are those of other decoders."""

    head = None  # the embedding also makes the scores

    def __init__(self, config: CharacterConfig) -> None:
        super().__init__()
        d = config.d_model
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, d)
        self.positions = LearnedPositions(config.max_positions, d)
        self.tables = nn.ModuleDict({str(n): nn.Embedding(rows, config.width) for n, rows in config.rows.items()})
        self.join = nn.Linear(config.width * len(config.rows), d, bias=False)
        for table in (self.embedding, *self.tables.values()):
            nn.init.normal_(table.weight, std=0.02)
        norm = partial(LayerNorm, d, bias=False)
        blocks = [
            Block(
                MultiHeadAttention(d, config.heads, bias=False),
                FeedForward(d, config.feed_forward, activation="gelu", bias=False),
                norm=norm,
            )
            for _ in range(config.layers)
        ]
        self.decoder = Decoder(blocks, norm())

    def hidden(self, ids: Tensor) -> Tensor:
        """Ids (B, T) → last hidden states (B, T, d); nothing before a window is known."""
        x = self.embedding(ids) + self.positions(ids.shape[1])
        if self.tables:
            found = [self.tables[str(n)](row) for n, row in ngrams(ids, self.config.rows).items()]
            seen = torch.stack(found, 2)  # (B, T, tables, e)
            if self.training and self.config.silence:
                heard = torch.rand(seen.shape[:3]) >= self.config.silence
                seen = seen * (heard / (1 - self.config.silence))[..., None]
            x = x + self.join(seen.flatten(2))
        return self.decoder(x, mask=Causal())

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) → scores of each next character (B, T, V)."""
        return F.linear(self.hidden(ids), self.embedding.weight)


def ngrams(ids: Tensor, rows: dict[int, int]) -> dict[int, Tensor]:
    """For each n, the row (B, T) of its table for the n characters that end at each place.

    Characters before the window count as a character of their own.
    """
    found: dict[int, Tensor] = {}
    key = ids
    for n in range(2, max(rows, default=1) + 1):
        earlier = F.pad(ids[:, : max(0, ids.shape[1] - n + 1)] + 1, (min(n - 1, ids.shape[1]), 0))
        key = (key * 1_000_003 + earlier) & 0x7FFFFFFF
        if n in rows:
            found[n] = ((key * 2_654_435_761) >> 7) % rows[n]
    return found
