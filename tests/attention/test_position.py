"""Positions against the formulas of their papers, written out with other means, and against transformers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regard.attention.frame import Frame
from regard.attention.position import (
    ALiBi,
    DynamicScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LogBuckets,
    RelativeBias,
    Rotary,
    YarnScaling,
    apply_rotary,
    sinusoidal,
)


@pytest.mark.parametrize(("length", "d", "start"), [(1, 2, 0), (7, 10, 0), (50, 16, 3), (4, 64, 5000)])
def test_the_sinusoidal_table_is_the_papers_formula(length: int, d: int, start: int) -> None:
    table = sinusoidal(length, d, start=start)
    expected = torch.empty(length, d, dtype=torch.float64)
    for row in range(length):
        for i in range(d // 2):
            angle = (start + row) / 10000 ** (2 * i / d)
            expected[row, 2 * i] = math.sin(angle)
            expected[row, 2 * i + 1] = math.cos(angle)
    assert table.shape == (length, d)
    torch.testing.assert_close(table.double(), expected, rtol=0, atol=1e-7)


def test_a_sinusoidal_table_needs_an_even_width() -> None:
    with pytest.raises(ValueError, match="d is 5"):
        sinusoidal(3, 5)


def test_learned_positions_are_rows_of_their_table() -> None:
    positions = LearnedPositions(10, 4)
    table = next(iter(positions.parameters()))
    assert torch.equal(positions(3), table[:3])
    assert torch.equal(positions(3, 7), table[7:10])
    assert torch.equal(positions(2, torch.tensor([0, 8])), torch.stack((table[0:2], table[8:10])))


@pytest.mark.parametrize("start", [8, -1, torch.tensor([0, 8]), torch.tensor([-1, 0])])
def test_a_position_without_a_learned_vector_is_refused(start: int | Tensor) -> None:
    with pytest.raises(ValueError, match="position"):
        LearnedPositions(10, 4)(3, start)


def turned(x: Tensor, start: Tensor, frequencies: Tensor, interleaved: bool) -> Tensor:
    """Pairs of columns as complex numbers, times exp(i·position·frequency); x (B, H, L, D), start (B,)."""
    size = 2 * len(frequencies)
    x = x.double()
    first = x[..., 0:size:2] if interleaved else x[..., : size // 2]
    second = x[..., 1:size:2] if interleaved else x[..., size // 2 : size]
    position = (start[:, None] + torch.arange(x.shape[2])).double()[:, None, :, None]
    angle = position * frequencies.double()
    product = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    result = x.clone()
    if interleaved:
        result[..., 0:size:2], result[..., 1:size:2] = product.real, product.imag
    else:
        result[..., : size // 2], result[..., size // 2 : size] = product.real, product.imag
    return result


@given(
    size=st.sampled_from([2, 4, 8, 16, 64]),
    fraction=st.sampled_from([1.0, 0.5]),
    interleaved=st.booleans(),
    base=st.sampled_from([100.0, 10000.0, 500000.0]),
    start=st.integers(0, 4000) | st.tuples(st.integers(0, 4000), st.integers(0, 4000)),
    length=st.integers(1, 20),
)
def test_rotary_is_multiplication_of_complex_numbers(
    size: int, fraction: float, interleaved: bool, base: float, start: Any, length: int
) -> None:
    if size * fraction < 2:
        return
    rotary = Rotary(size, base=base, fraction=fraction, interleaved=interleaved)
    x = torch.randn(2, 3, length, size, generator=torch.Generator().manual_seed(length))
    whole = int(size * fraction)
    frequencies = torch.tensor([base ** (-2 * m / whole) for m in range(whole // 2)], dtype=torch.float64)
    starts = torch.tensor(start if isinstance(start, tuple) else (start, start))
    actual = rotary.rotate(x, starts if isinstance(start, tuple) else start)
    assert actual.dtype == x.dtype
    torch.testing.assert_close(actual.double(), turned(x, starts, frequencies, interleaved), rtol=0, atol=2e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_angles_never_pass_through_half_precision(dtype: torch.dtype, interleaved: bool) -> None:
    rotary = Rotary(8, interleaved=interleaved)
    x = torch.randn(1, 2, 3, 8).to(dtype)
    frequencies = torch.tensor([10000.0 ** (-2 * m / 8) for m in range(4)], dtype=torch.float64)
    actual = rotary.rotate(x, 3001)
    assert actual.dtype == dtype
    expected = turned(x, torch.tensor([3001]), frequencies, interleaved)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_rotary_answers_the_same_whatever_it_was_asked_before() -> None:
    fresh, used = Rotary(8), Rotary(8)
    x = torch.randn(1, 1, 2, 8)
    used.rotate(torch.randn(1, 1, 300, 8), 1000)
    assert torch.equal(fresh.rotate(x, 5), used.rotate(x, 5))


def test_rotary_turns_gradients_too() -> None:
    rotary = Rotary(4, fraction=0.5)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotary.rotate(x, 2), (x,))


@pytest.mark.parametrize(("size", "fraction"), [(5, 1.0), (8, 0.4), (4, 0.0), (4, 1.5)])
def test_rotary_turns_a_positive_even_number_of_columns(size: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="even"):
        Rotary(size, fraction=fraction)


def test_apply_rotary_leaves_the_columns_without_an_angle_alone() -> None:
    x = torch.randn(2, 3, 4, 8)
    angle = torch.randn(4, 2)
    for interleaved in (False, True):
        actual = apply_rotary(x, angle.cos(), angle.sin(), interleaved)
        assert torch.equal(actual[..., 4:], x[..., 4:])
        assert not torch.equal(actual[..., :4], x[..., :4])


LONGER = [
    ("linear", {"factor": 4.0}, LinearScaling(4.0), None),
    ("dynamic", {"factor": 2.0}, DynamicScaling(2.0, 256), 100),
    ("dynamic", {"factor": 2.0}, DynamicScaling(2.0, 256), 256),
    ("dynamic", {"factor": 2.0}, DynamicScaling(2.0, 256), 700),
    ("dynamic", {"factor": 8.0}, DynamicScaling(8.0, 256), 5000),
    ("yarn", {"factor": 4.0, "original_max_position_embeddings": 256}, YarnScaling(4.0, 256), None),
    ("yarn", {"factor": 40.0, "original_max_position_embeddings": 4096}, YarnScaling(40.0, 4096), None),
    (
        "yarn",
        {
            "factor": 16.0,
            "original_max_position_embeddings": 2048,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
            "truncate": False,
        },
        YarnScaling(16.0, 2048, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3, truncate=False),
        None,
    ),
    (
        "llama3",
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        Llama3Scaling(8.0, 8192),
        None,
    ),
    (
        "llama3",
        {
            "factor": 32.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 6.0,
            "original_max_position_embeddings": 512,
        },
        Llama3Scaling(32.0, 512, low_frequency_factor=2.0, high_frequency_factor=6.0),
        None,
    ),
]


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize(("name", "parameters", "scaling", "length"), LONGER)
def test_scaled_frequencies_are_those_of_transformers(
    name: str, parameters: dict[str, Any], scaling: Any, length: int | None, fraction: float, base: float
) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": name, "rope_theta": base, "partial_rotary_factor": fraction, **parameters}
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, head_dim=64, max_position_embeddings=256, rope_parameters=rope
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS[name](config, None, seq_len=length)
    rotary = Rotary(64, base=base, fraction=fraction, scaling=scaling)
    frequencies, factor = rotary.frequencies(length or 0)
    assert factor == pytest.approx(expected_factor, rel=1e-6)
    torch.testing.assert_close(frequencies.double(), expected.double(), rtol=1e-6, atol=1e-6)


def test_the_factor_of_a_scaling_multiplies_what_is_turned() -> None:
    x = torch.randn(1, 1, 4, 8)
    scaling = YarnScaling(4.0, 64, attention_factor=1.5)
    frequencies, _ = Rotary(8, scaling=scaling).frequencies()
    expected = 1.5 * turned(x, torch.tensor([2]), frequencies, False)
    torch.testing.assert_close(Rotary(8, scaling=scaling).rotate(x, 2).double(), expected, rtol=0, atol=2e-6)


def test_a_frequency_that_depends_on_the_length_is_not_answered_from_a_longer_table() -> None:
    x = torch.randn(1, 1, 4, 8)
    used, fresh = (Rotary(8, scaling=DynamicScaling(2.0, 16)) for _ in range(2))
    used.rotate(torch.randn(1, 1, 100, 8))
    assert torch.equal(used.rotate(x), fresh.rotate(x))


@pytest.mark.parametrize("heads", [1, 2, 8, 12, 16, 20, 40])
def test_alibis_standard_slopes_are_those_of_the_paper(heads: int) -> None:
    def power_of_two(n: int) -> list[float]:
        return [(2 ** (-8 / n)) ** (h + 1) for h in range(n)]

    whole = 2 ** math.floor(math.log2(heads))
    expected = power_of_two(whole) + power_of_two(2 * whole)[0::2][: heads - whole]
    assert ALiBi.standard(heads).slopes.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("start", [0, 5, torch.tensor([0, 7])])
def test_alibi_falls_with_the_distance(start: int | Tensor) -> None:
    slopes = torch.tensor([0.5, 0.25, 1.0])
    frame = Frame(4, 9, start)
    tile = ALiBi(slopes).tile(frame, torch.arange(1, 4), range(2, 9)).expand(2, 3, 3, 7)
    starts = start.tolist() if isinstance(start, Tensor) else [start] * 2
    for b in range(2):
        for h in range(3):
            for row in range(1, 4):
                for j in range(2, 9):
                    expected = -float(slopes[h]) * abs(starts[b] + row - j)
                    assert float(tile[b, h, row - 1, j - 2]) == pytest.approx(expected)


@pytest.mark.parametrize("start", [0, 5, torch.tensor([0, 7])])
def test_a_relative_bias_looks_its_bucket_up_in_the_table(start: int | Tensor) -> None:
    table = torch.randn(5, 3)
    bias = RelativeBias(table, lambda relative: (relative + 2).clamp(0, 4))
    tile = bias.tile(Frame(4, 9, start), torch.arange(1, 4), range(2, 9)).expand(2, 3, 3, 7)
    starts = start.tolist() if isinstance(start, Tensor) else [start] * 2
    for b in range(2):
        for row in range(1, 4):
            for j in range(2, 9):
                bucket = min(max(j - starts[b] - row + 2, 0), 4)
                assert torch.equal(tile[b, :, row - 1, j - 2], table[bucket])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "furthest"), [(32, 128), (16, 64), (8, 20)])
def test_log_buckets_are_those_of_t5(count: int, furthest: int, bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = torch.arange(-700, 701)
    expected = T5Attention._relative_position_bucket(
        relative, bidirectional=bidirectional, num_buckets=count, max_distance=furthest
    )
    assert torch.equal(LogBuckets(count, furthest, bidirectional)(relative), expected)
