"""The architecture: norms, feed-forward, multi-head attention, blocks, encoder and decoder."""

from regard.transformer.block import Block
from regard.transformer.feed_forward import FeedForward
from regard.transformer.multi_head import MultiHeadAttention
from regard.transformer.norms import LayerNorm, LayerScale, RMSNorm
from regard.transformer.stacks import Decoder, DecoderCache, Encoder

__all__ = [
    "Block",
    "Decoder",
    "DecoderCache",
    "Encoder",
    "FeedForward",
    "LayerNorm",
    "LayerScale",
    "MultiHeadAttention",
    "RMSNorm",
]
