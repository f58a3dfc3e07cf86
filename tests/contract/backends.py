"""The backends of the registry, and how the tests call them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor

import regard
from regard import Observation, Watch
from regard.attention import strips
from regard.attention.dispatch import BACKENDS
from regard.attention.request import checked
from tests.contract.cases import Call

NAMES = tuple(BACKENDS)

ROW_FIELDS = ("logsumexp", "max_weight", "rest", "entropy", "sink_weight", "mean_position", "mean_distance")
FIELDS = (*ROW_FIELDS, "top_keys", "top_weights", "received", "segment_mass")


def leave_out_if_refused(call: Call, backend: str, **options: Any) -> None:
    """Leaves a case out where a backend refuses it, which it must then do by name as well."""
    request = checked(*call.tensors, **call.options, **options)
    if backend == "auto" or BACKENDS[backend].refuses(request) is None:
        return
    with pytest.raises(ValueError, match=backend):
        regard.attend(*call.tensors, **call.options, **options, backend=backend)
    if hypothesis.currently_in_test_context():
        hypothesis.reject()
    pytest.skip(f"{backend} refuses this call")


def attend(call: Call, backend: str, **options: Any) -> Tensor:
    """The output of one call."""
    leave_out_if_refused(call, backend, **options)
    return regard.attend(*call.tensors, **call.options, **options, backend=backend)


def attend_observed(call: Call, backend: str, watch: Watch, **options: Any) -> tuple[Tensor, Observation]:
    """The output of one call and what was seen."""
    leave_out_if_refused(call, backend, **options)
    return regard.attend_observed(*call.tensors, **call.options, **options, watch=watch, backend=backend)


def leaf_names(call: Call) -> list[str]:
    """The names of `call.leaves()`."""
    names = ["query", "key", "value"]
    return names + ([] if call.bias is None else ["bias"]) + ([] if call.sink_logits is None else ["sink_logits"])


def cotangent(output: Tensor) -> Tensor:
    """A fixed gradient of the output, different everywhere."""
    return torch.linspace(-1, 1, output.numel(), dtype=torch.float64).sin().reshape(output.shape)


def with_gradients(call: Call, backend: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradient of every floating tensor of the call under `cotangent`."""
    order = leaf_names(call)
    leaves = [leaf.detach().requires_grad_() for leaf in call.leaves()]
    output = attend(call.with_leaves(leaves), backend)
    found = torch.autograd.grad(output, leaves, cotangent(output).to(output.dtype), allow_unused=True)
    gradients = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
    return output.detach(), dict(zip(order, gradients, strict=True))


@contextmanager
def small_strips(budget: int) -> Iterator[None]:
    """While active, strips hold at most `budget` bytes, so that small calls take many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "BUDGET", budget)
        patch.setattr(strips, "NARROW", budget // 8)
        patch.setattr(strips, "ROWS", 7)
        yield
