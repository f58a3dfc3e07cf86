"""Models of `transformers` that look their attention up in its interface (`ALL_ATTENTION_FUNCTIONS`).

While a model is observed, a look-up made in its forward pass is given a function that observes, and that knows the
function which would have been found. Its `_attn_implementation` stays what it is: models read that name to make their
masks (through `ALL_MASK_ATTENTION_FUNCTIONS`, which gives a name that it does not know no mask at all, and so loses the
padding) and to choose between paths, and several models may share one config. Look-ups of other models, and those in
other threads, find what they always do.

`transformers` is optional: nothing here imports it before it is known to be loaded.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from regard.relations.capture.seeing import Call, Seer, ours, seer_here, transformed

_Attention = Callable[..., tuple[Tensor, Tensor | None]]

_lock = threading.Lock()
_observers = 0
_found: Any = None  # the look-up of transformers, while ours stands in its place


@contextmanager
def looked_up() -> Generator[None]:
    """Observes what models of transformers look up, where these are under way under an observer."""
    global _observers, _found
    loaded = sys.modules.get("transformers.modeling_utils")
    if loaded is None:  # then no model is one of its
        yield
        return
    interface = loaded.AttentionInterface
    with _lock:
        _observers += 1
        if _observers == 1:
            _found = interface.get_interface
            interface.get_interface = _observing(_found)
    try:
        yield
    finally:
        with _lock:
            _observers -= 1
            if _observers == 0:
                interface.get_interface, _found = _found, None


def _observing(get_interface: Callable[..., _Attention]) -> Callable[..., _Attention]:
    @wraps(get_interface)
    def look_up(self: Any, attn_implementation: str | None, default: _Attention) -> _Attention:
        original = get_interface(self, attn_implementation, default)
        seer = seer_here()
        return original if seer is None else partial(_attention, seer, original, attn_implementation or "eager")

    return look_up


def _attention(
    seer: Seer,
    original: _Attention,
    name: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What a function of the interface computes, observed: (B, Lq, Hq, Dv), and the weights where a model asks."""

    def as_it_was() -> tuple[Tensor, Tensor | None]:
        with ours():
            return original(module, query, key, value, attention_mask, **kwargs)

    reason = transformed() or _unreadable(name, attention_mask, kwargs)
    if reason is not None:
        seer.miss(reason)
        return as_it_was()
    implicit = _implicitly_causal(name, module, query, attention_mask, kwargs)
    if implicit:  # a cache with room for what comes: its empty part is cut off
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    mask = _cropped(attention_mask, key)
    bias = _cropped(kwargs.get("position_bias"), key)
    request = seer.request(
        query,
        key,
        value,
        mask,
        causal=implicit,
        bias=bias,
        scale=kwargs.get("scaling"),
        softcap=kwargs.get("softcap"),
        sink_logits=kwargs.get("s_aux"),
        dropout=kwargs.get("dropout", 0.0),
    )
    sampled = partial(_sampled, original, module, (query, key, value), mask, implicit, kwargs)
    if not _weights_wanted(name, kwargs):
        call = Call(request, lambda: as_it_was()[0].transpose(1, 2), sampled)
        return seer.see(call).transpose(1, 2).contiguous(), None
    output, weights = as_it_was()
    seen = seer.see(Call(request, lambda: output.transpose(1, 2), sampled, beside=True))
    return seen.transpose(1, 2), weights


def _unreadable(name: str, mask: Any, kwargs: dict[str, Any]) -> str | None:
    """Why a call cannot be read, or None."""
    if mask is not None and not isinstance(mask, Tensor):
        return f"its mask for {name!r} is a {type(mask).__name__}, not a matrix"
    if isinstance(mask, Tensor) and mask.dim() != 4:
        return f"its mask for {name!r} has shape {tuple(mask.shape)}, not (B, H, Lq, Lk)"
    if mask is None and name not in ("sdpa", "eager"):
        return f'what {name!r} hides is not said by a mask; "sdpa" or "eager" as attn_implementation says it'
    if kwargs.get("cache") is not None:
        return "its keys are paged"
    return None


def _implicitly_causal(
    name: str, module: torch.nn.Module, query: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> bool:
    """Whether "sdpa" counts a call without a mask as causal; "eager" hides only what a mask says."""
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return name == "sdpa" and mask is None and query.shape[2] > 1 and bool(causal)


def _cropped(matrix: Tensor | None, key: Tensor) -> Tensor | None:
    """A mask or bias that is longer than the keys counts for those there are."""
    return matrix if matrix is None or matrix.shape[-1] <= key.shape[2] else matrix[..., : key.shape[2]]


def _weights_wanted(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a model has been asked for its attention weights, which "eager" alone gives."""
    if name != "eager":
        return False
    capturing = sys.modules.get("transformers.utils.output_capturing")
    collected = capturing and capturing._active_collector.get()
    return bool(kwargs.get("output_attentions")) or any("attentions" in wanted for wanted in collected or ())


def _sampled(
    original: _Attention,
    module: torch.nn.Module,
    tensors: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    causal: bool,
    kwargs: dict[str, Any],
    rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """What the model's own function gives some rows, (B, Hq, r, Dv), and which: the first ones where it is causal
    without a mask, as it then takes its first row for the first of all."""
    query, key, value = tensors
    bias = kwargs.get("position_bias")
    if causal:
        rows = torch.arange(rows.shape[0], device=rows.device)
        key, value = key[:, :, : rows.shape[0]], value[:, :, : rows.shape[0]]
    given = {**kwargs, "dropout": 0.0} if "dropout" in kwargs else dict(kwargs)
    if bias is not None:
        given["position_bias"] = _rows(bias, rows)[..., : key.shape[2]]
    output, _ = original(module, query[:, :, rows], key, value, _rows(mask, rows), **given)
    return output.transpose(1, 2), rows


def _rows(matrix: Any, rows: Tensor) -> Any:
    return matrix if matrix is None or matrix.shape[-2] == 1 else matrix[:, :, rows]
