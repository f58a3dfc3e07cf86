"""The questions of an Observation, asked of the native kernel: P v, rᵀ P and rᵀ (G ⊙ P)₊ (B, Hq, Lq and Lk as there).

P v is attention with v as values. The other two read the logsumexp that the observed call left and compute its weights
again, a tile at a time, in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.attention.native import operator
from regard.attention.native.lowering import lowered
from regard.attention.native.refusal import refuses
from regard.attention.request import Request, transformed


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers for one call that the kernel has served."""

    request: Request  # what was kept of it
    logsumexp: Tensor  # (B, Hq, Lq) float32, of every row

    def refuses(self, request: Request, *given: Tensor) -> str | None:
        """Why the kernel cannot answer a question about `request` that comes with the tensors `given`."""
        if request is not self.request:
            return "what was kept has been changed since the call"
        if torch.compiler.is_compiling():
            return "the question is being compiled"
        if transformed(*given):
            return "a tensor is no plain one: a transformation such as vmap or forward differentiation is on"
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            return "a tensor needs a gradient; the native kernel gives none to what is asked with"
        if any(tensor.device.type != "cpu" for tensor in given):
            return "a tensor is not on the CPU"
        if any(tensor.numel() == 0 for tensor in given):
            return "there is nothing to do"
        return refuses(request)

    def pull(self, v: Tensor) -> Tensor:
        """P v, (B, Hq, Lq, d) of v (B|1, Hq|1, Lk, d) in float32."""
        request = self.request
        B, Hq, Hkv, d = request.B, request.Hq, request.Hkv, v.shape[3]
        key = request.key.float()
        if v.shape[1] == 1:
            value = v.expand(B, Hkv, -1, d)
        else:
            key = key.repeat_interleave(Hq // Hkv, 1) if Hq != Hkv else key  # every query head has values of its own
            value = v.expand(B, -1, -1, -1)
        with torch.no_grad():
            return operator.output_of(lowered(replace(request, query=request.query.float(), key=key, value=value)))

    def push(self, r: Tensor, grad_output: Tensor | None = None) -> Tensor:
        """rᵀ P, (B, Hq, Lk, d) of r (B|1, Hq|1, Lq, d) in float32; with grad_output (B, Hq, Lq, Dv), rᵀ (G ⊙ P)₊."""
        B, Hq = self.request.B, self.request.Hq
        rows = r.expand(B, Hq, -1, -1)
        return operator.push(lowered(self.request), self.logsumexp, rows, grad_output)
