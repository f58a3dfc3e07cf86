"""The same call gives the same bits, twice and in another thread, and the compiled call the same numbers."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import regard
from regard import Causal, Padding, Watch, Window
from regard.attention.position import ALiBi
from tests.contract.backends import FIELDS, attend, attend_observed, with_gradients
from tests.contract.cases import DTYPES, Call, assert_near, calls, fixed


@settings(max_examples=20)
@given(call=calls(dtypes=DTYPES))
def test_a_second_call_and_another_thread_give_the_same_bits(backend: str, call: Call) -> None:
    first = attend(call, backend)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(attend, call, backend).result()
    assert torch.equal(first, attend(call, backend))
    assert torch.equal(first, elsewhere)


@settings(max_examples=15)
@given(call=calls(longest=40))
def test_a_second_call_and_another_thread_observe_the_same_bits(backend: str, call: Call) -> None:
    watch = Watch(top=3, segments=torch.arange(call.key.shape[2]) % 4)
    _, first = attend_observed(call, backend, watch)
    with ThreadPoolExecutor(1) as pool:
        others = [
            pool.submit(attend_observed, call, backend, watch).result(),
            attend_observed(call, backend, watch),
        ]
    for _, other in others:
        for name in FIELDS:
            one, two = getattr(first, name), getattr(other, name)
            assert (one is None and two is None) or torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0)), name


def test_threads_at_the_same_time_do_not_disturb_each_other(backend: str) -> None:
    calls_at_once = [fixed(2, 4, 2, 60, 60, seed=n, rule=("causal",), bias=ALiBi(torch.rand(4))) for n in range(6)]
    expected = [attend(call, backend) for call in calls_at_once]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda call: attend(call, backend), calls_at_once * 5))
    assert all(torch.equal(one, two) for one, two in zip(expected * 5, found, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_a_second_call_are_the_same_bits(backend: str, dtype: torch.dtype) -> None:
    call = fixed(2, 4, 2, 60, 70, rule=("causal",), dtype=dtype, sink_logits=torch.randn(4), start=10)
    _, first = with_gradients(call, backend)
    _, second = with_gradients(call, backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


COMPILED: list[tuple[str, dict[str, Any]]] = [
    ("causal", {"mask": Causal()}),
    ("window, padding, alibi", {"mask": Window(3, 0) & Padding(torch.tensor([20, 9])), "bias": ALiBi(torch.rand(4))}),
    ("softcap and sink", {"softcap": 5.0, "sink_logits": torch.randn(4)}),
]


def compiled_and_plain(backend: str, options: dict[str, Any], compiler: str) -> tuple[Any, Any]:
    """The same function of query, key and value, compiled and not."""

    def step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return regard.attend(query, key, value, **options, backend=backend)

    torch.compiler.reset()
    return torch.compile(step, backend=compiler), step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [pytest.param(options, id=name) for name, options in COMPILED])
def test_the_traced_call_and_its_gradients_agree(backend: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    compiled, step = compiled_and_plain(backend, options, "aot_eager")
    call = fixed(2, 4, 2, 20, 20, dtype=dtype)
    results = list[list[Tensor]]()
    for function in (compiled, step):
        leaves = [tensor.clone().requires_grad_() for tensor in call.tensors]
        output = function(*leaves)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected.double(), 1e-5 + 32 * torch.finfo(dtype).eps, "output or gradient")


@pytest.mark.slow
def test_the_compiled_call_agrees_within_the_precision_of_its_dtype(backend: str) -> None:
    compiled, step = compiled_and_plain(backend, {"mask": Causal() & Window(5)}, "inductor")
    call = fixed(2, 4, 2, 20, 20)
    assert_near(compiled(*call.tensors), step(*call.tensors).double(), 1e-5, "output")
