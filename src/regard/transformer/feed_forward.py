"""The position-wise feed-forward network (arXiv 1706.03762 section 3.3), plain or gated (arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) when gated; each position by itself.

    Weights are Xavier-uniform, biases zero.

    Args:
        d_model: width of input and output.
        hidden: width between the two projections.
        activation: "relu", "gelu", "gelu_tanh" or "silu".
        gated: multiply the activation with a second projection, as in SwiGLU (silu) and GEGLU (gelu).
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
        self.gate = nn.Linear(d_model, hidden, bias=bias) if gated else None
        self.up = nn.Linear(d_model, hidden, bias=bias)
        self.down = nn.Linear(hidden, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.gate, self.up, self.down):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)
                if bias:
                    nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → (..., d_model)."""
        if self.gate is None:
            inner = self.activation(self.up(x))
        else:
            inner = self.activation(self.gate(x)) * self.up(x)
        return self.down(self.dropout(inner))
