"""Linear layers, and what a feed-forward network does with their results while they are in registers.

The native library multiplies where no gradient is asked for. A few rows, as in every step of writing a text, take as
long as the matrix takes to be read, and it is read as one stream: one row of 576 and a matrix of 3,072 of them at
27 GB/s, where torch's products, made for many rows, reach 12, and a sum of all numbers 28. Many rows take as long as
the arithmetic: 2,048 of 576 and the same matrix 105 GFLOP/s, where torch's reach 98, of 118 that are possible (float32,
one thread of an AMD EPYC, Zen 4).
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn, overrides
from torch.nn.modules import module
from torch.utils import _python_dispatch

from regard.attention.native import library
from regard.attention.native.refusal import transformed

MOST_ROWS, MOST_NUMBERS = 16, 1 << 15
"""Rows, and numbers in them, up to which the matrix is read as a stream: 16 rows of 1,536 take 0.87 of torch's time, 8
of 4,096 take 0.95, 12 of 4,096 1.1."""
LEAST_WEIGHTS = 1 << 14
"""Of a matrix below which torch's product of a few rows is not slower, since it is called sooner: 1 × 128 · 128 × 128
takes 0.95 of torch's time, 1 × 64 · 64 × 64 1.7."""
LEAST_SIZE, LEAST_PRODUCTS = 128, 1 << 22
"""Of many rows, and of multiplications, below which torch's product is not slower: 64 × 128 · 128 × 512 takes 1.01 of
torch's time, 100 × 256 · 256 × 256 0.97, 200 × 64 · 64 × 256 1.05."""
VECTOR = 16
"""Rows are read in whole vectors: their size is a multiple of it."""

_CALL = struct.Struct("=11q")  # `Linear` in call.h

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}
_NUMBERS = {name: number for number, name in enumerate((None, *ACTIVATIONS))}  # `Activation` in call.h


class Linear(nn.Linear):
    """`torch.nn.Linear`, with the same parameters, by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return linear(input, self.weight, self.bias)

    @property
    def plain(self) -> bool:
        """Whether a call is this class's `forward` and nothing else: no hook, and nothing in its place."""
        mine = (self._forward_hooks, self._forward_pre_hooks, self._backward_hooks, self._backward_pre_hooks)
        return not any(mine) and "forward" not in self.__dict__ and not module._has_any_global_hook()


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None, gated: bool = False
) -> Tensor:
    """activation(x · weightᵀ + bias); gated, the first half of that is activated and multiplied with the second.

    Without gradients a row's result is the same to the bit for any number of threads.

    Args:
        x: (…, in).
        weight: (out, in).
        bias: (out,) or None.
        activation: a name among `ACTIVATIONS`; none by default.
        gated: as in SwiGLU and GEGLU (arXiv 2002.05202); out is even then.

    Returns:
        (…, out), or (…, out / 2) when gated.

    Raises:
        ValueError: if activation has another name.
        RuntimeError: if shapes do not fit.
    """
    if activation not in _NUMBERS:
        raise ValueError(f"activation is {activation!r}: it must be one of {', '.join(ACTIVATIONS)}")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # what follows asks for sizes
        return activated(F.linear(x, weight, bias), activation, gated=gated)
    native = library.load() if _fits(x, weight, bias, gated) and _plain(x, weight, bias) else None
    if native is None:
        return activated(F.linear(x, weight, bias), activation, gated=gated)
    x = x.contiguous()
    lines, size = weight.shape
    lines = lines // 2 if gated else lines
    out = x.new_empty(*x.shape[:-1], lines)
    call = _CALL.pack(
        *(x.numel() // size, size, lines, torch.get_num_threads()),
        *(x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()),
        *(_NUMBERS[activation], gated, _few(x)),
    )
    if native.regard_linear(call):
        raise MemoryError("linear: not enough memory")
    return out


def activated(y: Tensor, activation: str | None, *, gated: bool = False) -> Tensor:
    """activation(y); gated, the first half of y is activated and multiplied with the second.

    Args:
        y: (…, n).
        activation: a name among `ACTIVATIONS`, or None.
        gated: n is even then.

    Returns:
        (…, n), or (…, n / 2) when gated.
    """
    active = ACTIVATIONS[activation] if activation is not None else torch.clone
    if not gated:
        return y if activation is None else active(y)
    y, factors = y.chunk(2, -1)
    # Where no gradient will ask for the activated half, the product takes its place: it is the largest tensor of a
    # block, and its memory traffic shows.
    return active(y) * factors if torch.is_grad_enabled() else active(y).mul_(factors)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool) -> bool:
    """Whether the library takes these sizes, and is not slower."""
    if not x.dim() or weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    lines, size = weight.shape
    if x.shape[-1] != size or size % VECTOR or (gated and lines % 2):
        return False
    if _few(x):
        return weight.numel() >= LEAST_WEIGHTS and x.numel() > 0
    return size >= LEAST_SIZE and x.numel() * lines >= LEAST_PRODUCTS


def _few(x: Tensor) -> bool:
    return x.numel() <= min(MOST_ROWS * x.shape[-1], MOST_NUMBERS)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether all is dense float32 on the CPU, and nobody asks for the operator: no gradient, no mode, no trace."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if transformed(*tensors) or any(tensor.layout != torch.strided for tensor in tensors):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    if _python_dispatch._len_torch_dispatch_stack() or overrides._len_torch_function_stack():
        return False
    whole = weight.is_contiguous() and (bias is None or bias.is_contiguous())
    return whole and all(tensor.dtype == torch.float32 and tensor.is_cpu for tensor in tensors)
