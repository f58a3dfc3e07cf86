"""Every backend gives the formula's answer, to the precision of its dtype, whatever the shapes, masks and biases."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.attention import reference
from regard.attention.dispatch import BACKENDS
from regard.attention.position import ALiBi, LogBuckets, RelativeBias
from regard.attention.request import checked
from tests.contract import oracle
from tests.contract.backends import attend, small_strips
from tests.contract.cases import DTYPES, LAYOUTS, Call, assert_near, calls, fixed, laid_out


@settings(max_examples=50)
@given(call=calls(dtypes=(torch.float64,), longest=40))
def test_the_reference_is_the_formula_in_float64(call: Call) -> None:
    call, answer = call.to(torch.float64), call.answer()
    output = attend(call, "reference")
    assert output.dtype == torch.float64
    assert_near(output, answer.output, 1e-11, "output")
    for stage, expected in (
        ("raw", answer.raw),
        ("softcap", answer.capped),
        ("bias", answer.scores),
        ("weights", answer.weights),
    ):
        actual = reference.scores(call.query, call.key, **call.options, stage=stage)
        seen = answer.allowed if stage in ("raw", "softcap") else torch.ones_like(answer.allowed)
        assert_near(actual.where(seen, 0.0), expected.where(seen, 0.0), 1e-11, stage)


@settings(max_examples=60)
@given(call=calls(dtypes=DTYPES))
def test_agrees_with_the_formula_to_the_precision_of_its_dtype(backend: str, call: Call) -> None:
    answer = call.answer()
    output = attend(call, backend)
    assert output.dtype == call.query.dtype
    assert_near(output, answer.output, call.output_tolerance(answer), "output")


@settings(max_examples=30)
@given(call=calls(dtypes=DTYPES, longest=40))
def test_agrees_with_the_reference_in_float64(backend: str, call: Call) -> None:
    exact = call.to(torch.float64)
    expected = attend(exact, "reference")
    assert_near(attend(call, backend), expected, call.output_tolerance(call.answer()), "output")


@settings(max_examples=30)
@given(call=calls(dtypes=(torch.float64,), longest=40))
def test_float64_stays_float64(backend: str, call: Call) -> None:
    call = call.to(torch.float64)
    refusal = BACKENDS[backend].refuses(checked(*call.tensors))
    if refusal is not None:
        pytest.skip(refusal)
    output = attend(call, backend)
    assert output.dtype == torch.float64
    assert_near(output, call.answer().output, 1e-11, "output")


@settings(max_examples=25)
@given(call=calls(longest=60), budget=st.sampled_from([1, 10_000, 60_000]))
def test_agrees_however_small_the_strips_are(backend: str, call: Call, budget: int) -> None:
    answer = call.answer()
    with small_strips(budget):
        output = attend(call, backend)
    assert_near(output, answer.output, call.output_tolerance(answer), "output")


LARGE: list[tuple[str, dict[str, Any]]] = [
    ("causal", {"rule": ("causal",)}),
    ("window", {"rule": ("and", ("causal",), ("window", 100, None)), "start": 150}),
    ("padding", {"rule": ("padding", torch.tensor([400, 217]), torch.tensor([250, 1]), False)}),
    (
        "left padding",
        {"rule": ("and", ("causal",), ("padding", torch.tensor([400, 217]), None, True)), "start": 150},
    ),
    (
        "documents",
        {"rule": ("and", ("causal",), ("documents", torch.tensor([[100, 70, 200], [1, 398, 1]]), None))},
    ),
    ("dense", {"rule": ("dense", torch.rand(1, 4, 250, 400) < 0.5)}),
    ("none", {}),
    ("alibi", {"bias": ALiBi(torch.tensor([0.5, 0.1, 0.01, 0.001])), "rule": ("causal",), "start": 150}),
    ("relative", {"bias": RelativeBias(torch.randn(32, 4), LogBuckets())}),
    ("softcap and sink", {"softcap": 5.0, "sink_logits": torch.randn(4), "rule": ("causal",)}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [pytest.param(options, id=name) for name, options in LARGE])
def test_agrees_on_calls_of_hundreds_of_rows_in_several_strips(
    backend: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    call = fixed(2, 4, 2, 250, 400, 16, dtype=dtype, **options)
    answer = call.answer()
    with small_strips(2**19):
        output = attend(call, backend)
    assert_near(output, answer.output, call.output_tolerance(answer), "output")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_the_memory_layout_changes_nothing(backend: str, part: str, layout: str) -> None:
    call = fixed(rule=("causal",))
    plain = attend(call, backend)
    tensors = {name: getattr(call, name) for name in ("query", "key", "value")}
    tensors[part] = laid_out(tensors[part], layout)
    assert_near(attend(Call(**tensors, rule=("causal",)), backend), plain.double(), 1e-6, layout)


def test_a_batch_that_is_one_entry_expanded_is_served(backend: str) -> None:
    call = fixed(batch=1)
    expanded = Call(*(tensor.expand(3, -1, -1, -1) for tensor in call.tensors))
    assert_near(attend(expanded, backend), expanded.answer().output, 1e-5, "output")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_inputs_are_left_as_they_were(backend: str, dtype: torch.dtype) -> None:
    call = fixed(
        dtype=dtype,
        rule=("padding", torch.tensor([3, 5]), None, False),
        bias=torch.randn(9, 11).to(dtype),
        sink_logits=torch.randn(4),
    )
    before = [leaf.clone() for leaf in call.leaves()]
    attend(call, backend)
    assert all(torch.equal(was, leaf) for was, leaf in zip(before, call.leaves(), strict=True))


@pytest.mark.parametrize("value_size", [4, 8, 12])
def test_equal_heads_are_plain_multi_head_attention(backend: str, value_size: int) -> None:
    d, heads, rows, keys = 32, 4, 7, 10
    module = torch.nn.MultiheadAttention(d, heads, batch_first=True, bias=False)
    x, memory = torch.randn(2, rows, d), torch.randn(2, keys, d)
    expected, weights = module(x, memory, memory, average_attn_weights=False)
    wq, wk, wv = module.in_proj_weight.chunk(3)

    def heads_of(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)

    call = Call(heads_of(x @ wq.T), heads_of(memory @ wk.T), heads_of(memory @ wv.T))
    merged = attend(call, backend).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module.out_proj(merged), expected, rtol=1e-5, atol=1e-5)
    other = torch.randn(2, heads, keys, value_size)
    torch.testing.assert_close(
        attend(Call(call.query, call.key, other), backend), weights @ other, rtol=1e-5, atol=1e-5
    )


@settings(max_examples=30)
@given(call=calls(longest=30))
def test_grouped_heads_equal_repeated_keys(backend: str, call: Call) -> None:
    group = call.query.shape[1] // call.key.shape[1]
    repeated = Call(
        call.query,
        call.key.repeat_interleave(group, 1),
        call.value.repeat_interleave(group, 1),
        **{name: getattr(call, name) for name in ("rule", "bias", "start", "scale", "softcap", "sink_logits")},
    )
    tolerance = call.output_tolerance(call.answer())
    assert_near(attend(call, backend), attend(repeated, backend).double(), tolerance, "output")


@pytest.mark.parametrize("mask", [None, ("causal",), ("dense", torch.ones(9, 11, dtype=torch.bool))])
def test_a_bias_of_minus_infinity_forbids_as_a_mask_does(backend: str, mask: oracle.Rule | None) -> None:
    forbidden = torch.rand(2, 4, 9, 11) < 0.4
    forbidden[:, :, 3] = True  # a row that sees nothing
    bias = torch.zeros(2, 4, 9, 11).masked_fill(forbidden, -math.inf).requires_grad_()
    call = fixed(rule=mask, bias=bias)
    both = fixed(rule=("and", mask or ("causal",), ("dense", ~forbidden)) if mask else ("dense", ~forbidden))
    output = attend(call, backend)
    assert_near(output, both.answer().output, 1e-5, "output")
    assert torch.equal(output[:, :, 3], torch.zeros_like(output[:, :, 3]))
    output.square().sum().backward()
    assert bias.grad is not None
    assert bool(bias.grad.isfinite().all())


@pytest.mark.parametrize(("rows", "keys", "batch"), [(0, 3, 2), (3, 0, 2), (0, 0, 1), (3, 2, 0)])
def test_sizes_of_zero_are_sizes(backend: str, rows: int, keys: int, batch: int) -> None:
    call = fixed(batch=batch, rows=rows, keys=keys, rule=("causal",))
    output = attend(call, backend)
    assert output.shape == (batch, 4, rows, 8)
    assert torch.equal(output, torch.zeros_like(output)) or keys > 0


@pytest.mark.parametrize("start", [-3, torch.tensor([-1, 2])])
def test_rows_before_the_first_key_see_what_the_definitions_say(backend: str, start: int | Tensor) -> None:
    rules: list[oracle.Rule] = [
        ("causal",),
        ("window", 2, 1),
        ("prefix", 2),
        ("documents", torch.tensor([2, 3]), None),
        ("or", ("causal",), ("prefix", 1)),
    ]
    for rule in rules:
        for bias in (None, ALiBi(torch.rand(4))):
            call = fixed(rule=rule, start=start, bias=bias)
            assert_near(attend(call, backend), call.answer().output, 1e-5, f"{rule} at {start}")
