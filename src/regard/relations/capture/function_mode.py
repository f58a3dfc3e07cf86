"""Whatever calls `torch.nn.functional.scaled_dot_product_attention`, however it was imported."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from regard.relations.capture.modes import Net
from regard.relations.capture.seeing import Call, Seer, ours, seer_here, transformed

# PyTorch's own modules fused into one operator: they are switched off, and seen here if they run nevertheless.
_FUSED_MODULES = (torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd)  # pyright: ignore


class SdpaNet(TorchFunctionMode, Net):
    """Sees every call of PyTorch's attention in the thread that it is active in."""

    def __init__(self, seer: Seer) -> None:
        super().__init__()
        self._seer = seer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:  # or else what it calls in turn would not come here
                return _undispatched(func)(*args, **kwargs)
        if seer_here() is not self._seer:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _see(self._seer, *args, **kwargs)
        if func in _FUSED_MODULES:
            self._seer.miss(f"the fused operator {func.__name__} computes it whole")
        return func(*args, **kwargs)


def _undispatched(function: FunctionType) -> FunctionType:
    """A function of torch.nn.functional that does not ask for modes before it begins; what it calls still does."""
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    undispatched = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    undispatched.__kwdefaults__ = function.__kwdefaults__
    return undispatched


def _see(
    seer: Seer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    options: Any = {"scale": scale, "enable_gqa": enable_gqa}

    def original() -> Tensor:
        with ours():
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)

    reason = transformed() or _unlike_attention(query, key, value, attn_mask, is_causal, enable_gqa)
    if reason is not None:
        seer.miss(reason)
        return original()
    q, k, v = _four_dimensions(query, key, value)
    mask = _four_dimensional_mask(attn_mask, query)

    def sampled(rows: Tensor) -> tuple[Tensor, Tensor]:
        if is_causal:  # which has no mask to take rows of: the corner that the first rows see alone
            n = rows.shape[0]
            corner = [t[:, :, :n] for t in (q, k, v)]
            out = F.scaled_dot_product_attention(corner[0], corner[1], corner[2], is_causal=True, **options)
            return out, torch.arange(n, device=rows.device)
        part = mask if mask is None or mask.shape[-2] == 1 else mask[:, :, rows]
        out = F.scaled_dot_product_attention(q[:, :, rows], k, v, part, **options)
        return out, rows

    request = seer.request(q, k, v, mask, causal=is_causal, scale=scale, dropout=dropout_p)
    output = seer.see(Call(request, lambda: original().reshape(*q.shape[:3], v.shape[3]), sampled))
    return output.reshape(*query.shape[:-1], v.shape[3])


def _unlike_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, grouped: bool
) -> str | None:
    """Why a call cannot be observed, or None. Calls that fail do so in PyTorch, with its message."""
    if any(t.is_nested for t in (query, key, value)):
        return "its tensors are nested"
    if len({t.dtype for t in (query, key, value)}) > 1 and not torch.is_autocast_enabled(query.device.type):
        return f"its dtypes are {query.dtype}, {key.dtype} and {value.dtype}"
    if not (2 <= query.dim() == key.dim() == value.dim()) or query.shape[-1] != key.shape[-1]:
        return f"its shapes are {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
    heads = [t.shape[-3] if t.dim() > 2 else 1 for t in (query, key, value)]
    if (heads[0] != heads[1] and not grouped) or heads[1] != heads[2] or heads[0] % max(1, heads[1]):
        return f"its query, key and value have {heads[0]}, {heads[1]} and {heads[2]} heads"
    whole = (*query.shape[:-1], key.shape[-2])
    sizes = None if mask is None else (1,) * (len(whole) - mask.dim()) + tuple(mask.shape)
    if sizes is not None and (len(whole) > 4 or any(n not in (1, m) for n, m in zip(sizes, whole, strict=False))):
        return f"its mask has shape {sizes}, and query and key give {whole}"
    if is_causal and mask is not None:
        return "it has a mask and is_causal"
    return None


def _four_dimensions(*tensors: Tensor) -> list[Tensor]:
    """(B, H, L, D): without batch or heads these are 1, several dimensions of batch become one."""
    batch = torch.broadcast_shapes(*(t.shape[:-3] for t in tensors))
    found: list[Tensor] = []
    for t in tensors:
        t = t if t.dim() > 2 else t[None]
        found.append(t.expand(*batch, *t.shape[-3:]).reshape(-1, *t.shape[-3:]))
    return found


def _four_dimensional_mask(mask: Tensor | None, query: Tensor) -> Tensor | None:
    if mask is None:
        return None
    return mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
