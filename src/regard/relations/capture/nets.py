"""The nets in which calls of attention are caught, and how they are cast over a model for a while."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from regard.attention.dispatch import choose, observing
from regard.attention.request import Request
from regard.relations.capture.function_mode import SdpaNet
from regard.relations.capture.fused_paths import in_the_open, uncompiled
from regard.relations.capture.interface import looked_up
from regard.relations.capture.open_softmax import OpenNet
from regard.relations.capture.seeing import Call, Seer, ours


@contextmanager
def own_calls(seer: Seer) -> Generator[None]:
    """Catches the calls of this library's `attend` in this thread."""

    def observer(request: Request, backend: str) -> Tensor:
        def original() -> Tensor:
            with ours():  # what a backend calls in turn is no attention of its own
                return choose(request, backend).attend(request)

        return seer.see(Call(request, original, backend=backend))

    undo: Callable[[], None] = observing(observer)
    try:
        yield
    finally:
        undo()


NETS = (own_calls, SdpaNet, OpenNet)
"""What finds calls in a thread; `looked_up` is the one that belongs to the process."""


@contextmanager
def cast(seer: Seer, model: nn.Module, only: int | None = None) -> Generator[None]:
    """Hands every call of attention that `model` makes meanwhile to `seer`, in each thread or `only` in one.

    Raises:
        ValueError: `model` is scripted.
    """
    with ExitStack() as stack:
        stack.enter_context(in_the_open(model))
        stack.enter_context(looked_up())
        stack.callback(seer.stack.unhook)
        seer.stack.hook(uncompiled(model), only)
        yield
