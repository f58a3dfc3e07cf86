"""One Transformer block for every modality: attention, optional cross-attention, feed-forward, around a residual.

pre-norm  (arXiv 2002.04745)   x + dropout(sublayer(norm(x)))
post-norm (arXiv 1706.03762)   norm(x + dropout(sublayer(x)))
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from regard.attention.cache import Slot
from regard.attention.mask import Mask
from regard.attention.request import Bias
from regard.transformer.multi_head import MultiHeadAttention
from regard.transformer.norms import NormFactory


class Block(nn.Module):
    """Self-attention, then cross-attention if there is one, then feed-forward, each normed and residual.

    Args:
        attention: of kind "self".
        feed_forward: any module (B, L, d) → (B, L, d).
        norm: makes one norm of width d, for example `partial(LayerNorm, d)`; called once a sublayer.
        cross_attention: of kind "cross"; none by default.
        branch: makes a module that every sublayer's output passes before it is added, such as a `LayerScale`;
            called once a sublayer; none by default.
        dropout: probability of zeroing a feature of a sublayer's output in training.
        norm_first: pre-norm if true, post-norm if false.

    Raises:
        ValueError: if attention or cross_attention is of the other kind.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        feed_forward: nn.Module,
        *,
        norm: NormFactory,
        cross_attention: MultiHeadAttention | None = None,
        branch: Callable[[], nn.Module] | None = None,
        dropout: float = 0.0,
        norm_first: bool = True,
    ) -> None:
        super().__init__()
        if attention.kind != "self":
            raise ValueError(f'attention is of kind {attention.kind!r}: it must be "self"')
        if cross_attention is not None and cross_attention.kind != "cross":
            raise ValueError(f'cross_attention is of kind {cross_attention.kind!r}: it must be "cross"')
        self.attention = attention
        self.attention_norm = norm()
        self.attention_branch = None if branch is None else branch()
        self.cross_attention = cross_attention
        self.cross_attention_norm = None if cross_attention is None else norm()
        self.cross_attention_branch = None if cross_attention is None or branch is None else branch()
        self.feed_forward = feed_forward
        self.feed_forward_norm = norm()
        self.feed_forward_branch = None if branch is None else branch()
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Mask | None = None,
        memory_mask: Mask | None = None,
        bias: Bias | None = None,
        start: int | Tensor = 0,
        cache: Slot | None = None,
        memory_cache: Slot | None = None,
        last: int | None = None,
    ) -> Tensor:
        """One block's pass.

        Args:
            x: (B, L, d).
            memory: (Bm, Lm, d) for the cross-attention; see `MultiHeadAttention.forward`.
            mask: of the self-attention.
            memory_mask: of the cross-attention.
            bias: of the self-attention's scores.
            start: position of the first row of x, int or (B,).
            cache: slot of the self-attention.
            memory_cache: slot of the cross-attention.
            last: of x so many positions at the end are computed; by default all. The keys and values are those of all.

        Returns:
            (B, L, d); (B, last, d) where last is given.

        Raises:
            ValueError: if memory is given and there is no cross-attention, or the other way round.
        """

        chosen = {} if last is None else {"last": last}  # a module put in its place need not know it

        def attention(y: Tensor) -> Tensor:
            return self.attention(y, mask=mask, bias=bias, start=start, cache=cache, **chosen)

        x = self._residual(x, self.attention_norm, attention, self.attention_branch, last)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            cross = self.cross_attention

            def cross_attention(y: Tensor) -> Tensor:
                return cross(y, memory, mask=memory_mask, cache=memory_cache)

            x = self._residual(x, self.cross_attention_norm, cross_attention, self.cross_attention_branch)
        elif memory is not None:
            raise ValueError("memory is given, but this block has no cross_attention: it must be None")
        return self._residual(x, self.feed_forward_norm, self.feed_forward, self.feed_forward_branch)

    def _residual(
        self,
        x: Tensor,
        norm: nn.Module,
        sublayer: Callable[[Tensor], Tensor],
        branch: nn.Module | None,
        last: int | None = None,
    ) -> Tensor:
        y = sublayer(norm(x) if self.norm_first else x)
        y = y if branch is None else branch(y)
        if last is not None and y.shape != x.shape:  # a hook may have given all rows
            x = x[:, -last:]
        y = x + (self.dropout(y) if self.training else y)
        return y if self.norm_first else norm(y)
