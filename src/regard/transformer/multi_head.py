"""Multi-head attention (arXiv 1706.03762 section 3.2.2): projections around `attend`.

    B  | batch entries            H   | query heads               Lq | query positions
    Bm | batch entries of memory  Hkv | key/value heads           Lk | key positions
    d  | d_model                  D   | head size                 K  | beams: B = Bm * K

                x (B, Lq, d)                       x (B, Lq, d)     memory (Bm, Lk, d)
                     | qkv                              | q                 | kv
             q       k       v                          q              k         v
             +--- attend ----+                          +---- attend --+---------+
                     | out                                        | out
                (B, Lq, d)            kind "self"            (B, Lq, d)         kind "cross"

H = Hkv is multi-head attention, 1 < Hkv < H grouped-query (arXiv 2305.13245), Hkv = 1 multi-query (arXiv
1911.02150).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from regard.attention import attend
from regard.attention.cache import Slot
from regard.attention.mask import Mask, Padding
from regard.attention.position import Rotary
from regard.attention.request import Bias
from regard.transformer.linear import Linear
from regard.transformer.norms import NormFactory


class MultiHeadAttention(nn.Module):
    """H attention heads over d_model features, attending to the sequence itself or to a memory.

    Every projection (q, k and v each by itself, although they share one matrix product) is Xavier-uniform;
    biases are zero.

    Args:
        d_model: width of the input, the memory and the output.
        heads: query heads, H.
        kv_heads: key/value heads, a divisor of heads; heads by default.
        head_size: D; d_model / heads by default.
        bias: whether the query, key and value projections have biases.
        out_bias: whether the output projection has one; as bias by default.
        scale: of the scores; 1/√D by default.
        head_norm: makes a norm of width D, once for queries and once for keys, applied to each head before
            rotation (arXiv 2302.05442); none by default.
        dropout: probability of dropping an attention weight in training.
        rotary: rotates queries and keys by their positions ("self" only); keys are cached rotated.
        kind: "self" (keys and values come from x) or "cross" (from memory).

    Raises:
        ValueError: if kv_heads does not divide heads, d_model / heads is not whole and head_size is not
            given, kind is neither name, or a "cross" attention is given rotary.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_size: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        scale: float | None = None,
        head_norm: NormFactory | None = None,
        dropout: float = 0.0,
        rotary: Rotary | None = None,
        kind: Literal["self", "cross"] = "self",
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        _check_sizes(d_model, heads, kv_heads, head_size)
        if kind not in ("self", "cross"):
            raise ValueError(f'kind is {kind!r}: it must be "self" or "cross"')
        if kind == "cross" and rotary is not None:
            raise ValueError('rotary is for kind "self": the positions of a memory are not those of the queries')
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size or d_model // heads
        self.kind: Literal["self", "cross"] = kind
        self.scale = scale
        self.query_norm = None if head_norm is None else head_norm()
        self.key_norm = None if head_norm is None else head_norm()
        self.dropout = dropout
        self.rotary = rotary
        q_size, kv_size = self.heads * self.head_size, self.kv_heads * self.head_size
        if kind == "self":
            self.qkv = Linear(d_model, q_size + 2 * kv_size, bias=bias)
            _xavier(self.qkv, (q_size, kv_size, kv_size))
        else:
            self.q = Linear(d_model, q_size, bias=bias)
            self.kv = Linear(d_model, 2 * kv_size, bias=bias)
            _xavier(self.q, (q_size,))
            _xavier(self.kv, (kv_size, kv_size))
        self.out = Linear(q_size, d_model, bias=bias if out_bias is None else out_bias)
        _xavier(self.out, (d_model,))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Mask | None = None,
        bias: Bias | None = None,
        start: int | Tensor = 0,
        cache: Slot | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Attend from every position of x, or from the last ones alone.

        Cross-attention takes the beams of one sentence against one memory: x of B = Bm * K entries, K
        consecutive ones a memory entry. The K beams become K * Lq query rows of their memory entry, so that
        keys and values are never repeated. Query rows then have no position of their own: a mask must be
        `Padding(key_lengths)` or None, and there is no bias.

        Args:
            x: (B, Lq, d).
            memory: (Bm, Lk, d) for "cross", with B a multiple of Bm; None for "self".
            mask: which keys a row may see (see `regard.attention.mask`); all of them by default.
            bias: added to the scores, as in `attend`.
            start: position of the first row of x among the keys: an int, or (B,).
            cache: a slot of a `KVCache`. A "self" slot receives the keys and values of x and returns those so
                far; a cross slot keeps the projected memory of the first call, and memory is not read again.
            last: of the rows so many at the end attend ("self" only), to the keys of all; by default all rows do.
                Mask and bias must not count rows: `Causal()` or `ALiBi(slopes)`, no `Dense`.

        Returns:
            (B, Lq, d); (B, last, d) where last is given.

        Raises:
            ValueError: if memory is given to "self" or missing for "cross", or if B, mask and bias do not
                permit the memory's Bm as above; if last is given to "cross" or is not from 1 to Lq.
        """
        if self.kind == "self":
            if memory is not None:
                raise ValueError('memory is given, but this attention is of kind "self": it must be None')
            if last is not None and not 1 <= last <= x.shape[1]:
                raise ValueError(f"last is {last}: it must be from 1 to the {x.shape[1]} rows of x")
            return self._attend_self(x, mask, bias, start, cache, last)
        if last is not None:
            raise ValueError(f'last is {last}, but this attention is of kind "cross": it must be None')
        return self._attend_cross(x, memory, mask, bias, start, cache)

    def _attend_self(
        self,
        x: Tensor,
        mask: Mask | None,
        bias: Bias | None,
        start: int | Tensor,
        cache: Slot | None,
        last: int | None,
    ) -> Tensor:
        q_size, kv_size = self.heads * self.head_size, self.kv_heads * self.head_size
        if self.rotary is not None and self.query_norm is None:  # queries and keys are turned in one go
            turned, v = self.qkv(x).split((q_size + kv_size, kv_size), dim=-1)
            both = self.rotary.rotate(self._split(turned), start)  # (B, H + Hkv, Lq, D)
            query, key, value = both[:, : self.heads], both[:, self.heads :], self._split(v)
        else:
            q, k, v = self.qkv(x).split((q_size, kv_size, kv_size), dim=-1)
            query, key, value = self._query(q), self._key(k), self._split(v)  # (B, H|Hkv, Lq, D)
            if self.rotary is not None:
                query, key = self.rotary.rotate(query, start), self.rotary.rotate(key, start)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, Hkv, Lk, D)
            if cache.first and mask is not None and not mask.relative:
                raise ValueError("mask counts keys from the beginning, which this ring cache has forgotten in part")
            start = start - cache.first  # among the keys that a ring still holds
        if last is not None:
            query, start = query[:, :, -last:], start + x.shape[1] - last  # (B, H, last, D)
        return self._attend(query, key, value, mask, bias, start)

    def _attend_cross(
        self,
        x: Tensor,
        memory: Tensor | None,
        mask: Mask | None,
        bias: Bias | None,
        start: int | Tensor,
        cache: Slot | None,
    ) -> Tensor:
        kept = None if cache is None else cache.kept
        if kept is None:
            if memory is None:
                raise ValueError('memory is None, but this attention is of kind "cross": it must be (B, Lk, d)')
            k, v = self.kv(memory).chunk(2, dim=-1)
            kept = self._key(k), self._split(v)  # (Bm, Hkv, Lk, D)
            if cache is not None:
                kept = cache.append(*kept)
        key, value = kept
        q = self.q(x)
        batch, rows, size = q.shape
        if batch != key.shape[0]:
            _check_beams(batch, key.shape[0], mask, bias)
            q = q.reshape(key.shape[0], -1, size)  # (Bm, K * Lq, H * D)
        y = self._attend(self._query(q), key, value, mask, bias, start)
        return y.reshape(batch, rows, -1)  # (B, Lq, d)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, bias: Bias | None, start: int | Tensor
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        y = attend(query, key, value, mask=mask, bias=bias, start=start, scale=self.scale, dropout=dropout)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, H, Lq, D) → (B, Lq, H * D) → (B, Lq, d)

    def _query(self, x: Tensor) -> Tensor:
        return self._split(x) if self.query_norm is None else self.query_norm(self._split(x))

    def _key(self, x: Tensor) -> Tensor:
        return self._split(x) if self.key_norm is None else self.key_norm(self._split(x))

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, heads * D) → (B, heads, L, D)."""
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, heads={self.heads}, kv_heads={self.kv_heads}, head_size={self.head_size}"


def _check_sizes(d_model: int, heads: int, kv_heads: int, head_size: int | None) -> None:
    if heads < 1 or kv_heads < 1:
        raise ValueError(f"heads is {heads} and kv_heads {kv_heads}: both must be at least 1")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are not a multiple of {kv_heads} key/value heads")
    if head_size is None and d_model % heads:
        raise ValueError(f"d_model is {d_model}: without head_size it must be a multiple of the {heads} heads")


def _check_beams(batch: int, memory_batch: int, mask: Mask | None, bias: Bias | None) -> None:
    if memory_batch == 0 or batch % memory_batch:
        raise ValueError(
            f"x has {batch} batch entries and memory {memory_batch}: the first must be a multiple of the second"
        )
    if bias is not None:
        raise ValueError("bias is given, but beams share a memory here: it must be None")
    if mask is not None and not (isinstance(mask, Padding) and mask.query_lengths is None):
        raise ValueError(
            f"mask is {type(mask).__name__}, but beams share a memory here: it must be Padding(key_lengths) or None"
        )


def _xavier(linear: nn.Linear, sizes: tuple[int, ...]) -> None:
    with torch.no_grad():
        for part in linear.weight.split(sizes):
            nn.init.xavier_uniform_(part)
        if linear.bias is not None:
            linear.bias.zero_()
