"""What would carry a model's attention past everything that could see it: compiled code, and PyTorch's fast path."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.backends import mha

_lock = threading.Lock()
_observers = 0
_fast = True  # what was set before the first of them
_stance: Any = None  # puts back how compiled code ran before


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given, or the model itself."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def in_the_open(model: nn.Module) -> Generator[None]:
    """Compiled code runs as it was written, and `nn.MultiheadAttention` and `nn.TransformerEncoder` step by step.

    Both switches belong to the whole process: other models compute the same meanwhile, without their short cuts.
    """
    if _is_compiled(model):
        warnings.warn(f"{type(uncompiled(model)).__name__} is compiled; it runs uncompiled meanwhile", stacklevel=4)
    global _observers, _fast, _stance
    with _lock:
        _observers += 1
        if _observers == 1:
            _fast = mha.get_fastpath_enabled()
            mha.set_fastpath_enabled(False)
        # Functions inside a model may be compiled unseen; but nothing is before torch._dynamo is loaded.
        if _stance is None and "torch._dynamo" in sys.modules:
            _stance = torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        with _lock:
            _observers -= 1
            if _observers == 0:
                mha.set_fastpath_enabled(_fast)
                if _stance is not None:
                    _stance.__exit__(None, None, None)
                    _stance = None


def _is_compiled(model: nn.Module) -> bool:
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in (model, *model.modules())
    )
