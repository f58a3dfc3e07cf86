"""The position-wise feed-forward network (arXiv 1706.03762 section 3.3), plain or gated (arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.transformer.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(g) * u) with g, u = up(x) when gated; each position by itself.

    Weights are Xavier-uniform, biases zero.

    Args:
        d_model: width of input and output.
        hidden: width between the two projections.
        activation: "relu", "gelu", "gelu_tanh", "silu" or "tanh".
        gated: multiply the activation with a second projection, as in SwiGLU (silu) and GEGLU (gelu). One matrix
            holds both, the activated one first.
        bias: whether the projections have biases.
        dropout: probability of zeroing a hidden unit in training.

    Raises:
        ValueError: if activation is none of these names.
    """

    def __init__(
        self,
        d_model: int,
        hidden: int,
        *,
        activation: str = "relu",
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}: it must be one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        self.gated = gated
        self.up = Linear(d_model, 2 * hidden if gated else hidden, bias=bias)
        self.down = Linear(hidden, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)
        for linear, parts in ((self.up, 2 if gated else 1), (self.down, 1)):
            for part in linear.weight.chunk(parts):
                nn.init.xavier_uniform_(part)
            if bias:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → (..., d_model)."""
        inner = self.up(x)
        if self.gated:
            gate, inner = inner.chunk(2, -1)
            gate = self.activation(gate)
            # Where no gradient will ask for the factors, the product takes the place of the first: it is the largest
            # tensor of a block, and its memory traffic shows.
            inner = gate * inner if torch.is_grad_enabled() else gate.mul_(inner)
        else:
            inner = self.activation(inner)
        return self.down(self.dropout(inner))
