"""Times of pieces: the path that transformers finds, and a made-up cross-attention whose times are known."""

import numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from regard.pipelines.word_times import piece_times, smoothed, warp


@given(rows=st.integers(1, 9), columns=st.integers(1, 30), seed=st.integers(0, 999))
def test_the_path_is_the_cheapest(rows: int, columns: int, seed: int):
    cost = numpy.random.default_rng(seed).normal(size=(rows, columns))
    found = warp(cost)
    expected = _dynamic_time_warping(cost)
    assert numpy.array_equal(found[0], expected[0]) and numpy.array_equal(found[1], expected[1])


@given(columns=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_median(columns: int, seed: int):
    values = torch.randn(2, 3, columns, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(smoothed(values, 7), _median_filter(values[None], 7)[0])


def test_pieces_begin_where_they_are_looked_at():
    starts = [0, 9, 15, 40, 52]
    weights = torch.full((2, 5, 60), 1e-3)
    for row, (first, stop) in enumerate(zip(starts, [*starts[1:], 60], strict=True)):
        weights[:, row, first:stop] = 1.0
    noise = 0.01 * torch.rand(2, 5, 60, generator=torch.Generator().manual_seed(0))
    assert all(abs(a - b) <= 1 for a, b in zip(piece_times(weights + noise), starts, strict=True))
    assert piece_times(torch.ones(1, 1, 3)) == [0]
