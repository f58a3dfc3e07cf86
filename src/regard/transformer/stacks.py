"""Stacks of blocks: an encoder sees its whole input, a decoder continues a sequence, with a memory or without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from regard.attention.cache import KVCache
from regard.attention.mask import Mask
from regard.attention.request import Bias
from regard.transformer.block import Block


@dataclass(frozen=True)
class DecoderCache:
    """The two caches of a decoder with cross-attention: of what it has written, and of the memory it reads.

    With beams the first has B * K batch entries and the second B, one for each sentence.
    """

    own: KVCache
    memory: KVCache

    @classmethod
    def empty(cls, layers: int, capacity: int = 0) -> DecoderCache:
        """Caches for a decoder of `layers` blocks, before its first step, with room for `capacity` positions."""
        return cls(own=KVCache.dense(layers, capacity), memory=KVCache.cross(layers))

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self.own.length

    @property
    def nbytes(self) -> int:
        """Bytes held by both caches."""
        return self.own.nbytes + self.memory.nbytes


class Encoder(nn.Module):
    """Blocks one after another, then a norm.

    Args:
        blocks: without cross-attention.
        norm: applied to the result, as pre-norm blocks need; none by default.
    """

    def __init__(self, blocks: Iterable[Block], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, x: Tensor, *, mask: Mask | None = None, bias: Bias | None = None) -> Tensor:
        """x (B, L, d) → (B, L, d); mask and bias as in `attend`, the same in every block."""
        for block in self.blocks:
            x = block(x, mask=mask, bias=bias)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """Blocks one after another, then a norm; with caches, x continues what was decoded before.

    Args:
        blocks: with cross-attention if there is to be a memory.
        norm: applied to the result, as pre-norm blocks need; none by default.
    """

    def __init__(self, blocks: Iterable[Block], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Mask | Sequence[Mask | None] | None = None,
        memory_mask: Mask | None = None,
        bias: Bias | None = None,
        start: int | Tensor = 0,
        cache: KVCache | DecoderCache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """One pass over x.

        Args:
            x: (B, L, d), the positions from start on.
            memory: (Bm, Lm, d), or None for a decoder without cross-attention.
            mask: of the self-attention, for example `Causal()`; or one for each block, in order.
            memory_mask: of the cross-attention, for example `Padding(lengths)`.
            bias: of the self-attention's scores.
            start: how many positions came before x: int or (B,).
            cache: where keys and values are kept between calls; a `DecoderCache` also keeps the projected
                memory.
            last: how many positions at the end are wanted; by default all. The last block computes no others, but
                their keys and values.

        Returns:
            (B, L, d); (B, last, d) where last is given.

        Raises:
            ValueError: if there are masks for more or fewer blocks.
        """
        own, kept = (cache.own, cache.memory) if isinstance(cache, DecoderCache) else (cache, None)
        masks = mask if isinstance(mask, Sequence) else [mask] * len(self.blocks)
        if len(masks) != len(self.blocks):
            raise ValueError(f"{len(masks)} masks are given for {len(self.blocks)} blocks: there must be one for each")
        chosen = {} if last is None else {"last": last}  # a block put in its place need not know it
        for layer, block in enumerate(self.blocks):
            x = block(
                x,
                memory,
                mask=masks[layer],
                memory_mask=memory_mask,
                bias=bias,
                start=start,
                cache=None if own is None else own[layer],
                memory_cache=None if kept is None else kept[layer],
                **(chosen if layer == len(self.blocks) - 1 else {}),
            )
        x = x if last is None else x[:, -last:]  # unless there is no block, or a hook gave all rows, they are these
        return x if self.norm is None else self.norm(x)
