"""What every way of finding attention hands its calls to: observes them, checks them, and files what was seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention import Causal, Observation, Watch
from regard.attention.dispatch import observe_request
from regard.attention.mask import Mask
from regard.attention.request import Bias, Request, checked
from regard.relations.capture.masks import MaskReader, start_of
from regard.relations.capture.modes import nets_taken_off
from regard.relations.capture.modules import Kind, Stack, UnderWay
from regard.relations.narrow import narrowed_request
from regard.relations.relations import Relations
from regard.relations.sites import Sequence, Site, sequences_by_prefix

_SAMPLE = 8  # rows of a site that the model's own function computes, too


class _Thread(threading.local):
    """Whose forward passes are under way in a thread, innermost last, and whether our own computation is."""

    def __init__(self) -> None:
        self.seers: list[Seer] = []
        self.ours = 0


_thread = _Thread()


def seer_here() -> Seer | None:
    """The innermost observer whose model is under way in this thread; None also while we compute ourselves."""
    return _thread.seers[-1] if _thread.seers and not _thread.ours else None


def seers_here() -> list[Seer]:
    """All those whose models are under way in this thread, innermost last."""
    return _thread.seers


@contextmanager
def ours() -> Generator[None]:
    """What is computed meanwhile in this thread is not the model's: nobody looks for attention in it."""
    before = _thread.ours
    try:
        _thread.ours = before + 1
        with nets_taken_off():
            yield
    finally:
        _thread.ours = before


def transformed() -> str | None:
    """Why nothing can be observed here, where a transformation of functions is under way, such as vmap."""
    level = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore
    return None if level is None else f"it runs inside {level.key().name.lower()}"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of attention that a model is about to make.

    Args:
        request: what it computes.
        original: computes it as the model would have, (B, Hq, Lq, Dv).
        sampled: asked about some rows (r,), gives what the model's own function returns without dropout,
            (B, Hq, r, Dv), and for which rows: others where it cannot compute those alone. None: nothing to compare.
        beside: the output is that of `original` in any case, and what is seen is computed beside it.
        settled: why the model goes on with its own output, whatever is returned; None where it does not.
        backend: which backend of `attend` is asked for.
    """

    request: Request
    original: Callable[[], Tensor]
    sampled: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    beside: bool = False
    settled: str | None = None
    backend: str = "auto"


@dataclass(frozen=True)
class Choice:
    """Which layers and heads are observed.

    Args:
        layers: numbers of layers; None is all.
        heads: numbers of heads, for every layer or by layer; None is all.
    """

    layers: frozenset[int] | None
    heads: Mapping[int, Collection[int]] | Collection[int] | None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.layers is None and self.heads is None

    def takes(self, layer: int) -> bool:
        """Whether anything of a layer is observed."""
        by_layer = not isinstance(self.heads, Mapping) or layer in self.heads
        return by_layer and (self.layers is None or layer in self.layers)

    def heads_of(self, layer: int, count: int) -> list[int] | None:
        """The heads observed of `count`, None for all.

        Raises:
            ValueError: there is no such head.
        """
        heads = self.heads[layer] if isinstance(self.heads, Mapping) else self.heads
        if heads is None:
            return None
        numbers = sorted({*heads})
        if not numbers or numbers[0] < 0 or numbers[-1] >= count:
            raise ValueError(f"heads is {numbers} for layer {layer}; it has heads 0 … {count - 1}")
        return None if len(numbers) == count else numbers


class Seer:
    """Observes the calls of one model, for as long as one `observe` lasts.

    Args:
        model: the model.
        relations: where what is seen goes.
        watch: what is kept.
        choice: which layers and heads.
        elements: sequences by the beginning of module paths.
        memory: the prefix whose sequence cross-attention reads.
        nets: make what finds calls in a thread, and is active there while the model is under way.
    """

    def __init__(
        self,
        model: nn.Module,
        relations: Relations,
        watch: Watch,
        choice: Choice,
        elements: Mapping[str, Sequence],
        memory: str,
        nets: Iterable[Callable[[Seer], AbstractContextManager[object]]],
    ) -> None:
        self.relations, self.watch, self.choice = relations, watch, choice
        self.elements, self.memory = elements, memory
        self.masks = MaskReader()
        self.parameters = {p.untyped_storage().data_ptr() for p in model.parameters() if type(p) is nn.Parameter}
        self.ran = False
        self.overtaken = False  # another observer of the same model saw what it computed
        self._lock = threading.Lock()
        self._checked: set[tuple[object, ...]] = set()
        self._nets = [*nets]
        self._here = threading.local()
        self.stack = Stack(self._begin, self._end)

    @property
    def place(self) -> UnderWay:
        """The innermost module under way in this thread."""
        return self.stack.under_way[-1]

    def _begin(self) -> None:
        """From here on calls in this thread are this model's."""
        for outer in _thread.seers:
            outer.overtaken = True
        self._here.active = ExitStack()
        for net in self._nets:
            self._here.active.enter_context(net(self))
        _thread.seers.append(self)

    def _end(self, completed: bool) -> None:
        self.ran |= completed
        _thread.seers.remove(self)
        self._here.active.close()

    def miss(self, reason: str, path: str | None = None) -> None:
        """Notes that attention at `path`, here unless given, cannot be observed."""
        place = self.place
        if self.choice.takes(place.layer):
            with self._lock:
                self.relations.missed.setdefault(place.path if path is None else path, reason)

    def see(self, call: Call) -> Tensor:
        """What the model gets for a call, (B, Hq, Lq, Dv): its output, changed by whoever ablates the model."""
        for seer in seers_here():
            call = seer.prepare(call)
        output = self.output(call)
        for seer in seers_here():
            output = seer.change(call, output)
        return output

    def prepare(self, call: Call) -> Call:
        """The call that is computed and seen instead: who only observes changes nothing."""
        return call

    def change(self, call: Call, output: Tensor) -> Tensor:
        """What the model gets for an output, (B, Hq, Lq, Dv): who only observes changes nothing."""
        return output

    def output(self, call: Call) -> Tensor:
        """The output of a call, (B, Hq, Lq, Dv); what it saw is filed under the module that makes it."""
        place, request = self.place, call.request
        if not self.choice.takes(place.layer) or request.Lk == 0:
            return call.original()
        heads = self.choice.heads_of(place.layer, request.Hq)
        watch = replace(self.watch, segments=self._segments(place, request))
        if heads is None and not call.beside:
            with ours():
                output, seen = observe_request(request, watch, call.backend)
            self.check(place.path, call, request, heads, lambda: output)
        else:
            output = call.original()
            with torch.no_grad(), ours():
                request = narrowed_request(request, None, heads)
                found, seen = observe_request(request, watch, call.backend)
            self.check(place.path, call, request, heads, lambda: found)
        self.file(place, call.request, heads, seen)
        return output

    def file(self, place: UnderWay, request: Request, heads: list[int] | None, seen: Observation) -> None:
        """Adds what a call saw as the next step of its site, unless the call only repeats one for its gradient."""
        if torch._C._current_graph_task_id() != -1:  # pyright: ignore[reportPrivateUsage]  # within a backward pass
            return
        kind, query, key = self._sequences(place, request)
        count = request.Hq if heads is None else len(heads)
        site = Site(place.path, kind, place.layer, count, query, key, () if heads is None else tuple(heads))
        with self._lock:
            self.relations.add(site, seen)

    def _sequences(self, place: UnderWay, request: Request) -> tuple[Kind, str, str]:
        """The kind of a call, and the names of the sequences of its rows and keys."""
        kind = place.kind(request.Lq, request.Lk)
        return kind, *sequences_by_prefix(self.elements, place.path, kind, self.memory)

    def _segments(self, place: UnderWay, request: Request) -> Tensor | None:
        """The segments of a call's keys: those asked for, or else those of the sequence of its keys."""
        if self.watch.segments is not None:
            return _fitting(self.watch.segments, request.Lk)
        if not any(sequence.segments for item in self.relations.sequences for sequence in item.values()):
            return None
        name, known = self._sequences(place, request)[2], self.relations.sequences[: request.B]
        numbers = [item[name].segment_of if name in item else () for item in known]
        if not any(numbers):
            return None
        segments = torch.full((request.B, request.Lk), -1)
        for row, of_item in zip(segments, numbers, strict=False):
            row[: len(of_item)] = torch.tensor(of_item[: request.Lk], dtype=torch.int64)
        return segments

    def request(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        causal: bool = False,
        bias: Tensor | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sink_logits: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Request:
        """A call as other libraries make it: `mask` is boolean or added to the scores, `causal` counts from key 0."""
        query, key, value = _as_computed(query, key, value)
        Lq, Lk = query.shape[2], key.shape[2]
        found: Mask | None = None
        total: Bias | None = bias
        if causal:
            found = Causal()
        elif mask is not None:
            found, added = self.masks.read(mask, Lq, Lk)
            total = added if bias is None else bias if added is None else bias + added
        start = start_of(self.place.kind(Lq, Lk), Lq, Lk, found)
        return checked(
            query,
            key,
            value,
            mask=found,
            bias=total,
            start=start,
            scale=scale,
            softcap=softcap,
            sink_logits=sink_logits,
            dropout=dropout,
        )

    def check(
        self, path: str, call: Call, request: Request, heads: list[int] | None, computed: Callable[[], Tensor]
    ) -> None:
        """Compares rows with the model's own function, once a site and form of call.

        Args:
            path: of the site.
            call: as it was made.
            request: what was observed of it.
            heads: those observed, None for all.
            computed: their output, (B, H, Lq, Dv).

        Raises:
            RuntimeError: they differ by more than rounding.
        """
        form = (path, type(request.mask), request.bias is None, request.Lq == 1, request.dropout > 0)
        if form in self._checked or call.sampled is None or 0 in (*request.query.shape, request.value.shape[3]):
            return
        self._checked.add(form)
        with torch.no_grad(), ours():
            expected, rows = call.sampled(sample_rows(request.Lq, request.query.device))
            if request.dropout:
                output = observe_request(replace(request, dropout=0.0), Watch(keep=False))[0]
            else:
                output = computed()
            error, allowed = _difference(
                request, rows, output[:, :, rows], expected[:, slice(None) if heads is None else heads]
            )
        if not error <= allowed:
            raise RuntimeError(
                f"attention at {path!r} is not what it was read as: sampled rows differ by {error:.1e} from what the"
                f" model's own function gives, where rounding explains {allowed:.1e}"
            )


def sample_rows(Lq: int, device: torch.device) -> Tensor:
    """The rows that are compared, (r,): some of them, the last one always."""
    return torch.arange(Lq - 1, -1, -max(1, Lq // _SAMPLE), device=device).flip(0)


def _difference(request: Request, rows: Tensor, found: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest difference of two outputs, and what rounding of scores, weights and values explains."""
    undefined = expected.isnan().all(-1, keepdim=True)  # a row that may look at nothing, in some implementations
    difference = (found.float() - expected.float()).abs().masked_fill(undefined, 0)
    error = float(difference.nan_to_num(nan=torch.inf).max())
    # Outputs are means of values, so that this is always allowed, and no pass over all keys and values is needed.
    least = 1e-5 * float(expected.float().masked_fill(undefined, 0).abs().max())
    if error <= least:
        return error, least
    query, key = (t.float().norm(dim=-1).amax() for t in (request.query[:, :, rows], request.key))
    size = float(request.value.float().abs().max())
    rounding = max(torch.finfo(t.dtype).eps for t in (request.query, expected))
    scores = abs(request.scale) * float(query * key)
    return error, max(1e-5, 32 * rounding * max(1.0, scores)) * max(size, 1e-30)


def _as_computed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors of a call in one dtype: that of autocast where it is on, or else that of the first."""
    device, dtype = tensors[0].device.type, tensors[0].dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) for t in tensors)


def _fitting(segments: Tensor | None, Lk: int) -> Tensor | None:
    """Segments for Lk keys: keys beyond those that were named belong to none."""
    if segments is None or segments.shape[-1] == Lk:
        return segments
    return F.pad(segments, (0, max(0, Lk - segments.shape[-1])), value=-1)[..., :Lk]
