"""Dropout from fewer random numbers.

On a CPU torch draws one Mersenne-twister number an element, on one thread; at a width of 128 that costs more than the
matrix products around it. Here every draw of 64 bits decides eight elements, eight bits each.
"""

from typing import Any

import torch
from torch import Tensor, nn

from regard.training.errors import TrainingError
from regard.transformer import Block

LEVELS = 256
"""Eight bits an element: the probability is rounded to a multiple of 1/256."""


def set_dropout(model: nn.Module, p: float | None) -> None:
    """Set the dropout of every sublayer's output within the `Block`s of a model, and use `ByteDropout` everywhere.

    Args:
        model: changed in place; its answers in evaluation mode stay what they are.
        p: probability of zeroing a feature, in [0, 1); None leaves it as it is.

    Raises:
        TrainingError: if p is outside that range.
    """
    if p is not None and not 0 <= p < 1:
        raise TrainingError(f"dropout is {p}; it may be from 0 up to, but not including, 1")
    for module in model.modules():
        if p is not None and isinstance(module, Block):
            module.dropout.p = p
    use_byte_dropout(model)


class ByteDropout(nn.Dropout):
    """Zeroes each element with probability p, rounded to 1/256, and scales the rest by 1 / (1 - p).

    The scale uses the rounded p, so that the mean is exact. Draws come from torch's default generator.

    Args:
        p: probability of zeroing an element, in [0, 1). Default 0.5.

    Raises:
        ValueError: if p is outside [0, 1).

    Dropout: arXiv 1207.0580.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"p is {p}; it may be from 0 up to, but not including, 1")
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:  # the name is torch's
        """Input of any shape → the same shape."""
        threshold = min(round(self.p * LEVELS), LEVELS - 1)
        if not self.training or threshold == 0:
            return input
        if input.device.type != "cpu":
            return super().forward(input)
        kept: Tensor = _ByteDropout.apply(input, threshold)  # pyright: ignore[reportAssignmentType]
        return kept


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: int) -> Tensor:
        draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        levels = draws.view(torch.uint8)[: x.numel()].view(x.shape)  # each 0 ... 255, uniform
        # The mask is made in x's own dtype, 0 or 1 / (1 - p): torch's operations on booleans are three times slower.
        mask = levels.to(x.dtype).ge_(threshold).mul_(LEVELS / (LEVELS - threshold))
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad_outputs[0] * mask, None


def use_byte_dropout(model: nn.Module) -> int:
    """Replace every `nn.Dropout` within a model by a `ByteDropout` of the same probability, in place.

    Parameters, their names and the model's answers in evaluation mode stay as they are.

    Returns:
        How many were replaced.
    """
    replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                quick = ByteDropout(child.p)
                quick.train(child.training)
                setattr(module, name, quick)
                replaced += 1
    return replaced
