"""Layer normalisation (arXiv 1607.06450) and its root-mean-square form (arXiv 1910.07467).

The modules are torch's own, but that the root-mean-square form goes over its input less often where no gradient is
asked for. The two functions are the definitions, for any number of trailing axes: they also return what a test or an
exporter wants to see, and compute in float32 at least, whatever the input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LayerNorm = nn.LayerNorm
_LARGE = 2**16
"""Elements from which on passes over memory cost more than calls."""


class RMSNorm(nn.RMSNorm):
    """torch's module, with the same result up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) → (..., d)."""
        plain = x.dtype == torch.float32 and x.device.type == "cpu" and len(self.normalized_shape) == 1
        if torch.is_grad_enabled() or not plain or x.numel() < _LARGE or self.eps is None:
            return super().forward(x)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        y = x * square.div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return y if self.weight is None else y.mul_(self.weight)


NormFactory = Callable[[], nn.Module]
"""Makes one norm; a block calls it once for every sublayer."""


class LayerScale(nn.Module):
    """A learned factor a feature (arXiv 2103.17239).

    Args:
        d: width.
        initial: value of every factor at first.
    """

    def __init__(self, d: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) → (..., d)."""
        return x * self.weight


def layer_norm(
    x: Tensor, axis: int = -1, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise x to mean 0 and variance 1 over all axes from `axis` on.

    Args:
        x: any shape.
        axis: the first normalised axis, counted from the end if negative.
        weight: scale, broadcasts to x; none by default.
        bias: offset, broadcasts to x; none by default.
        eps: added to the variance.

    Returns:
        y in the shape and dtype of x; mean and 1/standard deviation, with the normalised axes kept at size 1,
        in float32 (float64 for float64 input).

    Raises:
        ValueError: if axis does not exist in x.
    """
    axes = _axes_from(x, axis)
    wide = x.to(_accumulator(x.dtype))
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    inv_std = torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    y = (centred * inv_std).to(x.dtype)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y, mean, inv_std


def rms_norm(x: Tensor, axis: int = -1, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Divide x by its root mean square over all axes from `axis` on.

    Args:
        x: any shape.
        axis: the first normalised axis, counted from the end if negative.
        weight: scale, broadcasts to x; none by default.
        eps: added to the mean square.

    Raises:
        ValueError: if axis does not exist in x.
    """
    axes = _axes_from(x, axis)
    wide = x.to(_accumulator(x.dtype))
    y = (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + eps)).to(x.dtype)
    return y if weight is None else y * weight


def _axes_from(x: Tensor, axis: int) -> list[int]:
    if not -x.dim() <= axis < x.dim():
        raise ValueError(f"axis is {axis}, but x has {x.dim()} axes: it must be in [{-x.dim()}, {x.dim()})")
    return list(range(axis % x.dim(), x.dim()))


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
