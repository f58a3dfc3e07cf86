"""What a row may not see does not reach it: not one bit of it, not even where it is NaN."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard import Watch
from regard.attention.position import Rotary
from tests.contract.backends import FIELDS, attend, attend_observed, with_gradients
from tests.contract.cases import DTYPES, Call, assert_near, both, calls, fixed

NOTHING = [math.nan, math.inf, -math.inf]


def alike(call: Call) -> Call:
    """The call with keys and values in the layout that copies of them have: another one may mean another product."""
    return replace(call, key=call.key.clone(), value=call.value.clone())


@settings(max_examples=40)
@given(call=calls(longest=50, dtypes=DTYPES), data=st.data())
def test_a_future_key_changes_no_bit_before_it(backend: str, call: Call, data: st.DataObject) -> None:
    call = alike(replace(call, rule=both(call.rule, ("causal",))))
    keys, rows = call.key.shape[2], call.query.shape[2]
    changed = data.draw(st.integers(0, keys - 1), label="first changed key")
    size = data.draw(st.sampled_from([1.0, 1e4]), label="size of the change")
    key, value = call.key.clone(), call.value.clone()
    key[:, :, changed:] = size * torch.randn_like(key[:, :, changed:])
    value[:, :, changed:] = size * torch.randn_like(value[:, :, changed:])
    before, after = attend(call, backend), attend(replace(call, key=key, value=value), backend)
    starts = torch.as_tensor(call.start).reshape(-1).expand(call.query.shape[0])
    for b, start in enumerate(starts.tolist()):
        unchanged = max(0, min(rows, changed - start))
        assert torch.equal(before[b, :, :unchanged], after[b, :, :unchanged])


@settings(max_examples=25)
@given(call=calls(longest=40), data=st.data())
def test_a_future_key_changes_no_bit_of_what_was_observed(backend: str, call: Call, data: st.DataObject) -> None:
    call = alike(replace(call, rule=both(call.rule, ("causal",)), start=0))
    changed = data.draw(st.integers(0, call.key.shape[2] - 1), label="first changed key")
    key = call.key.clone()
    key[:, :, changed:] = 50.0
    _, before = attend_observed(call, backend, Watch(top=3))
    _, after = attend_observed(replace(call, key=key), backend, Watch(top=3))
    for name in FIELDS:
        was, now = getattr(before, name), getattr(after, name)
        if was is not None and name != "received":
            assert torch.equal(was[:, :, :changed].nan_to_num(7.0), now[:, :, :changed].nan_to_num(7.0)), name


def filled(call: Call, unseen: Tensor, blind: Tensor | None, content: float) -> Call:
    """The call with `content` in the keys and values (B, Hkv, Lk) that no row sees, and in rows that see nothing."""
    key, value = (tensor.masked_fill(unseen[..., None], content) for tensor in (call.key, call.value))
    query = call.query if blind is None else call.query.masked_fill(blind[..., None], content)
    bias = call.bias
    if isinstance(bias, Tensor) and bias.shape == call.allowed.shape:
        bias = bias.masked_fill(~call.allowed, content)
    return replace(call, query=query, key=key, value=value, bias=bias)


def unseen_keys(call: Call) -> Tensor:
    """(B, Hkv, Lk): no row of any head of the group sees the key."""
    kv_heads = call.key.shape[1]
    return ~call.allowed.any(2).unflatten(1, (kv_heads, -1)).any(2)


def assert_same_gradients(gradients: dict[str, Tensor], clean: dict[str, Tensor]) -> None:
    """Finite, and the same bits."""
    strange = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    assert not strange, f"not finite: the gradients of {', '.join(strange)}"
    changed = [name for name, gradient in gradients.items() if not torch.equal(gradient, clean[name])]
    assert not changed, f"changed: the gradients of {', '.join(changed)}"


@settings(max_examples=50)
@given(call=calls(longest=40, dtypes=DTYPES), content=st.sampled_from(NOTHING))
def test_what_no_row_may_see_may_hold_anything(backend: str, call: Call, content: float) -> None:
    unseen = unseen_keys(call)
    output, gradients = with_gradients(filled(call, unseen, None, 0.25), backend)
    poisoned, poisoned_gradients = with_gradients(filled(call, unseen, None, content), backend)
    assert bool(poisoned.isfinite().all())
    assert torch.equal(poisoned, output)
    assert_same_gradients(poisoned_gradients, gradients)


@pytest.mark.parametrize("content", NOTHING)
def test_a_key_that_no_row_of_its_group_sees_may_hold_anything(backend: str, content: float) -> None:
    allowed = torch.ones(1, 4, 1, 11, dtype=torch.bool)
    allowed[0, 0:2, 0, 3] = False  # key 3 of the first key/value head, key 5 of the second one
    allowed[0, 2:4, 0, 5] = False
    allowed[0, 1, 0, 7] = False  # one head of the group still sees this one
    call = fixed(rule=("dense", allowed))
    unseen = unseen_keys(call)
    assert unseen.sum().item() == 4
    clean, gradients = with_gradients(filled(call, unseen, None, 0.5), backend)
    output, poisoned = with_gradients(filled(call, unseen, None, content), backend)
    assert torch.equal(output, clean)
    assert_same_gradients(poisoned, gradients)


@settings(max_examples=25)
@given(call=calls(longest=40, dtypes=DTYPES), content=st.sampled_from(NOTHING))
def test_what_no_row_may_see_reaches_no_statistic(backend: str, call: Call, content: float) -> None:
    unseen = unseen_keys(call)
    segments = torch.arange(call.key.shape[2]) % 3 - 1
    watch = Watch(top=4, segments=segments)
    _, clean = attend_observed(filled(call, unseen, None, 0.25), backend, watch)
    _, poisoned = attend_observed(filled(call, unseen, None, content), backend, watch)
    for name in FIELDS:
        was, now = getattr(clean, name), getattr(poisoned, name)
        if was is not None:
            assert torch.equal(was.nan_to_num(7.0), now.nan_to_num(7.0)), name
            assert torch.equal(was.isnan(), now.isnan()), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("left", [False, True])
def test_padding_may_hold_anything_in_queries_keys_and_values(backend: str, left: bool, dtype: torch.dtype) -> None:
    rule = ("padding", torch.tensor([4, 9]), torch.tensor([4, 9]), left)
    call = fixed(2, 4, 2, 9, 9, rule=both(("causal",), rule), dtype=dtype, sink_logits=torch.randn(4))
    blind = ~call.allowed.any(3)
    clean, gradients = with_gradients(filled(call, unseen_keys(call), blind, 0.5), backend)
    for content in NOTHING:
        output, poisoned = with_gradients(filled(call, unseen_keys(call), blind, content), backend)
        assert torch.equal(output, clean)
        assert_same_gradients(poisoned, gradients)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rule",
    [
        ("padding", torch.tensor([0, 7]), None, False),
        ("padding", torch.tensor([11, 7]), torch.tensor([9, 0]), False),
        ("dense", torch.zeros(1, 1, dtype=torch.bool)),
        ("dense", torch.rand(2, 4, 9, 1) < 0.5),
        ("and", ("causal",), ("window", 0, 0)),
        ("documents", torch.tensor([2]), None),
    ],
    ids=lambda rule: rule[0],
)
def test_a_row_that_sees_nothing_gives_zero_and_finite_gradients(
    backend: str, rule: tuple[Any, ...], dtype: torch.dtype, sink: bool
) -> None:
    call = fixed(rule=rule, dtype=dtype, sink_logits=torch.randn(4) if sink else None, softcap=5.0, start=4)
    blind = ~call.allowed.any(3)
    output, gradients = with_gradients(call, backend)
    assert bool((output[blind] == 0).all())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert bool((gradients["query"][blind] == 0).all())
    _, seen = attend_observed(call, backend, Watch(top=2))
    expected = call.sink_logits[None, :, None].expand(blind.shape)[blind] if sink else torch.tensor(-math.inf)
    torch.testing.assert_close(seen.logsumexp[blind], expected.expand(int(blind.sum())), rtol=1e-6, atol=1e-6)
    assert bool((seen.entropy[blind] == 0).all())
    assert bool(seen.mean_position[blind].isnan().all())
    assert bool((seen.top_keys[blind] == -1).all())
    assert bool((seen.top_weights[blind] == 0).all())
    assert bool((seen.max_weight[blind] == 0).all())


@settings(max_examples=25)
@given(
    call=calls(longest=20, empty_starts=False),
    shift=st.integers(0, 300),
    interleaved=st.booleans(),
    grouped=st.booleans(),
)
def test_rotary_attention_depends_on_relative_position_alone(
    backend: str, call: Call, shift: int, interleaved: bool, grouped: bool
) -> None:
    size = 8
    query, key = (torch.randn(*tensor.shape[:3], size, dtype=torch.float64) for tensor in (call.query, call.key))
    rotary = Rotary(size, interleaved=interleaved)
    at = torch.full((query.shape[0],), shift) if grouped else shift
    near = replace(call, query=rotary.rotate(query, 0).float(), key=rotary.rotate(key, 0).float())
    far = replace(call, query=rotary.rotate(query, at).float(), key=rotary.rotate(key, at).float())
    tolerance = 2e-5 * float(call.value.abs().max() + 1)
    assert_near(attend(near, backend), attend(far, backend).double(), tolerance, "output")
