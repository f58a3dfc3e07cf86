"""The sides of one call: this project, torch's SDPA, and softmax in the open with the same statistics."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_bench.shapes import Shape
from regard import Causal, Watch, attend, attend_observed
from regard.attention.dispatch import BACKENDS, choose
from regard.attention.request import checked

TOP = 8
WATCH = Watch(top=TOP, received=True, entropy=True, position=True, keep=False)
WATCH_KEEP = Watch(top=TOP, received=True, entropy=True, position=True, keep=True)


class Case:
    """The inputs of a shape (B, H, L, D), and what each side does with them.

    Args:
        shape: sizes and mask.
        backend: of this project.
        grad: whether gradients must reach query, key and value.
        apart: whether the rows of a head stand between those of the others, (B, L, H, D) in memory.
    """

    def __init__(self, shape: Shape, backend: str, *, grad: bool = False, apart: bool = False) -> None:
        torch.manual_seed(0)
        self.shape, self.backend = shape, backend

        def drawn(heads: int, rows: int) -> Tensor:
            if apart:
                return torch.randn(shape.B, rows, heads, shape.D).transpose(1, 2).requires_grad_(grad)
            return torch.randn(shape.B, heads, rows, shape.D, requires_grad=grad)

        self.query = drawn(shape.Hq, shape.Lq)
        self.key, self.value = drawn(shape.Hkv, shape.Lk), drawn(shape.Hkv, shape.Lk)
        self.mask = Causal() if shape.causal else None
        i, j = torch.arange(shape.start, shape.Lk)[:, None], torch.arange(shape.Lk)
        self.later = j > i  # (Lq, Lk)
        self.keys = j.float()  # (Lk,)
        self.distance = (j - i).abs().float()  # (Lq, Lk)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    def served_by(self) -> str:
        """The name of the backend that serves `plain`.

        Raises:
            ValueError: the backend refuses the call.
        """
        chosen = choose(checked(*self.inputs, mask=self.mask, start=self.shape.start), self.backend)
        return next(name for name, backend in BACKENDS.items() if backend is chosen)

    def plain(self) -> Tensor:
        """Attention, as a decoder with a cache calls it: the mask and where the rows stand."""
        return attend(*self.inputs, mask=self.mask, start=self.shape.start, backend=self.backend)

    def observed(self, watch: Watch = WATCH) -> Tensor:
        """The same with every statistic of `in_the_open`."""
        start = self.shape.start
        return attend_observed(*self.inputs, watch=watch, mask=self.mask, start=start, backend=self.backend)[0]

    def kept(self) -> Tensor:
        """`observed`, and copies of query, key and value, so that exact rows can be had later."""
        return self.observed(WATCH_KEEP)

    def sdpa(self) -> Tensor:
        """torch's fused attention as its users call it; a single row needs no mask."""
        causal, grouped = self.shape.causal and not self.shape.decode, self.shape.Hq != self.shape.Hkv
        return F.scaled_dot_product_attention(*self.inputs, is_causal=causal, enable_gqa=grouped)

    def in_the_open(self) -> tuple[Tensor, ...]:
        """What one writes by hand: the matrix of weights, then its statistics.

        Positions, distances and the mask are made beforehand. The heads of a group stand below each other in one
        product, so that no key is repeated; the largest weight is read off the top.
        """
        shape = self.shape
        rows = self.query.reshape(shape.B, shape.Hkv, -1, shape.D)  # (B, Hkv, G·Lq, D)
        s = (rows @ self.key.transpose(-1, -2)).mul_(1 / math.sqrt(shape.D))
        s = s.view(shape.B, shape.Hq, shape.Lq, shape.Lk)
        if shape.causal and not shape.decode:
            s.masked_fill_(self.later, -torch.inf)
        p = s.softmax(-1)
        output = (p.view(shape.B, shape.Hkv, -1, shape.Lk) @ self.value).view(self.query.shape)
        top = p.topk(TOP if shape.Lk >= TOP else shape.Lk, -1)
        return (
            output,
            top.values,
            top.indices,
            top.values[..., 0],  # the largest weight
            p.sum(-2),  # received
            torch.special.entr(p).sum(-1),
            p @ self.keys,  # mean position
            (p * self.distance).sum(-1),  # mean distance
            s.logsumexp(-1),
        )


def forward_sides(case: Case, *, observed: bool) -> dict[str, Callable[[], object]]:
    """The forward pass of each side; those that observe only where asked for."""
    sides: dict[str, Callable[[], object]] = {"sdpa": case.sdpa, "plain": case.plain}
    if observed:
        sides |= {"observed": case.observed, "kept": case.kept, "open": case.in_the_open}
    return sides


def backward_sides(case: Case) -> dict[str, Callable[[], object]]:
    """Gradients of query, key and value for the same gradient of the output.

    `backward` is the backward pass alone: the graph is recorded once, outside, and retained, so that a sample holds
    nothing of the forward pass. What a side saves in its forward pass to spare itself work in the backward pass would
    be free there; so `step` times the forward pass that records the graph together with its backward pass.
    """
    cotangent = torch.randn_like(case.query)

    def backward(output: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(output, case.inputs, cotangent, retain_graph=True)

    def step(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), case.inputs, cotangent)

    return {
        "sdpa_backward": backward(case.sdpa()),
        "backward": backward(case.plain()),
        "sdpa_step": step(case.sdpa),
        "step": step(case.plain),
    }


def errors(case: Case) -> dict[str, float]:
    """Largest absolute error of each side's output against the definition in float64, which goes head by head."""
    shape, group = case.shape, case.shape.Hq // case.shape.Hkv
    outputs = {"sdpa": case.sdpa(), "plain": case.plain(), "observed": case.observed()}
    worst = dict.fromkeys(outputs, 0.0)
    for b in range(shape.B):
        for h in range(shape.Hq):
            q = case.query[b : b + 1, h : h + 1].double()
            k, v = (t[b : b + 1, h // group : h // group + 1].double() for t in (case.key, case.value))
            exact = attend(q, k, v, mask=case.mask, start=shape.start, backend="reference")[0, 0]
            for name, output in outputs.items():
                error = float((output[b, h] - exact).abs().max())
                worst[name] = max(worst[name], math.inf if math.isnan(error) else error)
    return worst
