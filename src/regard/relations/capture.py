"""See every attention call of a model without touching its code."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regard.attention import Watch
from regard.attention.dispatch import Observer, observe_request, observing
from regard.attention.request import Request
from regard.relations.relations import Relations, Sequence, Site, sequences_by_prefix
from regard.transformer import MultiHeadAttention


@contextmanager
def observe(
    model: nn.Module,
    *,
    watch: Watch | None = None,
    elements: Mapping[str, Sequence] | list[Mapping[str, Sequence]] | None = None,
    memory: str = "encoder",
    about: dict[str, Any] | None = None,
    this_thread: bool = False,
) -> Generator[Relations]:
    """While active, every attention call of `model` is observed; its outputs stay what they are.

    The observation belongs to the model: other models, and the same code elsewhere, see nothing of it.

    Args:
        model: any module that holds `regard.transformer.MultiHeadAttention`.
        watch: what to keep; `Watch()` unless given.
        elements: sequences by the beginning of the module paths that run over them ("" for every path), or a list
            of such mappings, one a batch entry.
        memory: the prefix whose sequence cross-attention reads.
        about: what is known of the model, handed on to views.
        this_thread: observe only what this thread computes, where others use the same model meanwhile.

    Yields:
        Relations, filled while the model runs.

    Raises:
        ValueError: the model has no attention that could be observed, or watch names rows.

    Example:
        >>> import torch, regard
        >>> from regard.transformer import MultiHeadAttention
        >>> layer = MultiHeadAttention(16, heads=2)
        >>> with regard.observe(layer) as relations:
        ...     _ = layer(torch.randn(1, 5, 16))
        >>> relations.weights("", rows=range(2)).shape
        torch.Size([2, 2, 5])
    """
    if watch is not None and watch.rows is not None:
        raise ValueError("watch names rows; a whole model is watched in all rows (relations.weights takes rows)")
    layers = {path: m for path, m in model.named_modules() if isinstance(m, MultiHeadAttention)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no regard.transformer.MultiHeadAttention; nothing can be observed"
        )
    items = [*elements] if isinstance(elements, list) else [elements or {}]
    relations = Relations([{s.name: s for s in item.values()} for item in items], about or {})
    handles: list[RemovableHandle] = []
    try:
        for path, layer in layers.items():
            query, key = sequences_by_prefix(items[0], path, layer.kind, memory)
            site = Site(path, layer.kind, _layer(path), layer.heads, query, key)
            handles += _hook(
                layer, _observer(site, relations, watch or Watch()), threading.get_ident() if this_thread else None
            )
        yield relations
    finally:
        for handle in handles:
            handle.remove()


def _observer(site: Site, relations: Relations, watch: Watch) -> Observer:
    def observer(request: Request, backend: str) -> Tensor:
        output, observation = observe_request(request, watch, backend)
        relations.add(site, observation)
        return output

    return observer


def _hook(layer: nn.Module, observer: Observer, only: int | None) -> list[RemovableHandle]:
    """Makes `observer` the active one during each forward pass of a layer, in each thread or `only` in one."""
    restore: dict[int, Callable[[], None]] = {}

    def before(*_: object) -> None:
        if only in (None, threading.get_ident()):
            restore[threading.get_ident()] = observing(observer)

    def after(*_: object) -> None:
        undo = restore.pop(threading.get_ident(), None)
        if undo is not None:
            undo()

    # Where two observe one layer, what the last one set is undone first; the innermost sees the call.
    undoing = layer.register_forward_hook(after, always_call=True, prepend=True)
    return [layer.register_forward_pre_hook(before), undoing]


def _layer(path: str) -> int:
    """The first number in a module's path."""
    number = re.search(r"\d+", path)
    return int(number.group()) if number else 0
