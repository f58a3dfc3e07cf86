"""Which module is under way: a stack a thread, kept by hooks on every module of a model."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.jit._trace import TopLevelTracedModule
from torch.utils.hooks import RemovableHandle

from regard.transformer import MultiHeadAttention

Kind = Literal["self", "cross"]

# How the libraries in use name the attention of a decoder to something else, and the argument that this comes in.
_CROSS_NAMES = re.compile(r"cross|^(encoder_attn|enc_dec_attn|encdecattention|multihead_attn|src_attn)$", re.IGNORECASE)
_CROSS_ARGUMENTS = ("key_value_states", "encoder_hidden_states", "cross_attention_states", "memory", "context", "xa")


@dataclass(frozen=True, eq=False)
class UnderWay:
    """A module whose forward pass is under way."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def layer(self) -> int:
        """The first number in the path, 0 without one."""
        number = re.search(r"\d+", self.path)
        return int(number.group()) if number else 0

    def kind(self, Lq: int, Lk: int) -> Kind:
        """Whether keys come from the sequence of the queries, "self", or from another one, "cross"."""
        module = self.module
        if isinstance(module, MultiHeadAttention):
            return module.kind
        if isinstance(module, nn.MultiheadAttention):
            query, key = (self.kwargs.get(name, self.args[i : i + 1]) for i, name in enumerate(("query", "key")))
            query, key = (t[0] if isinstance(t, tuple) else t for t in (query, key))
            return "self" if query is key else "cross"
        given = any(self.kwargs.get(name) is not None for name in _CROSS_ARGUMENTS)
        named = any(_CROSS_NAMES.search(part) for part in self.path.split(".")[-2:])
        if given or named or getattr(module, "is_cross_attention", False) is True:
            return "cross"
        sequences = [t for t in (*self.args, *self.kwargs.values()) if isinstance(t, Tensor) and t.dim() == 3]
        lengths = [t.shape[1] for t in sequences[:2]]
        return "cross" if Lq != Lk and lengths == [Lq, Lk] else "self"


_followed: list[nn.Module] = []
"""Models that some `Stack` has hooks on, as often as it is so."""


def followed(model: nn.Module) -> bool:
    """Whether somebody observes or ablates this model now, or a part of it, or one that it is part of."""
    return any(model in found.modules() or found in model.modules() for found in _followed)


class Stack:
    """The modules of one model under way, innermost last, each thread its own.

    Args:
        entered: called in a thread when the first module begins there.
        left: called in the same thread when it has ended, with whether it came to its end.
    """

    def __init__(self, entered: Callable[[], None], left: Callable[[bool], None]) -> None:
        self._entered, self._left = entered, left
        self._here = threading.local()
        self._handles: list[RemovableHandle] = []
        self._models: list[nn.Module] = []

    @property
    def under_way(self) -> list[UnderWay]:
        """Of this thread."""
        if not hasattr(self._here, "stack"):
            self._here.stack = []
        return self._here.stack

    def hook(self, model: nn.Module, only: int | None) -> None:
        """Follows every module of `model`, in each thread or `only` in one.

        Raises:
            ValueError: `model` is scripted; scripted parts of a model count as their parent.
        """
        if isinstance(model, ScriptModule):
            raise ValueError(f"model is a {type(model).__name__}; it must be the module that was scripted")
        self._models.append(model)
        _followed.append(model)
        for path, module in model.named_modules():
            if not isinstance(module, ScriptModule) or isinstance(module, TopLevelTracedModule):
                self._handles += self._hook(path, module, only)

    def _hook(self, path: str, module: nn.Module, only: int | None) -> list[RemovableHandle]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if only in (None, threading.get_ident()):
                if not self.under_way:
                    self._entered()
                self.under_way.append(UnderWay(path, module, args, kwargs))

        def after(module: nn.Module, args: object, output: object) -> None:
            stack = self.under_way
            if stack and stack[-1].module is module:  # not so where a hook before ours failed
                stack.pop()
                if not stack:
                    self._left(output is not None)

        # Where two observe one model, what the last one set is undone first; the innermost sees the call.
        undoing = module.register_forward_hook(after, always_call=True, prepend=True)
        return [module.register_forward_pre_hook(before, with_kwargs=True), undoing]

    def unhook(self) -> None:
        """Takes every hook away, and leaves what an interrupt has left under way in this thread."""
        for handle in self._handles:
            handle.remove()
        while self._models:
            _followed.remove(self._models.pop())
        if self.under_way:
            self.under_way.clear()
            self._left(False)
