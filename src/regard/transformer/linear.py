"""Linear layers, fast where a few rows meet a large matrix, as they do in every step of writing a text.

Such a product takes as long as the matrix takes to be read, and the native library reads it as one stream: one row of
576 and a matrix of 3,072 of them at 27 GB/s, where torch's products, made for many rows, reach 12, and a sum of all
numbers 28 (one thread of an AMD EPYC, Zen 4, float32; seldom-read matrices, beyond the caches).
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import struct

import torch
import torch.nn.functional as F
from torch import Tensor, nn, overrides
from torch.utils import _python_dispatch

from regard.attention.native import library
from regard.attention.native.refusal import transformed

MOST_ROWS, MOST_NUMBERS = 16, 1 << 15
"""Rows, and numbers in them, up to which the native library is asked: 16 rows of 1,536 take it 0.87 of torch's time,
8 of 4,096 take 0.95, 12 of 4,096 1.1."""
LEAST_WEIGHTS = 1 << 14
"""Of a matrix below which torch's product is not slower, since it is called sooner: 1 × 128 · 128 × 128 takes 0.95 of
torch's time, 1 × 64 · 64 × 64 1.7."""
VECTOR = 16
"""Rows are read in whole vectors: their size is a multiple of it."""

_CALL = struct.Struct("=8q")  # `Linear` in call.h


class Linear(nn.Linear):
    """`torch.nn.Linear`, with the same parameters, by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias, as `torch.nn.functional.linear`, which it calls but for a few rows without gradients.

    A row's result is the same to the bit however many rows come with it, up to `MOST_ROWS` and `MOST_NUMBERS`.

    Args:
        x: (…, in).
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (…, out).
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # what follows asks for sizes
        return F.linear(x, weight, bias)
    native = library.load() if _few(x, weight, bias) and _plain(x, weight, bias) else None
    if native is None:
        return F.linear(x, weight, bias)
    x = x.contiguous()
    lines, size = weight.shape
    out = x.new_empty(*x.shape[:-1], lines)
    call = _CALL.pack(
        *(x.numel() // size, size, lines, torch.get_num_threads()),
        *(x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()),
    )
    if native.regard_linear(call):
        raise MemoryError("linear: not enough memory")
    return out


def _few(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are a few rows of a size that the library takes, and a matrix that is large enough."""
    if not x.dim() or weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    size = weight.shape[1]
    if x.shape[-1] != size or size % VECTOR or weight.numel() < LEAST_WEIGHTS:
        return False
    return 0 < x.numel() <= min(MOST_ROWS * size, MOST_NUMBERS)


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
