"""Attention computed in the open: a product of queries and keys, a softmax, a product with values.

A dispatch mode follows what comes out of a product until it meets a softmax, and what comes out of a softmax until it
enters a product. On the way to the softmax only what `attend` can say is followed: a factor, something added, a mask,
a cap. The model keeps its own result; what was seen is computed beside it. It is also the second signal: a softmax
that enters a product and was not understood, or a fused operator, is reported as missed.

    n | leading dimensions (B·H, or B and H)    Lq, Lk | query rows, keys    D | head size
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from regard.relations.capture.modes import Net
from regard.relations.capture.modules import UnderWay
from regard.relations.capture.seeing import Call, Seer, sample_rows, seer_here

_aten = torch.ops.aten
_HIDES = -1e4  # a score that is set to this or less is hidden

# Composed of what is followed below; met whole where no gradient is recorded.
_COMPOSED = {_aten.matmul, _aten.softmax, _aten.dropout, _aten.einsum}
_PRODUCTS = {_aten.bmm, _aten.baddbmm, _aten.mm}
_SOFTMAX = {_aten._softmax, _aten._safe_softmax}
_SAME = {
    _aten.clone, _aten._to_copy, _aten.to, _aten.contiguous, _aten.alias, _aten.detach, _aten.type_as, _aten.nan_to_num,
    _aten.lift_fresh,
}  # fmt: skip
_RESHAPED = {
    _aten.view, _aten._unsafe_view, _aten.reshape, _aten.unsqueeze, _aten.squeeze, _aten.expand, _aten.permute,
    _aten.transpose, _aten.t,
}  # fmt: skip
_EXPONENTIAL = {_aten.exp, _aten.exp_}
# What may happen to weights: dropout, which is a product with zeros and ones, or a head that is switched off.
_KEPT = _SAME | {
    _aten.native_dropout, _aten.mul, _aten.mul_, _aten.div, _aten.div_, _aten.masked_fill, _aten.masked_fill_,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Scores:
    """What a product has become on its way to a softmax: cap · tanh(scale · q·k / cap) + added, or without a cap."""

    query: Tensor  # (n, Lq, D)
    key: Tensor  # (n, D, Lk)
    shape: torch.Size  # of the scores now
    scale: float = 1.0
    cap: float | None = None
    added: tuple[Tensor, ...] = ()  # each broadcasts to `shape`
    order: tuple[int, ...] = ()  # in which dimensions larger than 1 stand, where that is not how they came
    problem: str | None = None


@dataclass(eq=False)
class _Weights:
    """What comes out of a softmax."""

    shape: torch.Size
    scores: _Scores | None
    problem: str | None
    rows: Tensor = field(default_factory=lambda: torch.empty(0))  # of which `sample` has the weights
    sample: Tensor = field(default_factory=lambda: torch.empty(0))  # (n, r, Lk)
    order: tuple[int, ...] = ()  # as of scores
    used: bool = False


class OpenNet(TorchDispatchMode, Net):
    """Follows products and softmaxes in the thread that it is active in."""

    supports_higher_order_operators = True

    def __init__(self, seer: Seer) -> None:
        super().__init__()
        self._seer = seer
        self._scores: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._weights: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._fixed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if seer_here() is not self._seer:
            return func(*args, **kwargs)
        packet = getattr(func, "overloadpacket", func)
        if packet in _COMPOSED:
            with self:
                return func.decompose(*args, **kwargs)
        name = func.name()
        if "attention" in name or "flash_attn" in name or "transformer_encoder_layer_fwd" in name:
            self._seer.miss(f"the fused operator {name} computes it whole")
        result = func(*args, **kwargs)
        self._follow(packet, args, kwargs, result)
        return result

    def _follow(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        out = result[0] if isinstance(result, tuple) and result else result
        if not isinstance(out, Tensor):
            return
        tensors = [a for a in args if isinstance(a, Tensor)]
        if (packet in _SAME or packet in _RESHAPED) and self._is_fixed(tensors[0]):
            self._fixed[out] = True
            return
        weighed = next((t for t in tensors if self._weights.get(t) is not None), None)
        if weighed is not None:
            self._follow_weights(packet, args, weighed, len(tensors) == 1, out)
        elif packet in _PRODUCTS:
            if not any(map(self._is_fixed, args[-2:])):
                self._scores[out] = _product(packet, args, kwargs, out)
        elif packet in _SOFTMAX:
            self._weights[out] = _softmax(self._scores.get(args[0]), args[0], args[1], out)
        else:
            scores = next((s for s in map(self._scores.get, tensors) if s is not None), None)
            if scores is not None and packet in _EXPONENTIAL:
                self._weights[out] = _Weights(out.shape, None, f"its softmax is put together from {packet}")
            elif scores is not None:
                self._scores[out] = _changed(scores, packet, args, kwargs, out, self._scores.get(args[0]) is None)

    def _follow_weights(self, packet: Any, args: tuple[Any, ...], weighed: Tensor, alone: bool, out: Tensor) -> None:
        """What becomes of `weighed`, which came out of a softmax; `alone`: the operation has no other tensor."""
        weights: _Weights = self._weights[weighed]
        if packet in _PRODUCTS:
            left, right = args[-2:]
            if self._is_fixed(right):
                return  # a layer of the model, not values that are weighed
            if right is weighed:
                weights.problem = "its weights are the right-hand factor of a product"
            if not weights.used:
                weights.used = True
                self._see(weights, left, right, out)
            return
        order: tuple[int, ...] | None = weights.order
        if packet in _RESHAPED:
            order = _reordered(packet, args, out, weights.order)
        elif packet not in _KEPT or out.shape != weighed.shape:
            order = None
        if order is not None:
            self._weights[out] = weights if order == weights.order else replace(weights, order=order)
        elif alone and out.dim() > 1 and out.is_floating_point() and out.shape[-1] > 1:
            problem = weights.problem or f"its weights go through {packet}"
            self._weights[out] = replace(weights, problem=problem)

    def _is_fixed(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter of the model, or one in another shape or dtype."""
        if self._fixed.get(tensor) is not None:
            return True
        return tensor.untyped_storage().data_ptr() in self._seer.parameters

    def _see(self, weights: _Weights, left: Tensor, value: Tensor, output: Tensor) -> None:
        """Observes softmax(scores) · value, where `left` are the weights, or says why it cannot."""
        scores, seer = weights.scores, self._seer
        if scores is None or weights.problem is not None:
            seer.miss(weights.problem or "")
            return
        lead = _batch_and_heads(scores.shape, seer.place)
        if (
            lead is None
            or weights.order
            or left.shape[-2:] != weights.shape[-2:]
            or value.shape[:-2].numel() != lead[0] * lead[1]
        ):
            seer.miss(f"its scores have shape {tuple(scores.shape)} and its values {tuple(value.shape)}")
            return
        q, k, v = (t.reshape(*lead, *t.shape[-2:]) for t in (scores.query, scores.key.mT, value))
        added = [_leading(term, scores.shape, lead) for term in scores.added]
        mask = sum(added[1:], added[0]) if added else None
        request = seer.request(q, k, v, mask, scale=scores.scale, softcap=scores.cap)

        def sampled(_: Tensor) -> tuple[Tensor, Tensor]:
            sample = weights.sample.reshape(*lead, *weights.sample.shape[-2:])
            return sample.to(v.dtype) @ v, weights.rows

        whole, settled = output.reshape(*lead, *output.shape[-2:]), None
        if torch.is_grad_enabled() and any(t.requires_grad for t in (left, value)):
            settled = "it computes softmax in the open, where gradients would not follow; torch.no_grad() allows it"
        found = seer.see(Call(request, lambda: whole, sampled, beside=True, settled=settled))
        if found is not whole and settled is None:
            output.copy_(found.reshape(output.shape))


def _product(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> _Scores:
    left, right = args[-2:]
    scores = _Scores(left, right, out.shape)
    if packet is not _aten.baddbmm:
        return scores
    beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
    added = () if beta == 0 else ((args[0] if beta == 1 else args[0] * beta),)
    return replace(scores, scale=float(alpha), added=added)


def _softmax(scores: _Scores | None, given: Tensor, dim: int, out: Tensor) -> _Weights:
    if scores is None:
        return _Weights(out.shape, None, "what enters its softmax is no product of queries and keys")
    matrix = (scores.query.shape[-2], scores.key.shape[-1])
    last = dim % given.dim() == given.dim() - 1
    if scores.problem is not None or scores.order or not last or given.shape[-2:] != matrix:
        problem = scores.problem or f"its softmax is over dimension {dim} of {tuple(given.shape)}"
        return _Weights(out.shape, None, problem)
    rows = sample_rows(out.shape[-2], out.device)
    return _Weights(out.shape, scores, None, rows, out.index_select(-2, rows))


def _changed(
    scores: _Scores, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor, second: bool
) -> _Scores | None:
    """The scores after one more operation; `second`: they are its second argument."""
    change = _CHANGES.get(packet)
    found = None
    if packet in _SAME and out.shape == scores.shape:
        return scores
    if packet in _RESHAPED:
        order = _reordered(packet, args, out, scores.order)
        if order is not None and not scores.added:
            return replace(scores, shape=out.shape, order=order)
        if order == () and out.shape[-2:] == scores.shape[-2:]:
            added = tuple(_leading(term, scores.shape, out.shape[:-2]) for term in scores.added)
            return replace(scores, shape=out.shape, added=added)
    elif change is not None and out.shape == scores.shape and not scores.order:
        found = change(scores, args, kwargs, second)
    if found is None and out.numel() == scores.shape.numel():
        found = replace(scores, shape=out.shape, problem=scores.problem or f"its scores go through {packet}")
    return found


def _reordered(packet: Any, args: tuple[Any, ...], out: Tensor, order: tuple[int, ...]) -> tuple[int, ...] | None:
    """In which order the dimensions larger than 1 stand after a change of shape, () for that in which they came; None
    where numbers were repeated, or dimensions joined in another order."""
    given: Tensor = args[0]
    if out.numel() != given.numel():
        return None
    large = [d for d in range(given.dim()) if given.shape[d] != 1]
    if packet not in (_aten.permute, _aten.transpose, _aten.t):
        unjoined = [n for n in out.shape if n != 1] == [given.shape[d] for d in large]
        return order if unjoined or not order else None
    dims = [*range(given.dim())]
    if packet is _aten.t:
        dims.reverse()
    elif packet is _aten.permute:
        dims = [d % given.dim() for d in args[1]]
    else:
        dims[args[1]], dims[args[2]] = dims[args[2]], dims[args[1]]
    before = order or tuple(range(len(large)))
    after = tuple(before[large.index(d)] for d in dims if d in large)
    return () if list(after) == sorted(after) else after


def _leading(term: Tensor, shape: torch.Size, lead: tuple[int, ...]) -> Tensor:
    """A term that broadcasts to `shape` (…, Lq, Lk), for other leading dimensions of as many entries."""
    term = term.reshape((1,) * (len(shape) - term.dim()) + tuple(term.shape))
    if term.shape[:-2].numel() == 1:
        return term.reshape((1,) * len(lead) + tuple(term.shape[-2:]))
    if tuple(shape[:-2]) == tuple(lead):
        return term
    return term.expand(*shape[:-2], -1, -1).reshape(*lead, *term.shape[-2:])


def _number(value: Any) -> float | None:
    """A number, also one in a tensor."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value)


def _multiplied(scores: _Scores, args: tuple[Any, ...], kwargs: dict[str, Any], second: bool) -> _Scores | None:
    return _times(scores, args[0] if second else args[1])


def _divided(scores: _Scores, args: tuple[Any, ...], kwargs: dict[str, Any], second: bool) -> _Scores | None:
    return None if second or kwargs.get("rounding_mode") else _times(scores, 1 / args[1])


def _times(scores: _Scores, factor: Any) -> _Scores | None:
    number, added = _number(factor), tuple(term * factor for term in scores.added)
    if number is None:  # of a head or a row: the query takes it
        if scores.query.shape[:-2].numel() != scores.shape[:-2].numel():
            return None
        factor = _leading(factor, scores.shape, scores.query.shape[:-2])
        if factor.shape[-1] != 1 or scores.cap is not None:
            return None
        return replace(scores, query=scores.query * factor, added=added)
    if scores.cap is None:
        return replace(scores, scale=scores.scale * number, added=added)
    # cap · tanh(scale · x / cap): the cap grows, what is inside stays
    return replace(scores, cap=scores.cap * number, scale=scores.scale * number, added=added) if number > 0 else None


def _capped(scores: _Scores, args: tuple[Any, ...], kwargs: dict[str, Any], second: bool) -> _Scores | None:
    return replace(scores, cap=1.0) if scores.cap is None and not scores.added else None


def _plus(scores: _Scores, args: tuple[Any, ...], kwargs: dict[str, Any], second: bool) -> _Scores | None:
    other, alpha = args[0] if second else args[1], kwargs.get("alpha", 1)
    if not isinstance(other, Tensor):
        return scores  # the same for every key
    if second and alpha != 1:
        return None
    return replace(scores, added=(*scores.added, other if alpha == 1 else other * alpha))


def _minus(scores: _Scores, args: tuple[Any, ...], kwargs: dict[str, Any], second: bool) -> _Scores | None:
    other = args[1]
    if second or kwargs.get("alpha", 1) != 1:
        return None
    if isinstance(other, Tensor) and other.shape[-1:] != (1,):
        return replace(scores, added=(*scores.added, -other))
    return scores  # the same for every key, such as the largest of them


def _filled(scores: _Scores, args: tuple[Any, ...], kwargs: dict[str, Any], second: bool) -> _Scores | None:
    return None if second else _hidden(scores, args[1], _number(args[2]))


def _chosen(scores: _Scores, args: tuple[Any, ...], kwargs: dict[str, Any], second: bool) -> _Scores | None:
    """`where(condition, scores, low)`, or the other way round."""
    condition, one, other = args
    if isinstance(one, Tensor) and one.shape == scores.shape:
        return _hidden(scores, ~condition, float(torch.as_tensor(other).max()))
    return _hidden(scores, condition, float(torch.as_tensor(one).max()))


def _hidden(scores: _Scores, hide: Tensor, value: float | None) -> _Scores | None:
    if value is None or value > _HIDES:
        return None
    dtype = scores.query.dtype
    low = value if value == -torch.inf else torch.finfo(dtype).min
    term = torch.zeros(hide.shape, dtype=dtype, device=hide.device).masked_fill(hide.bool(), low)
    return replace(scores, added=(*scores.added, term))


_Change = Callable[[_Scores, tuple[Any, ...], dict[str, Any], bool], _Scores | None]

# What else may happen to scores before the softmax.
_CHANGES: dict[Any, _Change] = {
    _aten.mul: _multiplied,
    _aten.mul_: _multiplied,
    _aten.div: _divided,
    _aten.div_: _divided,
    _aten.tanh: _capped,
    _aten.tanh_: _capped,
    _aten.add: _plus,
    _aten.add_: _plus,
    _aten.sub: _minus,
    _aten.sub_: _minus,
    _aten.masked_fill: _filled,
    _aten.masked_fill_: _filled,
    _aten.where: _chosen,
}


def _batch_and_heads(shape: torch.Size, place: UnderWay) -> tuple[int, int] | None:
    """(B, H) of scores (…, Lq, Lk). Where both are one dimension, the module says how many heads it has, or its first
    argument how many entries a batch."""
    if len(shape) == 2:
        return 1, 1
    if len(shape) > 3:
        return shape[:-3].numel(), shape[-3]
    for name in ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads"):
        heads = getattr(place.module, name, None)
        if isinstance(heads, int) and heads > 0 and shape[0] % heads == 0:
            return shape[0] // heads, heads
    first = next((t for t in (*place.args, *place.kwargs.values()) if isinstance(t, Tensor)), None)
    if first is not None and first.dim() == 3 and first.shape[1] == shape[1] and shape[0] % first.shape[0] == 0:
        return first.shape[0], shape[0] // first.shape[0]
    return None
