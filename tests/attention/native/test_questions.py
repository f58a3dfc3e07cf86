"""The questions of an Observation as the kernel answers them, against the strips and the matrix in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regard import Causal, Dense, Documents, Observation, Padding, Watch, Window, attend_observed
from regard.attention.native import operator
from regard.attention.position import ALiBi, LogBuckets, RelativeBias
from tests.attention.native.agreement import ISAS, instruction_set
from tests.contract.cases import assert_near, fixed

pytestmark = pytest.mark.skipif(not ISAS, reason="the native library was not built")

B, HEADS, ROWS, KEYS = 2, 4, 70, 530  # more keys than one range, more rows than one panel

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"mask": Causal(), "start": 460},
    "window": {"mask": Window(30, 5), "start": torch.tensor([3, 400])},
    "padding": {"mask": Padding(torch.tensor([KEYS, 9]), torch.tensor([ROWS, 3]), left=True)},
    "documents": {"mask": Documents(torch.tensor([10, 60]), torch.tensor([500, 30]))},
    "dense": {"mask": Dense(torch.rand(B, HEADS, ROWS, KEYS) < 0.1)},
    "alibi": {"bias": ALiBi(torch.rand(HEADS)), "mask": Causal(), "start": 200},
    "relative": {"bias": RelativeBias(torch.randn(8, HEADS), LogBuckets(8, 20))},
    "tensor bias": {"bias": torch.randn(HEADS, 1, KEYS).masked_fill(torch.rand(HEADS, 1, KEYS) < 0.2, -torch.inf)},
    "softcap and sink": {"softcap": 2.0, "sink_logits": torch.randn(HEADS)},
    "scale": {"scale": -0.7},
}


def seen_by(backend: str, dtype: torch.dtype = torch.float32, **options: Any) -> Observation:
    call = fixed(B, HEADS, 2, ROWS, KEYS, 24, 20, dtype=dtype)
    return attend_observed(*call.tensors, watch=Watch(top=0), backend=backend, **options)[1]


def questions(columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, HEADS, KEYS, columns), torch.randn(1, 1, ROWS, columns), torch.randn(B, HEADS, ROWS, 20)


def answers(seen: Observation, v: Tensor, r: Tensor, grad: Tensor) -> dict[str, Tensor]:
    return {"pull": seen.pull(v), "push": seen.push(r), "push_weighted": seen.push_weighted(r, grad)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which functions of the kernel were called."""
    called: list[str] = []
    for name in ("output_of", "push"):
        plain = getattr(operator, name)
        monkeypatch.setattr(operator, name, lambda *given, n=name, f=plain: (called.append(n), f(*given))[1])
    return called


@pytest.mark.parametrize("columns", [1, 4, 5, 100])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_the_kernel_answers_as_the_matrix_does(isa: str, name: str, columns: int, asked: list[str]) -> None:
    with instruction_set(isa):
        seen = seen_by("native", **OPTIONS[name])
        v, r, grad = questions(columns)
        found = answers(seen, v, r, grad)
    assert asked == ["output_of", "push", "push"]
    exact = answers(_in_float64(seen), v, r, grad)
    for question, answer in found.items():
        assert_near(answer, exact[question].double(), 1e-5 * max(1.0, float(exact[question].abs().max())), question)


def _in_float64(seen: Observation) -> Observation:
    """The same call, answered by strips in float64."""
    assert seen.kept is not None
    kept = seen.kept
    tensors = {name: getattr(kept, name).double() for name in ("query", "key", "value")}
    return replace(seen, kept=replace(kept, **tensors), answers=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_nothing_that_is_asked(dtype: torch.dtype, asked: list[str]) -> None:
    seen = seen_by("native", dtype, mask=Causal(), start=460)
    v, r, grad = questions(2)
    exact = answers(_in_float64(seen), v, r, grad)
    for question, answer in answers(seen, v, r, grad).items():
        assert answer.dtype == torch.float32
        assert_near(answer, exact[question].double(), 1e-5 * max(1.0, float(exact[question].abs().max())), question)
    assert asked == ["output_of", "push", "push"]


@pytest.mark.parametrize("columns", [1, 20])
@pytest.mark.parametrize("isa", ISAS)
def test_any_number_of_threads_gives_the_same_bits(isa: str, columns: int) -> None:
    before = torch.get_num_threads()
    with instruction_set(isa):
        seen = seen_by("native", mask=Causal(), start=460)
        given = questions(columns)
        found = list[dict[str, Tensor]]()
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(answers(seen, *given))
        torch.set_num_threads(before)
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]) and torch.equal(found[0][name], found[2][name]), name


@pytest.mark.parametrize("columns", [1, 20])
def test_what_is_not_seen_may_be_nan(columns: int) -> None:
    lengths = torch.tensor([300, 17])
    call = fixed(B, HEADS, 2, ROWS, KEYS, 24, 20)
    query, key, value = (tensor.clone() for tensor in call.tensors)
    v, r, grad = questions(columns)
    r = r.expand(B, HEADS, -1, -1).clone()
    options: dict[str, Any] = {"mask": Padding(lengths, torch.tensor([ROWS, 40])), "watch": Watch(top=0)}
    clean = answers(attend_observed(query, key, value, backend="native", **options)[1], v, r, grad)
    for b, length in enumerate(lengths.tolist()):
        key[b, :, length:], value[b, :, length:], v[b, :, length:] = torch.nan, torch.nan, torch.nan
    query[1, :, 40:], r[1, :, 40:], grad[1, :, 40:] = torch.nan, torch.nan, torch.nan
    for name, answer in answers(attend_observed(query, key, value, backend="native", **options)[1], v, r, grad).items():
        assert torch.equal(answer, clean[name]), name


def test_what_the_kernel_refuses_goes_by_strips(asked: list[str]) -> None:
    seen = seen_by("native")
    v, r, grad = questions(2)
    learned = v.clone().requires_grad_()
    seen.pull(learned).sum().backward()
    assert learned.grad is not None
    assert seen.kept is not None
    narrowed = replace(seen, kept=replace(seen.kept, scale=1.0))  # another call than the logsumexp belongs to
    exact = answers(_in_float64(narrowed), v, r, grad)
    for name, answer in answers(narrowed, v, r, grad).items():
        assert_near(answer, exact[name].double(), 1e-5 * max(1.0, float(exact[name].abs().max())), name)
    assert torch.vmap(lambda x: seen.push(x), in_dims=0)(r.expand(3, 1, HEADS, -1, -1)).shape == (3, B, HEADS, KEYS, 2)
    some = attend_observed(*fixed(B, HEADS, 2, ROWS, KEYS).tensors, watch=Watch(rows=torch.arange(3)))[1]
    some.push(r)
    assert asked.count("push") == 0
