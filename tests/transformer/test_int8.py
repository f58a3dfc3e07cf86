import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regard.models.llama import Llama, LlamaConfig
from regard.transformer.int8 import Int8Linear, to_int8


@given(
    rows=st.sampled_from([0, 1, 2, 16, 17, 40]),
    out=st.integers(1, 70),
    inner=st.one_of(st.integers(1, 70), st.sampled_from([32, 64, 96])),
    bias=st.booleans(),
)
def test_products_are_close_to_those_in_float32(rows: int, out: int, inner: int, bias: bool):
    torch.manual_seed(out * 100 + inner)
    layer = nn.Linear(inner, out, bias=bias)
    x = torch.randn(2, rows, inner)
    with torch.no_grad():
        exact, found = layer(x), Int8Linear(layer.weight, layer.bias)(x)
    assert found.shape == exact.shape and found.dtype == exact.dtype
    # half a step a weight, and three significant digits in bfloat16
    lengths = x.abs() @ (layer.weight.detach().abs().amax(1) / 254).expand(inner, out) if rows else exact
    assert bool(((found - exact).abs() <= lengths + 0.01 * (x.abs() @ layer.weight.detach().abs().T) + 1e-5).all())


def test_weights_that_are_whole_steps_are_exact_for_many_rows():
    weight = torch.randint(-127, 128, (6, 5)).float() * 0.5
    weight[:, 0] = 63.5  # the largest of a row is 127 steps
    x = torch.randn(30, 5)
    torch.testing.assert_close(Int8Linear(weight)(x), x @ weight.T)


def test_a_row_of_zeros_answers_zero():
    layer = Int8Linear(torch.zeros(3, 4))
    assert layer(torch.randn(2, 4)).equal(torch.zeros(2, 3))


def test_few_and_many_rows_agree():
    layer = Int8Linear(torch.randn(64, 48))
    x = torch.randn(40, 48)
    few = torch.cat([layer(part) for part in x.split(8)])
    torch.testing.assert_close(few, layer(x), rtol=0, atol=0.02 * float(layer(x).abs().max()))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_keeps_about_what_it_says(tied: bool):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        d_model=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=16,
        feed_forward=96,
        max_positions=32,
        tied=tied,
    )
    model = Llama(config).eval()
    ids = torch.randint(0, 64, (2, 20))
    with torch.no_grad():
        exact = model(ids)
        found = to_int8(model)(ids)
    kinds = {type(module) for module in model.modules()}
    assert nn.Linear not in kinds and Int8Linear in kinds
    assert not found.equal(exact)
    assert float((found - exact).norm() / exact.norm()) < 0.03
