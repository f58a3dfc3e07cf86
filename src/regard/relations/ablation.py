"""Switch heads off, or single edges, and see the answer change."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.attention import Watch
from regard.attention.dispatch import choose
from regard.relations.capture.modules import UnderWay
from regard.relations.capture.nets import NETS, cast
from regard.relations.capture.seeing import Call, Choice, Seer, ours, seers_here
from regard.relations.narrow import Cut, rows_of
from regard.relations.relations import Relations

Heads = Mapping[int | str, Collection[int]]
Edges = Collection[tuple[int | str, int, int, int]]


@contextmanager
def ablate(model: nn.Module, heads: Heads | None = None, *, edges: Edges = ()) -> Generator[None]:
    """While active, these heads of `model` contribute nothing, and these queries do not see these keys.

    The output of a head that is off is 0 before the output projection. Zero, and not the mean of what it gives
    elsewhere, needs no data. The bias of the projection stays, and the other heads are computed as ever (arXiv
    1905.10650 does the same to ask which heads matter). Gradients follow: none reaches a head that is off.

    An edge is cut by a further mask, before the softmax: the weight of its key goes to the other keys that the query
    may see, in proportion (arXiv 2304.14767 knocks attention out so); a query that sees no key any more gets 0.
    Rows without a cut edge are computed as ever.

    Nothing in the model is changed, and all is as before when the context ends, also after an exception. Calls are
    found as `observe` finds them; where softmax is computed in the open, only without gradients. Weights that the model
    itself returns are those of the whole model. With `observe` around or within, relations are those of the model that
    is ablated; a head that is off still has weights, and an edge that is cut has weight 0.

    Args:
        model: as for `observe`.
        heads: numbers of the query heads to switch off, by layer, the first number in a module's path (a decoder's
            layer 0 is both its self- and its cross-attention, and there may be an encoder's), or by the path of one
            module, as `relations.sites` name them.
        edges: (layer or path, head, query, key): the query at this position does not see this key, in all entries of
            a batch. Positions count from the first key, so that a token written with a cache has its own.

    Raises:
        ValueError: a layer has no such head, a position is negative, or model is scripted.
        RuntimeError: attention at a chosen place is computed in the open with gradients, or a call is not what it was
            read as; at the end, the model ran, and a place of `heads` or an edge was never met.

    Example:
        >>> import torch, regard
        >>> layer = torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True).eval()
        >>> x = torch.randn(1, 5, 16)
        >>> with regard.ablate(layer, {"self_attn": [1]}):
        ...     without = layer(x)
        >>> bool((without - layer(x)).abs().max() > 1e-4)
        True
        >>> with regard.ablate(layer, edges=[("self_attn", 0, 2, 4)]), regard.observe(layer) as relations:
        ...     _ = layer(x)
        >>> float(relations.weights("self_attn")[0, 2, 4])
        0.0
    """
    ablater = _Ablater(model, heads or {}, edges)
    with cast(ablater, model):
        yield
    ablater.report()


_Edge = tuple[int | str, int, int, int]


class _Ablater(Seer):
    """Changes what calls give, and leaves it to an observer further out to keep what they saw."""

    def __init__(self, model: nn.Module, heads: Heads, edges: Edges) -> None:
        super().__init__(model, Relations([]), Watch(top=0), Choice(None, None), {}, "", NETS)
        self._heads = {place: frozenset(numbers) for place, numbers in heads.items() if numbers}
        self._edges = [*edges]
        self._met: set[int | str | _Edge] = set()
        self._meeting = threading.Lock()
        for edge in self._edges:
            if min(edge[1:]) < 0:
                raise ValueError(f"edges has {edge}; head, query and key are numbers from 0 on")

    def prepare(self, call: Call) -> Call:
        """The call without the edges that are cut."""
        place, request = self.place, call.request
        edges = [edge for edge in self._edges if edge[0] in (place.layer, place.path)]
        if not edges:
            return call
        wrong = next((edge for edge in edges if edge[1] >= request.Hq), None)
        if wrong is not None:
            raise ValueError(f"edges has {wrong} for {place.path!r}; it has heads 0 … {request.Hq - 1}")
        rows = request.frame.positions(request.frame.rows(slice(None)))  # (B|1, Lq)
        there = [e for e in edges if e[3] < request.Lk and int(rows.min()) <= e[2] <= int(rows.max())]
        if not there:
            return call
        self._refuse(call, "edges")
        with self._meeting:
            self._met |= {*there}
        with torch.no_grad(), ours():
            self.check(place.path, call, request, None, lambda: choose(request).attend(request))
        cut = Cut(torch.tensor([edge[1:] for edge in there]), request.Hq)
        changed = replace(request, mask=cut if request.mask is None else request.mask & cut)
        among = (rows[..., None] == torch.tensor([edge[2] for edge in there], device=rows.device)).any(-1).any(0)
        chosen = among.nonzero()[:, 0]

        def original() -> Tensor:
            output = call.original()
            with ours():
                part = rows_of(changed, chosen)
                return output.index_copy(2, chosen, choose(part).attend(part).to(output.dtype))

        return replace(call, request=changed, original=original, sampled=None)

    def _refuse(self, call: Call, argument: str) -> None:
        if call.settled is not None:
            raise RuntimeError(f"{argument} of {self.place.path!r} cannot be switched off: {call.settled}")

    def output(self, call: Call) -> Tensor:
        outer = self._outer()
        if outer is not None:
            return outer.output(call)
        with ours():
            return call.original()

    def change(self, call: Call, output: Tensor) -> Tensor:
        place, count = self.place, call.request.Hq
        numbers = self._chosen(place)
        if not numbers:
            return output
        self._refuse(call, "heads")
        if numbers[0] < 0 or numbers[-1] >= count:
            raise ValueError(f"heads is {numbers} for {place.path!r}; it has heads 0 … {count - 1}")
        with self._meeting:
            self._met |= {place.layer, place.path}
        return output.index_fill(1, torch.tensor(numbers, device=output.device), 0)

    def miss(self, reason: str, path: str | None = None) -> None:
        outer = self._outer()
        if outer is not None:
            outer.miss(reason, path)
        if self._chosen(self.place) or any(edge[0] in (self.place.layer, self.place.path) for edge in self._edges):
            super().miss(reason, path)

    def _chosen(self, place: UnderWay) -> list[int]:
        """The heads that are off at a module."""
        return sorted({*self._heads.get(place.layer, ()), *self._heads.get(place.path, ())})

    def _outer(self) -> Seer | None:
        """Who else follows what is under way here, further out."""
        seers = seers_here()
        at = seers.index(self)
        return seers[at - 1] if at else None

    def report(self) -> None:
        """Raises where something was never met, and warns of attention that went by at a chosen place."""
        reasons = "; ".join(f"{path!r}: {reason}" for path, reason in self.relations.missed.items())
        unmet = [place for place in self._heads if place not in self._met]
        uncut = [edge for edge in self._edges if edge not in self._met]
        named = [f"heads names {', '.join(map(repr, unmet))}"] if unmet else []
        named += [f"edges names {', '.join(map(str, uncut))}"] if uncut else []
        if self.ran and named:
            raise RuntimeError(
                f"{' and '.join(named)}, where no attention was met that could be switched off"
                + (f" ({reasons})" if reasons else "")
            )
        if reasons:
            warnings.warn(f"some attention of the layers chosen was not switched off: {reasons}", stacklevel=4)
