"""Small stacks of this library with uneven weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from regard.transformer import Block, Decoder, Encoder, FeedForward, MultiHeadAttention

D_MODEL, HEADS, L = 16, 4, 7
close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


def block(d: int = D_MODEL, **settings: object) -> Block:
    made = Block(MultiHeadAttention(d, HEADS, **settings), FeedForward(d, 2 * d), norm=partial(nn.LayerNorm, d))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return made


def own(kind: type[Encoder] | type[Decoder], **settings: object) -> Encoder | Decoder:
    torch.manual_seed(0)
    return kind([block(**settings) for _ in range(3)]).eval()


def inputs_of_attention(model: nn.Module, run: partial[Tensor]) -> list[Tensor]:
    """What enters each attention of this library, (B, L, d)."""
    found: list[Tensor] = []
    modules = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    handles = [m.register_forward_pre_hook(lambda _, args: found.append(args[0])) for m in modules]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found
