"""Multi-head attention: shapes, groups of heads, initial values, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.attention import ALiBi, Causal, Padding, Rotary
from regard.transformer import FeedForward, MultiHeadAttention


@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    head_size=st.sampled_from([None, 2, 6]),
    bias=st.booleans(),
    length=st.integers(1, 5),
)
def test_self_attention_keeps_shape(kv_heads: int, head_size: int | None, bias: bool, length: int):
    attention = MultiHeadAttention(16, 4, kv_heads=kv_heads, head_size=head_size, bias=bias)
    assert attention(torch.randn(3, length, 16), mask=Causal()).shape == (3, length, 16)


def test_grouped_heads_equal_repeated_ones():
    grouped = MultiHeadAttention(16, 4, kv_heads=2).double()
    full = MultiHeadAttention(16, 4).double()
    with torch.no_grad():
        q, k, v = grouped.qkv.weight.split((16, 8, 8))
        repeated = [part.unflatten(0, (2, 4)).repeat_interleave(2, 0).flatten(0, 1) for part in (k, v)]
        full.qkv.weight.copy_(torch.cat([q, *repeated]))
        full.out.load_state_dict(grouped.out.state_dict())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x))


def test_each_projection_is_xavier_uniform():
    attention = MultiHeadAttention(64, 4, kv_heads=1)
    q, k, v = attention.qkv.weight.split((64, 16, 16))
    for part in (q, k, v, attention.out.weight):
        bound = (6 / (part.shape[0] + 64)) ** 0.5
        assert 0.9 * bound < part.abs().max() <= bound
    assert not attention.qkv.bias.any()
    assert not attention.out.bias.any()


def test_rotary_attention_depends_on_relative_position_alone():
    attention = MultiHeadAttention(16, 2, rotary=Rotary(8)).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(attention(x, start=0), attention(x, start=100))
    assert not torch.allclose(attention(x), MultiHeadAttention(16, 2).double()(x))


def test_rotary_with_a_start_for_each_entry():
    attention = MultiHeadAttention(16, 2, rotary=Rotary(8)).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(attention(x, start=torch.tensor([3, 40])), attention(x))


def test_attention_dropout_is_for_training():
    attention = MultiHeadAttention(16, 2, dropout=0.5)
    x = torch.randn(2, 5, 16)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 5}, "d_model is 16: without head_size it must be a multiple of the 5 heads"),
        ({"heads": 4, "kv_heads": 3}, "4 query heads are not a multiple of 3 key/value heads"),
        ({"heads": 0}, "heads is 0"),
        ({"heads": 4, "kind": "both"}, 'kind is \'both\': it must be "self" or "cross"'),
        ({"heads": 4, "kind": "cross", "rotary": Rotary(4)}, 'rotary is for kind "self"'),
    ],
)
def test_sizes_that_do_not_fit(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(16, **arguments)


def test_memory_is_for_cross_attention():
    x = torch.zeros(2, 3, 16)
    with pytest.raises(ValueError, match='memory is given, but this attention is of kind "self"'):
        MultiHeadAttention(16, 4)(x, x)
    with pytest.raises(ValueError, match='memory is None, but this attention is of kind "cross"'):
        MultiHeadAttention(16, 4, kind="cross")(x)


@pytest.mark.parametrize(
    ("batch", "arguments", "message"),
    [
        (3, {}, "x has 3 batch entries and memory 2"),
        (4, {"bias": ALiBi(torch.ones(4))}, "bias is given, but beams share a memory here"),
        (4, {"mask": Causal()}, r"mask is Causal, but .* it must be Padding\(key_lengths\) or None"),
        (4, {"mask": Padding(torch.tensor([1, 1]), torch.tensor([1, 1]))}, "mask is Padding"),
    ],
)
def test_beams_that_do_not_fit(batch: int, arguments: dict, message: str):
    attention = MultiHeadAttention(16, 4, kind="cross")
    with pytest.raises(ValueError, match=message):
        attention(torch.zeros(batch, 3, 16), torch.zeros(2, 3, 16), **arguments)


def test_gated_feed_forward():
    layer = FeedForward(8, 12, activation="silu", gated=True, bias=False).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    (gate, up), down = layer.up.weight.chunk(2), layer.down.weight
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(ValueError, match="activation is 'step': it must be one of relu, gelu, gelu_tanh, silu"):
        FeedForward(8, 12, activation="step")
