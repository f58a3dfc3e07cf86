"""One call of attention, checked: what every backend is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from regard.attention.frame import Frame, check_broadcast, tile_of
from regard.attention.mask import Mask
from regard.attention.position import ALiBi, RelativeBias

Bias: TypeAlias = Tensor | ALiBi | RelativeBias


@dataclass(slots=True, eq=False)  # as good as frozen, which would cost every call 2 µs: nobody changes one
class Request:
    """The arguments of `attend`, checked against each other.

    B batch, Hq query heads, Hkv key/value heads, Lq queries, Lk keys, D and Dv the sizes of a key and a value.
    """

    query: Tensor  # (B, Hq, Lq, D)
    key: Tensor  # (B, Hkv, Lk, D)
    value: Tensor  # (B, Hkv, Lk, Dv)
    mask: Mask | None = None
    bias: Bias | None = None
    start: int | Tensor = 0
    scale: float = 1.0
    softcap: float | None = None
    sink_logits: Tensor | None = None  # (Hq,)
    dropout: float = 0.0

    @property
    def B(self) -> int:
        """Batch."""
        return self.query.shape[0]

    @property
    def Hq(self) -> int:
        """Query heads."""
        return self.query.shape[1]

    @property
    def Hkv(self) -> int:
        """Key/value heads."""
        return self.key.shape[1]

    @property
    def Lq(self) -> int:
        """Query rows."""
        return self.query.shape[2]

    @property
    def Lk(self) -> int:
        """Keys."""
        return self.key.shape[2]

    @property
    def frame(self) -> Frame:
        """Where this call's rows and keys stand."""
        return Frame(self.Lq, self.Lk, self.start, self.query.device)

    @property
    def compute_dtype(self) -> torch.dtype:
        """At least float32: half-precision inputs are accumulated in it."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def bias_tile(self, rows: Tensor, keys: range) -> Tensor | None:
        """The bias of some rows and keys, (B|1, H|1, R|1, K|1), or None where there is no bias."""
        if self.bias is None:
            return None
        if isinstance(self.bias, Tensor):
            return tile_of(self.bias, rows, keys, self.query.device)
        return self.bias.tile(self.frame, rows, keys)

    def bias_needs_grad(self) -> bool:
        """Whether a gradient must reach the bias."""
        parameter = self.bias if isinstance(self.bias, Tensor) or self.bias is None else self.bias.parameter
        return parameter is not None and parameter.requires_grad and torch.is_grad_enabled()

    def needs_grad(self) -> bool:
        """Whether a gradient must reach any tensor of the call."""
        if not torch.is_grad_enabled():
            return False
        tensors = (self.query, self.key, self.value, self.sink_logits)
        return self.bias_needs_grad() or any(t is not None and t.requires_grad for t in tensors)


def checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None = None,
    bias: Bias | None = None,
    start: int | Tensor = 0,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    dropout: float = 0.0,
) -> Request:
    """A Request from the arguments of `attend`, or a ValueError or TypeError that names what does not fit."""
    B, Hq, Lq, Lk, D = _checked_sizes(query, key, value)
    if mask is not None:
        if not isinstance(mask, Mask):
            raise TypeError(
                f"mask is a {type(mask).__name__}; it may be None, or a mask such as Causal() or Dense(allowed)"
            )
        mask.check(B, Hq, Lq, Lk)
    if bias is not None:
        _check_bias(bias, (B, Hq, Lq, Lk))
    if type(start) is not int:
        _check_start(start, B)
    if scale is None:
        scale = 1.0 / math.sqrt(D) if D else 1.0
    elif not -math.inf < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be finite")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it may be None or a positive number")
    if sink_logits is not None and not isinstance(sink_logits, Tensor):
        raise TypeError(f"sink_logits is a {type(sink_logits).__name__}; it may be None or a tensor ({Hq},)")
    if sink_logits is not None and sink_logits.shape != (Hq,):
        raise ValueError(f"sink_logits has shape {tuple(sink_logits.shape)}; one logit a query head is ({Hq},)")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
    return Request(query, key, value, mask, bias, start, scale, softcap, sink_logits, dropout)


def _checked_sizes(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int, int, int]:
    """B, Hq, Lq, Lk and D of three tensors that fit together. Every call pays for this: each attribute is read once."""
    query_shape, key_shape, value_shape = query.shape, key.shape, value.shape
    if not (
        len(query_shape) == len(key_shape) == len(value_shape) == 4
        and query.is_floating_point()
        and query.dtype == key.dtype == value.dtype
        and query.device == key.device == value.device
        and query_shape[0] == key_shape[0] == value_shape[0]
    ):
        _name_what_differs(query, key, value)
    B, Hq, Lq, D = query_shape
    _, Hkv, Lk, key_D = key_shape
    if key_D != D:
        raise ValueError(f"key has head size {key_D} and query {D}; they must be the same")
    if Hkv != value_shape[1] or Lk != value_shape[2]:
        raise ValueError(
            f"key has {Hkv} heads of {Lk} elements and value {value_shape[1]} heads of {value_shape[2]};"
            " they must be the same"
        )
    if Hkv == 0 or Hq % Hkv:
        raise ValueError(f"{Hq} query heads are not a multiple of {Hkv} key/value heads")
    return B, Hq, Lq, Lk, D


def _name_what_differs(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor, shape in (
        ("query", query, "(B, Hq, Lq, D)"),
        ("key", key, "(B, Hkv, Lk, D)"),
        ("value", value, "(B, Hkv, Lk, Dv)"),
    ):
        if tensor.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; it must be a floating-point type")
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype} and query {query.dtype}; they must be the same")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device} and query on {query.device}; they must be the same")
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} has a batch of {tensor.shape[0]} and query of {query.shape[0]}")


def _check_start(start: int | Tensor, B: int) -> None:
    if isinstance(start, Tensor):
        if start.shape != (B,) or start.is_floating_point():
            raise ValueError(
                f"start has shape {tuple(start.shape)} and dtype {start.dtype}; it may be an integer or integers ({B},)"
            )
    elif not isinstance(start, int | torch.SymInt):
        raise TypeError(f"start is {start!r}; it may be an integer or integers ({B},)")


def _check_bias(bias: Bias, shape: tuple[int, int, int, int]) -> None:
    if isinstance(bias, Tensor):
        if not bias.is_floating_point():
            raise TypeError(
                f"bias has dtype {bias.dtype}; it must be floating-point (a boolean mask is Dense(allowed))"
            )
        check_broadcast("bias", bias, shape)
    elif not isinstance(bias, ALiBi | RelativeBias):
        raise TypeError(f"bias is a {type(bias).__name__}; it may be None, a tensor, ALiBi or RelativeBias")
    elif bias.heads != shape[1]:
        raise ValueError(f"bias has {bias.heads} heads and query {shape[1]}")


def transformed(*tensors: Tensor) -> bool:
    """Whether a tensor is no plain one, or a transformation of functions is on."""
    if torch.compiler.is_compiling():
        return False
    plain = (Tensor, torch.nn.Parameter)
    if any(type(tensor) not in plain for tensor in tensors):
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0  # pyright: ignore
