"""Switch heads off, and see the answer change."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regard.attention import Watch
from regard.relations.capture.modules import UnderWay
from regard.relations.capture.nets import NETS, cast
from regard.relations.capture.seeing import Call, Choice, Seer, ours, seers_here
from regard.relations.relations import Relations

Heads = Mapping[int | str, Collection[int]]


@contextmanager
def ablate(model: nn.Module, heads: Heads) -> Generator[None]:
    """While active, these heads of `model` contribute nothing: their output is 0 before the output projection.

    Zero, and not the mean of what a head gives elsewhere, needs no data. The bias of the projection stays, and the
    other heads are computed as ever (arXiv 1905.10650 does the same to ask which heads matter). Gradients follow: none
    reaches a head that is off. Nothing in the model is changed, and all is as before when the context ends, also after
    an exception.

    Calls are found as `observe` finds them: this library's attention, models of `transformers` under "sdpa" and
    "eager", and whatever calls `F.scaled_dot_product_attention`. Attention that computes softmax in the open (also
    `nn.MultiheadAttention` asked for weights) has no place to switch a head off. With `observe` around or within,
    relations are those of the model whose heads are off; a head that is off still has weights.

    Args:
        model: as for `observe`.
        heads: numbers of the query heads to switch off, by layer, the first number in a module's path (a decoder's
            layer 0 is both its self- and its cross-attention, and there may be an encoder's), or by the path of one
            module, as `relations.sites` name them.

    Raises:
        ValueError: a layer has no such head, or model is scripted.
        RuntimeError: attention at a chosen place is computed in the open, or, at the end, the model ran and a layer or
            path of `heads` was never met.

    Example:
        >>> import torch, regard
        >>> layer = torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True).eval()
        >>> x = torch.randn(1, 5, 16)
        >>> with regard.ablate(layer, {"self_attn": [1]}):
        ...     without = layer(x)
        >>> bool((without - layer(x)).abs().max() > 1e-4)
        True
    """
    ablater = _Ablater(model, heads)
    with cast(ablater, model):
        yield
    ablater.report()


class _Ablater(Seer):
    """Changes what calls give, and leaves it to an observer further out to keep what they saw."""

    def __init__(self, model: nn.Module, heads: Heads) -> None:
        super().__init__(model, Relations([]), Watch(top=0), Choice(None, None), {}, "", NETS)
        self._heads = {place: frozenset(numbers) for place, numbers in heads.items() if numbers}
        self._met: set[int | str] = set()
        self._meeting = threading.Lock()

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
        if call.settled:
            raise RuntimeError(f"heads of {place.path!r} cannot be switched off: it computes softmax in the open")
        if numbers[0] < 0 or numbers[-1] >= count:
            raise ValueError(f"heads is {numbers} for {place.path!r}; it has heads 0 … {count - 1}")
        with self._meeting:
            self._met |= {place.layer, place.path}
        return output.index_fill(1, torch.tensor(numbers, device=output.device), 0)

    def miss(self, reason: str, path: str | None = None) -> None:
        outer = self._outer()
        if outer is not None:
            outer.miss(reason, path)
        if self._chosen(self.place):
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
        if self.ran and unmet:
            raise RuntimeError(
                f"heads names {', '.join(map(repr, unmet))}, where no attention was met that could be switched off"
                + (f" ({reasons})" if reasons else "")
            )
        if reasons:
            warnings.warn(f"some attention of the layers chosen was not switched off: {reasons}", stacklevel=4)
