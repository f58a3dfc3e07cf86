"""The definition of attention, as short as the formula. It holds every matrix and is the oracle of all tests.

Scores are `softcap · tanh(scale · q·k / softcap) + bias` on allowed keys (without softcap `scale · q·k + bias`);
weights are their softmax over the allowed keys and the sink; the output is weights · value (arXiv 1706.03762).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regard.attention.observation import Collector, Observation, Watch
from regard.attention.request import Request, checked
from regard.attention.strips import LOWEST, NEVER, Strip, Weights, in_full_precision

Stage = Literal["raw", "softcap", "bias", "weights"]


@in_full_precision
def scores(query: Tensor, key: Tensor, *, stage: Stage = "weights", **arguments: Any) -> Tensor:
    """What stands in the (Lq, Lk) matrix at one stage of the computation.

    Args:
        query: (B, Hq, Lq, D).
        key: (B, Hkv, Lk, D).
        stage: "raw": scale · q·k, for every row that sees a key and every key that is seen; "softcap": after the
            softcap; "bias": after bias and mask, -inf where a key may not be seen; "weights": after the softmax.
        arguments: mask, bias, start, scale, softcap, sink_logits, as for `attend`.

    Returns:
        (B, Hq, Lq, Lk), in the precision of the query but at least float32.

    Raises:
        ValueError: the stage is unknown, or an argument does not fit.
    """
    stages = ("raw", "softcap", "bias", "weights")
    if stage not in stages:
        raise ValueError(f"stage is {stage!r}; it may be one of {', '.join(stages)}")
    return _matrices(checked(query, key, key, **arguments))[stages.index(stage)]


@in_full_precision
def attend(request: Request) -> Tensor:
    """Attention by its definition: (B, Hq, Lq, Dv)."""
    return _output(request, _matrices(request)[3])


@in_full_precision
def attend_observed(request: Request, watch: Watch) -> tuple[Tensor, Observation]:
    """The same, and every statistic read off the whole matrix."""
    _, _, s, weights = _matrices(request)
    collector = Collector(request, watch)
    rows = collector.rows
    logsumexp = _logsumexp(request, s)
    sees = s[:, :, rows].amax(-1) > -torch.inf
    seen = Weights(weights[:, :, rows], logsumexp[:, :, rows], weights[:, :, rows].sum(-1), sees)
    finite = s[:, :, rows].clamp(min=LOWEST).masked_fill(s[:, :, rows] == -torch.inf, NEVER)
    everything = slice(0, request.B), slice(0, request.Hq)
    strip = Strip(*everything, rows, slice(0, rows.shape[0]), range(request.Lk))
    collector.add(strip, finite, seen, collector.top_of(finite))
    return _output(request, weights), collector.observation()


def _matrices(request: Request) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The raw, capped and final scores and the weights, each (B, Hq, Lq, Lk)."""
    dtype, groups = request.compute_dtype, request.Hq // request.Hkv
    rows, keys = request.frame.rows(slice(None)), range(request.Lk)
    key = _visible(request, request.key).to(dtype).repeat_interleave(groups, 1)
    raw = request.scale * (_seeing(request).to(dtype) @ key.transpose(-1, -2))
    capped = raw if request.softcap is None else request.softcap * torch.tanh(raw / request.softcap)
    bias = request.bias_tile(rows, keys)
    s = capped if bias is None else capped + bias.to(dtype)
    if request.mask is not None:
        s = s.masked_fill(~request.mask.tile(request.frame, rows, keys), -torch.inf)
    return raw, capped, s, _softmax(request, s)


def _softmax(request: Request, s: Tensor) -> Tensor:
    """The weights (B, Hq, Lq, Lk): over the allowed keys and the sink; 0 in a row of -inf alone."""
    if request.sink_logits is not None:
        sink = request.sink_logits.to(s.dtype)[:, None, None].expand(*s.shape[:3], 1)
        s = torch.cat((s, sink), -1)
    nothing = (s == -torch.inf).all(-1, keepdim=True)  # the gradient of softmax is NaN there
    weights = s.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
    return weights if request.sink_logits is None else weights[..., :-1]


def _logsumexp(request: Request, s: Tensor) -> Tensor:
    """(B, Hq, Lq): over the allowed keys and the sink."""
    if request.sink_logits is not None:
        sink = request.sink_logits.to(s.dtype)[:, None, None].expand(*s.shape[:3], 1)
        s = torch.cat((s, sink), -1)
    nothing = (s == -torch.inf).all(-1, keepdim=True)  # the gradient of logsumexp is NaN there
    return torch.where(nothing[..., 0], -torch.inf, s.masked_fill(nothing, 0).logsumexp(-1))


def _output(request: Request, weights: Tensor) -> Tensor:
    value = _visible(request, request.value).to(weights.dtype)
    return (weights @ value.repeat_interleave(request.Hq // request.Hkv, 1)).to(request.query.dtype)


def _seeing(request: Request) -> Tensor:
    """Queries (B, Hq, Lq, D), zero where a row sees no key."""
    if request.mask is None:
        return request.query
    tile = request.mask.tile(request.frame, request.frame.rows(slice(None)), range(request.Lk))
    return torch.where(tile.any(-1, keepdim=True), request.query, 0)


def _visible(request: Request, tensor: Tensor) -> Tensor:
    """Keys or values (B, Hkv, Lk, D), zero where no row looks: what stands there may be NaN."""
    if request.mask is None:
        return tensor
    shape = (request.B, request.Hq, request.Lq, request.Lk)
    tile = request.mask.tile(request.frame, request.frame.rows(slice(None)), range(request.Lk)).expand(shape)
    seen = tile.any(2).unflatten(1, (request.Hkv, -1)).any(2)  # (B, Hkv, Lk)
    return torch.where(seen[..., None], tensor, 0)
