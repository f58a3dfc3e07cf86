"""Modes of torch that find calls of attention, and how they are taken off while we compute ourselves.

Torch has no public way to take a single mode off, so this file uses its private stacks, and no other file changes
them.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

from torch import overrides
from torch.utils import _python_dispatch


class Net:
    """A mode that finds calls of attention, and has nothing to do with what we compute ourselves."""


class _Stack(NamedTuple):
    """The modes of a kind that are active in this thread."""

    depth: Callable[[], int]
    at: Callable[[int], object]
    push: Callable[[Any], None]
    pop: Callable[[], object]


_STACKS = (
    _Stack(
        _python_dispatch._len_torch_dispatch_stack,
        _python_dispatch._get_dispatch_stack_at,
        _python_dispatch._push_mode,
        _python_dispatch._pop_mode,
    ),
    _Stack(
        overrides._len_torch_function_stack,
        overrides._get_function_stack_at,
        overrides._push_mode,
        overrides._pop_mode,
    ),
)


@contextmanager
def nets_taken_off() -> Generator[None]:
    """Without the nets on top of this thread's modes: an operator that passes a mode takes some 35 µs longer.

    Nets below somebody else's mode stay.
    """
    before = [(stack, [stack.at(i) for i in range(stack.depth())]) for stack in _STACKS]
    try:
        for stack, modes in before:
            for _ in takewhile(lambda mode: isinstance(mode, Net), reversed(modes)):
                stack.pop()
        yield
    finally:
        for stack, modes in before:
            for net in modes[stack.depth() :]:
                stack.push(net)
