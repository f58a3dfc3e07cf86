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

from torch import Tensor, nn

from regard.attention.position import Rotary, sinusoidal
from regard.models.encoder_decoder import EncoderDecoderModel, check_ids
from regard.transformer import Block, Decoder, Encoder, FeedForward, LayerNorm, MultiHeadAttention
from regard.transformer.linear import linear

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

    @property
    def decoder_start(self) -> int:
        """The first input of the decoder."""
        return self.bos

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


class Translator(EncoderDecoderModel):
    """Source pieces in, scores of target pieces out.

    Initial values:

        embedding       N(0, 1/d_model), so that scaled embeddings and tied logits both have unit variance
        projections     Xavier-uniform each, biases 0
        norms           weight 1, bias 0
    """

    config: TranslatorConfig
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

    def embed_source(self, source: Tensor) -> Tensor:
        """Ids (B, Ls) → (B, Ls, d)."""
        return self._embed(source, "source", 0)

    def embed_target(self, target: Tensor, start: int) -> Tensor:
        """Ids (B', Lt) → (B', Lt, d)."""
        return self._embed(target, "target", start)

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states (..., d) → scores of the next piece (..., V), before softmax."""
        return linear(hidden, self.embedding.weight)

    def _embed(self, ids: Tensor, name: str, start: int) -> Tensor:
        stop = start + ids.shape[-1]
        check_ids(ids, name, self.config.vocab_size, stop=stop, most=self.config.max_positions)
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
