"""Dropout drops weights, and what was seen are the weights before."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from regard import Watch
from tests.contract.backends import FIELDS, attend, attend_observed, small_strips
from tests.contract.cases import Call, assert_near, fixed


def showing_weights(rows: int = 60) -> Call:
    """A call whose output is its weights: the values are the identity."""
    call = fixed(2, 4, 2, rows, rows, 8, rule=("causal",), sink_logits=torch.randn(4))
    return Call(
        call.query,
        call.key,
        torch.eye(rows).expand(2, 2, rows, rows),
        call.rule,
        sink_logits=call.sink_logits,
    )


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("budget", [30_000, 2**26])
def test_a_weight_is_dropped_or_enlarged_so_that_its_expectation_stays(backend: str, p: float, budget: int) -> None:
    call = showing_weights()
    answer = call.answer()
    with small_strips(budget):
        dropped = attend(call, backend, dropout=p)
    weights = answer.weights[answer.allowed]
    kept = dropped[answer.allowed] != 0
    assert_near(dropped[answer.allowed][kept], weights[kept] / (1 - p), 1e-5, "weights that stayed")
    share = 1 - float(kept.double().mean())
    assert abs(share - p) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    assert bool((dropped[~answer.allowed] == 0).all())


def test_the_mean_of_many_calls_is_the_call_without_dropout(backend: str) -> None:
    call = fixed(1, 2, 1, 4, 6, 8)
    many = [attend(call, backend, dropout=0.3).double() for _ in range(600)]
    outputs = torch.stack(many)
    error = outputs.std(0) / len(many) ** 0.5
    assert bool(((outputs.mean(0) - call.answer().output).abs() <= 5 * error + 1e-6).all())


def test_no_dropout_is_the_call_without(backend: str) -> None:
    call = fixed(rule=("causal",))
    assert torch.equal(attend(call, backend, dropout=0.0), attend(call, backend))


def test_the_same_seed_drops_the_same_weights(backend: str) -> None:
    call = showing_weights()
    outputs = list[Tensor]()
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(attend(call, backend, dropout=0.4))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_the_weights_observed_are_those_before_dropout(backend: str) -> None:
    call = fixed(rows=20, keys=20, rule=("causal",))
    output, seen = attend_observed(call, backend, Watch(), dropout=0.5)
    assert not torch.allclose(output.double(), call.answer().output, atol=1e-3)
    _, whole = attend_observed(call, backend, Watch())
    for name in FIELDS:
        one, other = getattr(seen, name), getattr(whole, name)
        if one is not None:
            assert_near(one, other.double(), 1e-6, name)
    assert_near(seen.weights(), call.answer().weights, 1e-5, "weights")


@pytest.mark.parametrize("budget", [30_000, 2**26])
def test_the_gradient_belongs_to_the_weights_that_were_dropped(backend: str, budget: int) -> None:
    call = showing_weights(40)
    value = call.value.clone().requires_grad_()
    with small_strips(budget):
        dropped = attend(replace(call, value=value), backend, dropout=0.5)
    gradient = torch.randn_like(dropped)
    (found,) = torch.autograd.grad(dropped, value, gradient)
    # The output is P·I, so that what was dropped is known, and the gradient of the values is Pᵀ·gradient.
    expected = (dropped.detach().transpose(2, 3) @ gradient).unflatten(1, (2, 2)).sum(2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
