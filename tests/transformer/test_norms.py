"""Norms against torch's own, and against their formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.transformer import LayerNorm, RMSNorm
from regard.transformer.norms import layer_norm, rms_norm

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def test_modules_are_torchs():
    assert LayerNorm is torch.nn.LayerNorm
    assert issubclass(RMSNorm, torch.nn.RMSNorm)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_without_gradients_equals_torch(scale: float, affine: bool):
    norm, theirs = (kind(96, eps=1e-6, elementwise_affine=affine) for kind in (RMSNorm, torch.nn.RMSNorm))
    if affine:
        torch.nn.init.normal_(norm.weight)
        theirs.load_state_dict(norm.state_dict())
    x = torch.randn(3, 400, 96) * scale  # large enough for the short way
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(norm(x), theirs(x), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(norm(x[0, :2]), theirs(x[0, :2]), rtol=0, atol=0)
    assert torch.equal(x, before)
    torch.testing.assert_close(norm(x), theirs(x), rtol=0, atol=0)


@given(shape=shapes, data=st.data())
def test_layer_norm_equals_torch(shape: list[int], data: st.DataObject):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = torch.randn(shape, dtype=torch.float64)
    inner = shape[axis % len(shape) :]
    weight, bias = torch.randn(inner, dtype=torch.float64), torch.randn(inner, dtype=torch.float64)
    y, mean, inv_std = layer_norm(x, axis, weight, bias, eps=1e-3)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, inner, weight, bias, eps=1e-3))
    axes = list(range(axis % len(shape), len(shape)))
    torch.testing.assert_close(mean, x.mean(axes, keepdim=True))
    torch.testing.assert_close(inv_std, (x.var(axes, correction=0, keepdim=True) + 1e-3) ** -0.5)


@given(shape=shapes, data=st.data())
def test_rms_norm_equals_torch(shape: list[int], data: st.DataObject):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = torch.randn(shape, dtype=torch.float64)
    inner = shape[axis % len(shape) :]
    weight = torch.randn(inner, dtype=torch.float64)
    expected = torch.nn.functional.rms_norm(x, inner, weight, eps=1e-3)
    torch.testing.assert_close(rms_norm(x, axis, weight, eps=1e-3), expected)


def test_half_precision_is_accumulated_in_float32():
    x = torch.randn(2, 4096).half() * 200  # squares overflow float16
    y, mean, inv_std = layer_norm(x)
    assert (y.dtype, mean.dtype, inv_std.dtype) == (torch.float16, torch.float32, torch.float32)
    assert y.isfinite().all()
    assert rms_norm(x).isfinite().all()


@pytest.mark.parametrize("axis", [2, -3])
def test_axis_must_exist(axis: int):
    with pytest.raises(ValueError, match=rf"axis is {axis}, but x has 2 axes"):
        layer_norm(torch.zeros(2, 2), axis)
    with pytest.raises(ValueError, match=rf"axis is {axis}"):
        rms_norm(torch.zeros(2, 2), axis)
