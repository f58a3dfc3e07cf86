"""The position-wise feed-forward network (arXiv 1706.03762 section 3.3), plain or gated (arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from regard.transformer.linear import ACTIVATIONS, Linear, activated, linear


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
        self.activation = activation
        self.gated = gated
        self.up = Linear(d_model, 2 * hidden if gated else hidden, bias=bias)
        self.down = Linear(hidden, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)
        for layer, parts in ((self.up, 2 if gated else 1), (self.down, 1)):
            for part in layer.weight.chunk(parts):
                nn.init.xavier_uniform_(part)
            if bias:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → (..., d_model)."""
        # Hooks of `up`, and a layer that takes its place, see and say what is before the activation.
        if type(self.up) is Linear and self.up.plain:
            inner = linear(x, self.up.weight, self.up.bias, activation=self.activation, gated=self.gated)
        else:
            inner = activated(self.up(x), self.activation, gated=self.gated)
        return self.down(self.dropout(inner))
