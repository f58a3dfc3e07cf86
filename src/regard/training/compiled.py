"""Compiled Transformer blocks: what lies around attention, fused by torch.compile, while gradients are computed.

Attention stays as it is, its kernels being fused already, and so does dropout, which draws its own random numbers. What
is compiled therefore depends on shapes alone, not on what a process did before: a run that is resumed repeats the bits
of one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from regard.training.dropout import ByteDropout
from regard.training.errors import TrainingError
from regard.transformer import Block, MultiHeadAttention


class CompiledBlocks:
    """The blocks of a model, compiled; each is when it is first passed.

    Args:
        model: left as it is outside of `used`.
        workers: processes that compute gradients.

    Raises:
        TrainingError: the model has no Transformer block, there are several workers, or no C++ compiler works here.
    """

    def __init__(self, model: nn.Module, workers: int = 1) -> None:
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        if not blocks:
            raise TrainingError("compile is true, but the model has no Transformer block, which is what is compiled")
        if workers > 1:
            raise TrainingError(f"compile is true with {workers} workers; compiled blocks may be used by 1 process")
        if (reason := _missing_compiler()) is not None:
            raise TrainingError(f"compile is true, but blocks cannot be compiled here: {reason}")
        kept = [module for module in model.modules() if isinstance(module, MultiHeadAttention | ByteDropout)]
        disable: Any = torch.compiler.disable
        self._forwards: list[tuple[nn.Module, Any]] = [(module, disable(module.forward)) for module in kept]
        # With sizes as symbols from the start: else the second batch of another size would be computed by other code
        # than the same batch after a resumption, where it may be the first.
        self._forwards += [(block, torch.compile(block.forward, dynamic=True)) for block in blocks]

    @contextmanager
    def used(self) -> Generator[None]:
        """Within it the blocks are the compiled ones."""
        for module, forward in self._forwards:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del module.forward  # the class's own again


def _missing_compiler() -> str | None:
    """Why torch.compile could not build anything here; None where it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler (GCC or Clang)"
    return None
