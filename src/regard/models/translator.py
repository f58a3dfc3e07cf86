"""The translator: an encoder-decoder Transformer (arXiv 1706.03762) from one sentence to another.

Notable: one embedding for source, target and output (a joint vocabulary, arXiv 1608.05859), scaled by √d_model on
the way in; pre-norm blocks; padding is a mask and never a piece that can be seen; decoding with caches is the same
pass, a few positions at a time.

    B  | batch entries    Ls | source length    d | d_model
    B' | B, or B * beams  Lt | target length    V | vocab_size
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.attention.mask import Causal, Padding
from regard.attention.position import Rotary, sinusoidal
from regard.transformer import Block, Decoder, DecoderCache, Encoder, FeedForward, LayerNorm, MultiHeadAttention

_MOST = {
    "vocab_size": 2**24,
    "d_model": 2**16,
    "encoder_layers": 1000,
    "decoder_layers": 1000,
    "feed_forward": 2**20,
    "max_positions": 2**20,
}
"""What a size may be at most: a config.json is read before anything vouches for it."""


@dataclass(frozen=True)
class TranslatorConfig:
    """The sizes of a `Translator`; the defaults suit some ten thousand short sentence pairs."""

    vocab_size: int  # pieces of the joint vocabulary
    d_model: int = 128  # width of every position
    heads: int = 4  # attention heads, each d_model / heads wide
    encoder_layers: int = 4
    decoder_layers: int = 4
    feed_forward: int = 256  # hidden width of the feed-forward networks
    dropout: float = 0.3  # of embeddings and of every sublayer's output
    attention_dropout: float = 0.0  # of attention weights
    activation_dropout: float = 0.0  # of the feed-forward networks' hidden units
    max_positions: int = 256  # longest source and longest target
    norm_first: bool = True  # pre-norm; false is the paper's post-norm
    positions: Literal["sinusoidal", "rotary"] = "sinusoidal"  # added to embeddings, or turned into queries and keys
    pad: int = 0  # fills batches; never attended to
    bos: int = 1  # first input of the decoder
    eos: int = 2  # last piece of every source and target

    def __post_init__(self) -> None:
        if self.positions not in ("sinusoidal", "rotary"):
            raise ValueError(f'positions is {self.positions!r}: it must be "sinusoidal" or "rotary"')
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be from 1 to {most:,}")
        if self.heads < 1 or self.d_model % self.heads:
            raise ValueError(f"d_model is {self.d_model}: it must be a multiple of the {self.heads} heads")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be in [0, 1)")
        for name in ("pad", "bos", "eos"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: it must be an id below vocab_size {self.vocab_size}"
                )


class Translator(nn.Module):
    """Source pieces in, scores of target pieces out.

    Initial values:

        embedding       N(0, 1/d_model), so that scaled embeddings and tied logits both have unit variance
        projections     Xavier-uniform each, biases 0
        norms           weight 1, bias 0
    """

    positions: Tensor | None

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, d)
        nn.init.normal_(self.embedding.weight, std=d**-0.5)
        table = sinusoidal(config.max_positions, d) if config.positions == "sinusoidal" else None
        self.register_buffer("positions", table, persistent=False)  # (max_positions, d)
        self.dropout = nn.Dropout(config.dropout)
        final = partial(LayerNorm, d) if config.norm_first else lambda: None
        self.encoder = Encoder([_block(config, cross=False) for _ in range(config.encoder_layers)], final())
        self.decoder = Decoder([_block(config, cross=True) for _ in range(config.decoder_layers)], final())

    @property
    def decoder_start(self) -> int:
        """The first input of the decoder."""
        return self.config.bos

    def cache(self, capacity: int = 0) -> DecoderCache:
        """An empty cache for `decode`."""
        return DecoderCache.empty(self.config.decoder_layers, capacity)

    def encode(self, source: Tensor, source_lengths: Tensor) -> Tensor:
        """Source ids (B, Ls), of which source_lengths (B,) are real, → memory (B, Ls, d).

        Raises:
            ValueError: if source is longer than max_positions or holds an id outside the vocabulary.
        """
        x = self._embed(source, "source", start=0)
        return self.encoder(x, mask=Padding(source_lengths, source_lengths))

    def decode(
        self,
        target: Tensor,
        memory: Tensor | None,
        source_lengths: Tensor,
        *,
        start: int = 0,
        caches: DecoderCache | None = None,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        """Decoder states after each of the target pieces.

        Args:
            target: ids (B', Lt) that begin with bos, or the pieces from position start on, with caches. B' is
                B, or B * beams with the beams of a sentence next to each other.
            memory: (B, Ls, d) from `encode`; not read once caches hold it.
            source_lengths: (B,).
            start: position of the first of these target pieces.
            caches: from `DecoderCache.empty(decoder_layers)`; filled by the call.
            target_lengths: (B,), real pieces of a target without beams or caches. Right padding never changes
                a real piece's state; with lengths, padded rows are 0 after attention and no observer counts
                them.

        Returns:
            (B', Lt, d).

        Raises:
            ValueError: if start + Lt exceeds max_positions or an id is outside the vocabulary.
        """
        x = self._embed(target, "target", start=start)
        mask = Causal() if target_lengths is None else Causal() & Padding(target_lengths, target_lengths)
        memory_mask = Padding(source_lengths, target_lengths)
        return self.decoder(x, memory, mask=mask, memory_mask=memory_mask, start=start, cache=caches)

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states (..., d) → scores of the next piece (..., V), before softmax."""
        return F.linear(hidden, self.embedding.weight)

    def forward(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, target_lengths: Tensor | None = None
    ) -> Tensor:
        """Source (B, Ls) and the target so far (B, Lt) → scores of each next piece (B, Lt, V).

        Args:
            source: ids, each entry's real ones first.
            source_lengths: (B,).
            target: ids that begin with bos.
            target_lengths: (B,), see `decode`.
        """
        memory = self.encode(source, source_lengths)
        return self.logits(self.decode(target, memory, source_lengths, target_lengths=target_lengths))

    def _embed(self, ids: Tensor, name: str, start: int) -> Tensor:
        stop, limit = start + ids.shape[-1], self.config.max_positions
        if stop > limit:
            raise ValueError(f"{name} has {stop} positions: this model takes at most {limit}")
        if ids.numel() and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise ValueError(f"{name} holds the id {wrong}: ids must be in [0, {self.config.vocab_size})")
        x = self.embedding(ids) * math.sqrt(self.config.d_model)  # (B, L, d)
        if self.positions is not None:
            x = x + self.positions[start:stop]
        return self.dropout(x)


def _block(config: TranslatorConfig, *, cross: bool) -> Block:
    attention = partial(MultiHeadAttention, config.d_model, config.heads, dropout=config.attention_dropout)
    rotary = Rotary(config.d_model // config.heads) if config.positions == "rotary" else None
    return Block(
        attention(rotary=rotary),
        FeedForward(config.d_model, config.feed_forward, dropout=config.activation_dropout),
        norm=partial(LayerNorm, config.d_model),
        cross_attention=attention(kind="cross") if cross else None,
        dropout=config.dropout,
        norm_first=config.norm_first,
    )
