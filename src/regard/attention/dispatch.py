"""The one door to every backend: `attend` computes attention, `attend_observed` also says what was seen.

A backend is an entry of `BACKENDS`. `auto` takes the first that does not refuse a call and prefers it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from regard.attention import fused, reference
from regard.attention.mask import Mask
from regard.attention.native import backend as native
from regard.attention.observation import Observation, Watch
from regard.attention.request import Bias, Request, checked


@dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    Args:
        attend: from a checked call to its output.
        attend_observed: the same, with what was seen.
        refuses: why a call cannot be served, beginning with the argument's name, or None.
        prefers: whether `auto` should use it for a call that it does not refuse, which may be an observed one.
    """

    attend: Callable[[Request], Tensor]
    attend_observed: Callable[[Request, Watch], tuple[Tensor, Observation]]
    refuses: Callable[[Request], str | None]
    prefers: Callable[[Request, bool], bool]


def _reference_refuses(request: Request) -> str | None:
    return f"dropout is {request.dropout}; the definition has none" if request.dropout else None


BACKENDS: dict[str, Backend] = {
    "native": Backend(native.attend, native.attend_observed, native.refuses, native.prefers),
    "fused": Backend(fused.attend, fused.attend_observed, lambda _: None, lambda *_: True),
    "reference": Backend(reference.attend, reference.attend_observed, _reference_refuses, lambda *_: False),
}
"""Every backend, in the order in which `auto` asks them."""

Observer = Callable[[Request, str], Tensor]
_ever_observed = False  # torch.compile cannot trace a context variable; before the first observer it need not
_observer: ContextVar[Observer | None] = ContextVar("regard_observer", default=None)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    bias: Bias | None = None,
    start: int | Tensor = 0,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attention: each query's mean of the values, weighted by how well their keys fit (arXiv 1706.03762).

    Args:
        query: (B, Hq, Lq, D).
        key: (B, Hkv, Lk, D); Hq is a multiple of Hkv (grouped queries, arXiv 2305.13245).
        value: (B, Hkv, Lk, Dv).
        mask: which keys a query may see; None is all. A row that may see none has output 0.
        bias: added to the scores, a tensor that broadcasts to (B, Hq, Lq, Lk), `ALiBi` or `RelativeBias`.
        start: the position of the first query row among the keys, an int or (B,).
        scale: multiplies q·k; 1/√D unless given.
        softcap: scores are softcap · tanh(score / softcap), before bias and mask.
        sink_logits: (Hq,), a learned logit a head, whose weight goes nowhere.
        dropout: probability with which a weight is dropped.
        backend: "auto", "native", "fused" or "reference".

    Returns:
        (B, Hq, Lq, Dv), in the dtype of the query.

    Raises:
        ValueError: shapes or values that do not fit, an unknown backend, or one that refuses the call.
        TypeError: dtypes or kinds of argument that do not fit.

    Example:
        >>> import torch
        >>> from regard import Causal, attend
        >>> x = torch.randn(1, 8, 100, 64)
        >>> attend(x, x, x, mask=Causal()).shape
        torch.Size([1, 8, 100, 64])
    """
    request = checked(query, key, value, mask, bias, start, scale, softcap, sink_logits, dropout)
    observer = _observer.get() if _ever_observed else None
    if observer is not None:
        return observer(request, backend)
    return choose(request, backend).attend(request)


def attend_observed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    watch: Watch,
    mask: Mask | None = None,
    bias: Bias | None = None,
    start: int | Tensor = 0,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Observation]:
    """`attend`, and exactly who attended to whom, in memory that grows with L and not with L².

    Args:
        query: (B, Hq, Lq, D).
        key: (B, Hkv, Lk, D).
        value: (B, Hkv, Lk, Dv).
        watch: what to keep.
        mask: as in `attend`, like all that follow.
        bias: added to the scores.
        start: the position of the first query row.
        scale: multiplies q·k.
        softcap: caps the scores.
        sink_logits: (Hq,).
        dropout: probability with which a weight is dropped; the weights observed are those before.
        backend: "auto", "native", "fused" or "reference".

    Returns:
        The output (B, Hq, Lq, Dv) and the Observation.

    Raises:
        ValueError: as `attend`; also a watch that does not fit the call, or no keys at all.
        TypeError: as `attend`.

    Example:
        >>> import torch
        >>> from regard import Causal, Watch, attend_observed
        >>> x = torch.randn(1, 8, 100, 64)
        >>> _, seen = attend_observed(x, x, x, mask=Causal(), watch=Watch(top=3))
        >>> seen.top_keys.shape, seen.received.shape
        (torch.Size([1, 8, 100, 3]), torch.Size([1, 8, 100]))
    """
    request = checked(query, key, value, mask, bias, start, scale, softcap, sink_logits, dropout)
    return observe_request(request, watch, backend)


def observe_request(request: Request, watch: Watch, backend: str = "auto") -> tuple[Tensor, Observation]:
    """`attend_observed` for a call that is checked already."""
    watch.check(request)
    return choose(request, backend, observed=True).attend_observed(request, watch)


def choose(request: Request, backend: str = "auto", observed: bool = False) -> Backend:
    """The backend that serves a call.

    Raises:
        ValueError: the name is unknown, or the backend refuses the call.
    """
    if backend == "auto":
        for candidate in BACKENDS.values():  # the rule first: it is the shorter question
            if candidate.prefers(request, observed) and candidate.refuses(request) is None:
                return candidate
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it may be one of auto, {', '.join(BACKENDS)}")
    reason = BACKENDS[backend].refuses(request)
    if reason is not None:
        raise ValueError(f"backend {backend!r} refuses this call: {reason}")
    return BACKENDS[backend]


def observing(observer: Observer | None) -> Callable[[], None]:
    """From here on, in this thread, every call of `attend` goes to `observer(request, backend)`.

    Returns:
        A function that restores what was before.
    """
    global _ever_observed
    _ever_observed = True
    before = _observer.set(observer)
    return lambda: _observer.reset(before)
