"""See every attention call of a model without touching its code.

Calls are found by nets, each for one way in which models compute attention, and handed to one `Seer`:

    this library's `attend`                          nets.py, and how all are cast
    transformers' attention interface                interface.py
    F.scaled_dot_product_attention, nn.Transformer   function_mode.py
    a softmax in the open                            open_softmax.py
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from regard.attention import Watch
from regard.relations.capture.fused_paths import uncompiled
from regard.relations.capture.nets import NETS, cast
from regard.relations.capture.seeing import Choice, Seer
from regard.relations.relations import Relations
from regard.relations.sites import Sequence


@contextmanager
def observe(
    model: nn.Module,
    *,
    watch: Watch | None = None,
    layers: Collection[int] | None = None,
    heads: Collection[int] | Mapping[int, Collection[int]] | None = None,
    elements: Mapping[str, Sequence] | list[Mapping[str, Sequence]] | None = None,
    memory: str = "encoder",
    about: dict[str, Any] | None = None,
    this_thread: bool = False,
    to: str | os.PathLike[str] | None = None,
) -> Generator[Relations]:
    """While active, every attention call of `model` is observed; its outputs stay what they are, to rounding.

    The observation belongs to the model: other models, and the same code elsewhere, see nothing of it. Attention that
    went by and could not be observed is listed in `relations.missed`, with the reason, and warned of once.

    A forward pass is a step of each site; so is each token that `model.generate` writes. In training, weights are
    those before dropout. A compiled model runs uncompiled meanwhile. Every site is compared, on some rows of its first
    call, with the function of the model that would have computed it.

    Args:
        model: any module that computes attention: this library's, one of `transformers`, `nn.Transformer`, your own.
        watch: what to keep; `Watch()` unless given. Its segments are of the first keys, or else those of `elements`.
        layers: numbers of the layers to observe, the first number in a module's path; None is all.
        heads: numbers of the heads to observe, for every layer or by layer; None is all.
        elements: sequences by the beginning of the module paths that run over them ("" for every path), or a list
            of such mappings, one a batch entry.
        memory: the prefix whose sequence cross-attention reads.
        about: what is known of the model, handed on to views.
        this_thread: observe only what this thread computes, where others use the same model meanwhile.
        to: a Parquet file that edges and statistics go to as each call ends, so that memory does not grow with depth
            (see `regard.relations.parquet`); `Relations.load` reads it. After an exception there is none.

    Yields:
        Relations, filled while the model runs.

    Raises:
        ValueError: watch names rows, a layer has no such head, model is scripted, or `to` does not end in .parquet.
        ModuleNotFoundError, OSError: `to` needs pyarrow (`pip install regard[frames]`), or cannot be written.
        RuntimeError: a call is not what it was read as: the model's own function gives something else.

    Example:
        >>> import torch, regard
        >>> layer = torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True)
        >>> with regard.observe(layer) as relations:
        ...     _ = layer(torch.randn(1, 5, 16))
        >>> relations.weights("self_attn", rows=range(2)).shape
        torch.Size([2, 2, 5])
    """
    if watch is not None and watch.rows is not None:
        raise ValueError("watch names rows; a whole model is watched in all rows (relations.weights takes rows)")
    watch = watch or Watch()
    items = [*elements] if isinstance(elements, list) else [elements or {}]
    relations = Relations([{s.name: s for s in item.values()} for item in items], about or {})
    choice = Choice(None if layers is None else frozenset(layers), heads)
    seer = Seer(model, relations, watch if to is None else replace(watch, keep=False), choice, items[0], memory, NETS)
    with relations.written(to), cast(seer, model, threading.get_ident() if this_thread else None):
        yield relations
    _report(seer, model)


def _report(seer: Seer, model: nn.Module) -> None:
    """Warns, once, of attention that was not observed."""
    relations = seer.relations
    if relations.missed:
        reasons = "; ".join(f"{path or type(model).__name__}: {reason}" for path, reason in relations.missed.items())
        warnings.warn(f"attention was not observed at {len(relations.missed)} sites: {reasons}", stacklevel=4)
    elif seer.ran and not seer.overtaken and not relations.sites and seer.choice.everything:
        warnings.warn(f"no attention was observed: {type(uncompiled(model)).__name__} computed none", stacklevel=4)
