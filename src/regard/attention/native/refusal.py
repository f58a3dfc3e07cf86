"""What the native kernel does not serve."""

from __future__ import annotations

from torch import Tensor

from regard.attention.native import library
from regard.attention.native.lowering import DTYPES, has_form
from regard.attention.request import Request, transformed


def refuses(request: Request) -> str | None:
    """Why the kernel cannot serve a call."""
    query, value, bias = request.query, request.value, request.bias
    missing = library.why_missing()
    if missing is not None:
        return f"backend is not there: {missing}"
    if not query.is_cpu:
        return f"query is on {query.device}; the native kernel computes on the CPU"
    if query.dtype not in DTYPES:
        return f"query has dtype {query.dtype}; it may be float32, bfloat16 or float16"
    if request.dropout:
        return f"dropout is {request.dropout}; the native kernel has none"
    if isinstance(bias, Tensor):
        if bias.dtype not in DTYPES:
            return f"bias has dtype {bias.dtype}; it may be float32, bfloat16 or float16"
        if request.bias_needs_grad():
            return "bias needs a gradient; the native kernel gives none to a matrix"
    if query.numel() == 0 or value.numel() == 0:
        return f"query has shape {tuple(query.shape)} and value {tuple(value.shape)}; there is nothing to do"
    if not has_form(request):
        return "mask is no intervals of keys, and too large to be written out"
    if transformed(request.query, request.key, request.value):
        return "query, key or value is no plain tensor: a transformation such as vmap or forward differentiation is on"
    return None
