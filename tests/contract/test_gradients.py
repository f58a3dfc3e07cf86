"""Gradients reach everything that can have one, and are those of the formula, strip by strip or whole."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.attention.position import ALiBi, LogBuckets, RelativeBias
from tests.contract import oracle
from tests.contract.backends import attend, cotangent, leaf_names, small_strips, with_gradients
from tests.contract.cases import Call, assert_near, calls, fixed


def expected_gradients(call: Call) -> dict[str, Tensor]:
    """The oracle's, in float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in call.leaves()]
    output = call.with_leaves(leaves).answer().output
    found = torch.autograd.grad(output, leaves, cotangent(output), allow_unused=True)
    found = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
    return dict(zip(leaf_names(call), found, strict=True))


MASKS: dict[str, oracle.Rule | None] = {
    "none": None,
    "causal": ("causal",),
    "window and padding": (
        "and",
        ("window", 1, 1),
        ("padding", torch.tensor([4, 2]), torch.tensor([3, 1]), True),
    ),
    "dense": ("dense", torch.rand(2, 4, 3, 4) < 0.5),
    "prefix or causal": ("or", ("causal",), ("prefix", 2)),
    "documents": ("documents", torch.tensor([2, 2]), None),
}

BIASES: dict[str, Any] = {
    "none": None,
    "tensor": torch.randn(1, 4, 3, 4, dtype=torch.float64),
    "broadcast tensor": torch.randn(4, 1, 1, dtype=torch.float64),
    "alibi": ALiBi(torch.rand(4, dtype=torch.float64)),
    "relative": RelativeBias(torch.randn(8, 4, dtype=torch.float64), LogBuckets(8, 20)),
}


@pytest.mark.parametrize("softcap_and_sink", [False, True])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck_in_float64(backend: str, mask: str, bias: str, softcap_and_sink: bool) -> None:
    call = fixed(
        2,
        4,
        2,
        3,
        4,
        3,
        2,
        dtype=torch.float64,
        rule=MASKS[mask],
        bias=BIASES[bias],
        softcap=2.0 if softcap_and_sink else None,
        sink_logits=torch.randn(4, dtype=torch.float64) if softcap_and_sink else None,
        start=1,
    )
    leaves = tuple(leaf.clone().requires_grad_() for leaf in call.leaves())
    assert torch.autograd.gradcheck(
        lambda *given: attend(call.with_leaves(given), backend), leaves, fast_mode=True, atol=1e-6
    )


@settings(max_examples=30)
@given(call=calls(longest=20), budget=st.sampled_from([1, 8192, 2**26]))
def test_gradients_are_those_of_the_formula_however_small_the_strips(backend: str, call: Call, budget: int) -> None:
    expected = expected_gradients(call)
    with small_strips(budget):
        _, gradients = with_gradients(call, backend)
    for name, gradient in gradients.items():
        largest = max(1.0, float(expected[name].abs().max()))
        assert_near(gradient / largest, expected[name] / largest, 20 * call.tolerance(call.answer()), name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_half_precision_are_near_those_of_the_formula(backend: str, dtype: torch.dtype) -> None:
    call = fixed(rule=("causal",), bias=torch.randn(4, 9, 11).to(dtype), sink_logits=torch.randn(4), dtype=dtype)
    expected = expected_gradients(call)
    _, gradients = with_gradients(call, backend)
    for name, gradient in gradients.items():
        largest = max(1.0, float(expected[name].abs().max()))
        assert_near(gradient / largest, expected[name] / largest, 8 * torch.finfo(dtype).eps, name)


def test_backward_through_several_strips_equals_the_references_gradient(backend: str) -> None:
    call = fixed(
        2,
        4,
        2,
        150,
        170,
        8,
        rule=("and", ("causal",), ("padding", torch.tensor([170, 90]), torch.tensor([150, 33]), False)),
        bias=ALiBi(torch.rand(4)),
        sink_logits=torch.randn(4),
        softcap=4.0,
        start=20,
    )
    _, expected = with_gradients(call.to(torch.float64), "reference")
    with small_strips(100_000):
        _, gradients = with_gradients(call, backend)
    for name, gradient in gradients.items():
        largest = max(1.0, float(expected[name].abs().max()))
        assert_near(gradient / largest, expected[name] / largest, 2e-5, name)


@pytest.mark.parametrize("frozen", ["query", "key", "value", "bias", "sink_logits"])
def test_a_tensor_that_wants_no_gradient_does_not_keep_it_from_the_others(backend: str, frozen: str) -> None:
    call = fixed(rule=("causal",), bias=torch.randn(4, 9, 11), sink_logits=torch.randn(4))
    names = leaf_names(call)
    leaves = [leaf.clone().requires_grad_(name != frozen) for name, leaf in zip(names, call.leaves(), strict=True)]
    expected = expected_gradients(call)
    output = attend(call.with_leaves(leaves), backend)
    output.backward(cotangent(output).to(output.dtype))
    for name, leaf in zip(names, leaves, strict=True):
        if name == frozen:
            assert leaf.grad is None
        else:
            assert leaf.grad is not None
            assert_near(leaf.grad, expected[name], 1e-4, name)


def test_nothing_is_kept_for_a_gradient_that_nobody_wants(backend: str) -> None:
    call = fixed(rule=("causal",), bias=torch.randn(4, 9, 11).requires_grad_())
    with torch.no_grad():
        assert not attend(call, backend).requires_grad
    assert attend(call, backend).requires_grad
