"""What one call of attention saw: `Watch` says what to keep, `Observation` holds it and answers questions.

B | batch    Hq, Hkv | query, key/value heads    Lq | query rows    Lk | keys    R | watched rows (Lq unless chosen)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from regard.attention import strips
from regard.attention.largest import top_indices
from regard.attention.request import Request
from regard.attention.strips import Strip, Weights


@dataclass(frozen=True, eq=False)
class Watch:
    """What an observed call keeps.

    Args:
        top: how many of each row's largest weights to keep, with their keys; 0 for none.
        received: keep what each key received from all rows together.
        entropy: keep each row's entropy.
        position: keep each row's mean key position and mean distance.
        segments: integers (Lk,) or (B, Lk): the segment of each key, numbered from 0; -1 belongs to none. Keep how
            much of each row went to each segment.
        rows: integers (R,), the rows to observe; None is all. Fields of rows then have R rows, in this order, and
            `received` sums over these alone.
        keep: keep queries, keys and values, so that exact weights and products can be had later.

    Raises:
        ValueError: `top` is negative, or `segments` or `rows` are no integers of such a shape.
    """

    top: int = 8
    received: bool = True
    entropy: bool = True
    position: bool = True
    segments: Tensor | None = None
    rows: Tensor | None = None
    keep: bool = True

    def __post_init__(self) -> None:
        if self.top < 0:
            raise ValueError(f"top is {self.top}; it must be at least 0")
        for name, tensor, dimensions in (("segments", self.segments, (1, 2)), ("rows", self.rows, (1,))):
            if tensor is not None and (tensor.is_floating_point() or tensor.dtype == torch.bool):
                raise ValueError(f"{name} has dtype {tensor.dtype}; it must be integers")
            if tensor is not None and tensor.dim() not in dimensions:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must have {dimensions} dimensions")

    def check(self, request: Request) -> None:
        """Raises ValueError where `rows` or `segments` do not fit the call."""
        if self.rows is not None and self.rows.numel():
            low, high = int(self.rows.min()), int(self.rows.max())
            if low < 0 or high >= request.Lq:
                raise ValueError(f"rows go from {low} to {high}; the query has rows 0 … {request.Lq - 1}")
        if self.segments is not None:
            allowed = ((request.Lk,), (1, request.Lk), (request.B, request.Lk))
            if (shape := tuple(self.segments.shape)) not in allowed:
                raise ValueError(f"segments has shape {shape}; it may be {allowed[0]} or {allowed[2]}")
        if request.Lk == 0:
            raise ValueError("key has no elements; there is nothing to observe")


class Answers(Protocol):
    """A backend's own way to answer questions about a call that it served, without strips of its matrix."""

    def refuses(self, request: Request, *given: Tensor) -> str | None:
        """Why it cannot answer about `request`, asked with the tensors `given`; strips do it then."""
        ...

    def pull(self, v: Tensor) -> Tensor:
        """`Observation.pull` of columns in float32."""
        ...

    def push(self, r: Tensor, grad_output: Tensor | None = None) -> Tensor:
        """`Observation.push` of columns in float32, or `push_weighted`."""
        ...


SEEN = (
    "logsumexp",
    "max_weight",
    "top_keys",
    "top_weights",
    "rest",
    "entropy",
    "sink_weight",
    "mean_position",
    "mean_distance",
    "received",
    "segment_mass",
)
"""The fields of an Observation that hold what was seen."""


class Packed(Protocol):
    """Fields of an Observation that lie in one piece of memory, and become tensors when they are first asked for.

    To allocate ten tensors takes longer than the kernel needs for the row of a decoder.
    """

    def field(self, name: str) -> Tensor | None:
        """One of them; None where `Watch` did not ask."""
        ...


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Observation:
    """What one call saw, exactly: detached float32 tensors, None where `Watch` did not ask.

    Weights are those before dropout. Where a row may see no key, its weights and entropy are 0, its logsumexp is
    -inf (or the sink's logit), and its mean position and distance are NaN. With a sink, the mean position and
    distance are means over the weight that keys have, and the entropy sums over keys.
    """

    logsumexp: Tensor  # (B, Hq, R), the sink included
    max_weight: Tensor  # (B, Hq, R)
    top_keys: Tensor | None = None  # (B, Hq, R, k) int32, largest weight first, ties by lowest key; -1: no such key
    top_weights: Tensor | None = None  # (B, Hq, R, k)
    rest: Tensor | None = None  # (B, Hq, R), the keys' weight that top_weights does not show
    entropy: Tensor | None = None  # (B, Hq, R), in nats
    sink_weight: Tensor | None = None  # (B, Hq, R), the weight that went to the sink; None without one
    mean_position: Tensor | None = None  # (B, Hq, R), of the keys
    mean_distance: Tensor | None = None  # (B, Hq, R), of |i - j|
    received: Tensor | None = None  # (B, Hq, Lk), the sum over real query rows
    segment_mass: Tensor | None = None  # (B, Hq, R, S)
    rows: Tensor | None = None  # (R,) the rows watched; None: all
    kept: Request | None = None
    answers: Answers | None = None  # of the backend that served the call; without them, strips answer
    _packed: Packed | None = field(default=None, repr=False)  # what fields that are not set yet are made from

    @classmethod
    def unpacked_later(cls, packed: Packed, kept: Request | None = None, answers: Answers | None = None) -> Observation:
        """An Observation of all rows, whose tensors are made when they are asked for."""
        self = cls.__new__(cls)
        for name, value in (("_packed", packed), ("kept", kept), ("answers", answers), ("rows", None)):
            object.__setattr__(self, name, value)
        return self

    def __getattr__(self, name: str) -> Any:
        """A field that is not set yet."""
        if name not in SEEN:
            raise AttributeError(f"an Observation has no {name!r}")
        assert self._packed is not None
        value = self._packed.field(name)
        object.__setattr__(self, name, value)
        return value

    @strips.in_full_precision
    def weights(self, rows: Tensor | range | slice | None = None, heads: Tensor | list[int] | None = None) -> Tensor:
        """Exact attention weights (B, H, R, Lk), 0 where a key may not be seen.

        Args:
            rows: which query rows of the call; None is all (Lq · Lk numbers a head: ask for few on long sequences).
            heads: which query heads; None is all.

        Raises:
            ValueError: the call was observed with keep=False.
        """
        request = self._request("weights")
        numbers = request.frame.rows(slice(None) if rows is None else rows)
        chosen = torch.arange(request.Hq) if heads is None else torch.as_tensor(heads, dtype=torch.int64)
        out = request.query.new_zeros(request.B, chosen.shape[0], numbers.shape[0], request.Lk, dtype=torch.float32)
        for strip, w in self._strips(request, numbers):
            out[strip.batch, :, strip.at, strip.keys.start : strip.keys.stop] = w[:, chosen].float()
        return out

    @strips.in_full_precision
    def pull(self, v: Tensor) -> Tensor:
        """P v: each row's weighted mean of v. From (B|1, Hq|1, Lk) to (B, Hq, Lq), or with columns (…, d)."""
        request = self._request("pull")
        columns = self._columns("v", v, request, request.Lk)  # (B|1, Hq|1, Lk, d)
        if self.answers is not None and self.answers.refuses(request, columns) is None:
            out = self.answers.pull(columns)
            return out if v.dim() == 4 else out[..., 0]
        out = columns.new_zeros(request.B, request.Hq, request.Lq, columns.shape[-1])
        for strip, w in self._strips(request):
            part = strips.entries(columns, strip.batch)[:, :, strip.keys.start : strip.keys.stop]
            out[strip.batch, :, strip.at] = w @ part.to(w.dtype)
        return out if v.dim() == 4 else out[..., 0]

    @strips.in_full_precision
    def push(self, r: Tensor) -> Tensor:
        """rᵀ P: what the keys get when row i gives r_i. From (B|1, Hq|1, Lq) to (B, Hq, Lk), or with columns (…, d)."""
        request = self._request("push")
        columns = self._columns("r", r, request, request.Lq)  # (B|1, Hq|1, Lq, d)
        if self.answers is not None and self.answers.refuses(request, columns) is None:
            out = self.answers.push(columns)
            return out if r.dim() == 4 else out[..., 0]
        out = columns.new_zeros(request.B, request.Hq, request.Lk, columns.shape[-1])
        for strip, w in self._strips(request):
            part = strips.entries(columns, strip.batch)[:, :, strip.at]
            out[strip.batch, :, strip.keys.start : strip.keys.stop] += w.transpose(-1, -2) @ part.to(w.dtype)
        return out if r.dim() == 4 else out[..., 0]

    @strips.in_full_precision
    def push_weighted(self, r: Tensor, grad_output: Tensor) -> Tensor:
        """rᵀ (G ⊙ P)₊ with G = grad_output · Vᵀ: gradient-weighted relevance (arXiv 2103.15679), no matrix held.

        Args:
            r: (B|1, Hq|1, Lq).
            grad_output: the gradient of the target with respect to this call's output, (B, Hq, Lq, Dv).

        Returns:
            (B, Hq, Lk).
        """
        request = self._request("push_weighted")
        shape = (request.B, request.Hq, request.Lq, request.value.shape[3])
        if grad_output.shape != shape:
            raise ValueError(f"grad_output has shape {tuple(grad_output.shape)}; this call's output has {shape}")
        columns = self._columns("r", r, request, request.Lq)
        grad_output = grad_output.to(request.compute_dtype)
        if self.answers is not None and self.answers.refuses(request, columns, grad_output) is None:
            out = self.answers.push(columns, grad_output)
            return out if r.dim() == 4 else out[..., 0]
        out = columns.new_zeros(request.B, request.Hq, request.Lk, columns.shape[-1])
        value = strips.prepared(request)[0].value
        for strip, w in self._strips(request):
            keys = slice(strip.keys.start, strip.keys.stop)
            grad = grad_output[strip.batch, :, strip.at]
            gain = strips.products(grad, value[strip.batch, :, keys].to(w.dtype))  # G, (b, Hq, r, n)
            part = strips.entries(columns, strip.batch)[:, :, strip.at]
            out[strip.batch, :, keys] += (gain * w).clamp(min=0).transpose(-1, -2) @ part.to(w.dtype)
        return out if r.dim() == 4 else out[..., 0]

    def _request(self, question: str) -> Request:
        if self.kept is None:
            raise ValueError(
                f"{question} needs queries and keys: this call has none (observed with keep=False, or loaded)"
            )
        return self.kept

    @staticmethod
    def _columns(name: str, tensor: Tensor, request: Request, L: int) -> Tensor:
        B, Hq = request.B, request.Hq
        columns = tensor if tensor.dim() == 4 else tensor.reshape((1,) * (3 - tensor.dim()) + (*tensor.shape, 1))
        fits = columns.dim() == 4 and columns.shape[0] in (1, B) and columns.shape[1] in (1, Hq)
        if not fits or columns.shape[2] != L:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it may be ({B}, {Hq}, {L}) or ({B}, {Hq}, {L}, d)"
            )
        return columns.to(torch.float32)

    @staticmethod
    def _strips(request: Request, rows: Tensor | None = None) -> Iterator[tuple[Strip, Tensor]]:
        """The strips of a call with their weights (b, Hq, r, n)."""
        call, view = strips.prepared(request)
        numbers = call.frame.rows(slice(None)) if rows is None else rows
        for strip in strips.walk(call, view, numbers, copies=4):
            yield strip, strips.softmax(strips.scores(call, strip), call.sink_logits).weights


class Collector:
    """Gathers the statistics of a call strip by strip."""

    def __init__(self, request: Request, watch: Watch) -> None:
        self.request, self.watch = request, watch
        B, Hq, device = request.B, request.Hq, request.query.device
        self.rows = request.frame.rows(slice(None) if watch.rows is None else watch.rows)
        R = self.rows.shape[0]

        def new(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(B, Hq, *sizes, dtype=dtype, device=device)

        self.logsumexp, self.max_weight = new(R), new(R)
        self.sink_weight = new(R) if request.sink_logits is not None else None
        self.entropy = new(R) if watch.entropy else None
        self.mean_position, self.mean_distance = (new(R), new(R)) if watch.position else (None, None)
        # Summed over many strips, so in float64.
        self.received = new(request.Lk, dtype=torch.float64) if watch.received else None
        self.top_keys = new(R, watch.top, dtype=torch.int32).fill_(-1) if watch.top else None
        self.top_weights, self.rest = (new(R, watch.top), new(R)) if watch.top else (None, None)
        self.segment_mass, self._segments = None, None
        if watch.segments is not None:
            segments = torch.atleast_2d(watch.segments).to(device, torch.int64)
            S = max(int(segments.max()) + 1, 0) if segments.numel() else 0
            self.segment_mass = new(R, S)
            numbers = torch.arange(S, device=device)
            self._segments = (segments[..., None] == numbers).to(request.compute_dtype)  # (B|1, Lk, S)

    @torch.no_grad()
    def top_of(self, s: Tensor) -> Tensor | None:
        """Where the scores (b, h, r, n) of a strip are largest, (b, h, r, k); None where nobody asks."""
        return top_indices(s.detach(), min(self.watch.top, s.shape[-1])) if self.watch.top else None

    @torch.no_grad()
    def add(self, strip: Strip, s: Tensor, seen: Weights, top: Tensor | None) -> None:
        """Takes the scores (b, h, r, n) of a strip, which are no more after it, their softmax and `top_of` them."""
        kept_for_gradients = s.requires_grad
        s, w, at = s.detach(), seen.weights.detach(), (strip.batch, strip.heads, strip.at)
        logsumexp, mass, sees = seen.logsumexp.detach(), seen.mass.detach(), seen.sees
        self.logsumexp[at] = logsumexp.float()
        self.max_weight[at] = (w.amax(-1) if top is None else w.gather(-1, top[..., :1])[..., 0]).float()
        if self.request.sink_logits is not None and self.sink_weight is not None:
            sink = self.request.sink_logits.detach().to(s.dtype)[strip.heads, None]
            self.sink_weight[at] = torch.exp(sink - logsumexp).float()
        if self.received is not None:
            keys = slice(strip.keys.start, strip.keys.stop)
            self.received[strip.batch, strip.heads, keys] += w.sum(-2)
        if self._segments is not None and self.segment_mass is not None:
            onehot = strips.entries(self._segments, strip.batch)[:, strip.keys.start : strip.keys.stop]
            self.segment_mass[at] = (w @ onehot[:, None]).float()
        self._add_positions(strip, w, mass, sees)
        if top is not None:
            self._add_top(strip, s, w, mass, top)
        if self.entropy is not None:
            # Non-negative terms p (logsumexp - s): where p is 0 the score is finite, so the term is 0.
            finite = torch.where(sees, logsumexp, 0.0)[..., None]
            below = s - finite if kept_for_gradients else s.sub_(finite)
            self.entropy[at] = below.mul_(w).sum(-1).neg_().clamp_(min=0).float()

    def _add_positions(self, strip: Strip, w: Tensor, mass: Tensor, sees: Tensor) -> None:
        if self.mean_position is None or self.mean_distance is None:
            return
        at = (strip.batch, strip.heads, strip.at)
        j = torch.arange(strip.keys.start, strip.keys.stop, device=w.device)
        i = strips.entries(self.request.frame.positions(strip.rows), strip.batch)  # (b|1, r)
        distance = (j - i[..., None]).abs().to(w.dtype)  # (b|1, r, n)
        nothing = ~(sees & (mass > 0))
        mean = (w @ j.to(w.dtype)) / mass
        self.mean_position[at] = mean.masked_fill(nothing, torch.nan).float()
        mean = torch.einsum("bhrn,brn->bhr", w, distance.expand(w.shape[0], -1, -1)) / mass
        self.mean_distance[at] = mean.masked_fill(nothing, torch.nan).float()

    def _add_top(self, strip: Strip, s: Tensor, w: Tensor, mass: Tensor, index: Tensor) -> None:
        if self.top_keys is None or self.top_weights is None or self.rest is None:
            return
        at = (strip.batch, strip.heads, strip.at)
        weights = w.gather(-1, index)
        may = s.gather(-1, index) > strips.NEVER
        k = slice(0, index.shape[-1])
        self.top_keys[(*at, k)] = torch.where(may, index + strip.keys.start, -1).to(torch.int32)
        self.top_weights[(*at, k)] = weights.float()
        self.rest[at] = (mass - weights.sum(-1)).clamp(min=0).float()

    def observation(self) -> Observation:
        """What was gathered, once every strip has been added."""
        watch = self.watch
        return Observation(
            logsumexp=self.logsumexp,
            max_weight=self.max_weight,
            top_keys=self.top_keys,
            top_weights=self.top_weights,
            rest=self.rest,
            entropy=self.entropy,
            sink_weight=self.sink_weight,
            mean_position=self.mean_position,
            mean_distance=self.mean_distance,
            received=None if self.received is None else self.received.float(),
            segment_mass=self.segment_mass,
            rows=None if watch.rows is None else self.rows,
            kept=kept(self.request) if watch.keep else None,
        )


def kept(request: Request) -> Request:
    """A copy of a call that stays what it was, whatever becomes of its tensors: a cache goes on changing, lengths are
    counted down in place, an optimiser moves a bias."""
    bias, start = request.bias, request.start
    if isinstance(bias, Tensor):
        bias = bias.detach().clone()
    elif bias is not None:
        bias = replace(bias, **{name: _copied(value) for name, value in vars(bias).items()})
    return replace(
        request,
        query=request.query.detach().clone(),
        key=request.key.detach().clone(),
        value=request.value.detach().clone(),
        mask=pytree.tree_map(_copied, request.mask),
        bias=bias,
        start=start.clone() if isinstance(start, Tensor) else start,
        sink_logits=None if request.sink_logits is None else request.sink_logits.detach().clone(),
    )


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
