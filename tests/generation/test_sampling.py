"""Filters against transformers' logits processors, and drawing against the probabilities it is to have."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from regard.generation import GenerationSettings
from regard.generation.sampling import Sampler, draw, filtered, min_p, repetition_penalty, top_k, top_p

shapes = st.tuples(st.integers(1, 4), st.integers(2, 700))
scales = st.sampled_from([0.1, 1.0, 5.0, 30.0])


def random_scores(shape: tuple[int, int], scale: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def seen_in(ids: torch.Tensor, V: int) -> torch.Tensor:
    return torch.zeros(len(ids), V, dtype=torch.bool).scatter(1, ids, True)


@given(shapes, scales, st.integers(0, 999), st.integers(1, 800))
def test_top_k_is_transformers(shape: tuple[int, int], scale: float, seed: int, k: int):
    scores = random_scores(shape, scale, seed)
    assert torch.equal(top_k(scores, k), TopKLogitsWarper(k)(None, scores))  # type: ignore[arg-type]


@given(shapes, scales, st.integers(0, 999), st.floats(0.01, 0.99))
def test_top_p_is_transformers(shape: tuple[int, int], scale: float, seed: int, p: float):
    scores = random_scores(shape, scale, seed)
    assert torch.equal(top_p(scores, p), TopPLogitsWarper(p)(None, scores))  # type: ignore[arg-type]


@given(shapes, scales, st.integers(0, 999), st.floats(0.001, 1.0))
def test_min_p_is_transformers(shape: tuple[int, int], scale: float, seed: int, p: float):
    scores = random_scores(shape, scale, seed)
    assert torch.equal(min_p(scores, p), MinPLogitsWarper(p)(None, scores))  # type: ignore[arg-type]


@given(shapes, scales, st.integers(0, 999), st.floats(0.5, 3.0), st.integers(1, 50))
def test_repetition_penalty_is_transformers(
    shape: tuple[int, int], scale: float, seed: int, penalty: float, length: int
):
    scores = random_scores(shape, scale, seed)
    ids = torch.randint(shape[1], (shape[0], length))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)  # type: ignore[arg-type]
    assert torch.equal(repetition_penalty(scores, seen_in(ids, shape[1]), penalty), expected)


@given(shapes, st.integers(0, 999), st.data())
def test_all_filters_in_their_order_are_transformers(shape: tuple[int, int], seed: int, data: st.DataObject):
    scores = random_scores(shape, 3.0, seed)
    ids = torch.randint(shape[1], (shape[0], 9))
    chosen = GenerationSettings(
        temperature=data.draw(st.floats(0.2, 3.0)),
        top_k=data.draw(st.integers(1, 60)),
        top_p=data.draw(st.floats(0.3, 0.99)),
        min_p=data.draw(st.floats(0.001, 0.5)),
        repetition_penalty=data.draw(st.floats(1.1, 2.0)),
    )
    expected = scores
    for processor in (
        RepetitionPenaltyLogitsProcessor(chosen.repetition_penalty),
        TemperatureLogitsWarper(chosen.temperature),
        TopKLogitsWarper(chosen.top_k),
        TopPLogitsWarper(chosen.top_p),
        MinPLogitsWarper(chosen.min_p),
    ):
        expected = processor(ids, expected)  # type: ignore[arg-type]
    assert torch.equal(filtered(scores, chosen, seen_in(ids, shape[1])), expected)


@given(shapes, scales, st.integers(0, 999), st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_pieces_that_have_the_probability(
    shape: tuple[int, int], scale: float, seed: int, p: float
):
    scores = random_scores(shape, scale, seed)
    probabilities, kept = scores.softmax(1), top_p(scores, p).isfinite()
    mass = (probabilities * kept).sum(1)
    assert bool((mass >= p - 1e-9).all())
    least = probabilities.masked_fill(~kept, 2.0).amin(1)
    assert bool((mass - least < p + 1e-9).all())  # without the last of them it is less
    assert bool((probabilities.masked_fill(kept, -1.0).amax(1) <= least).all())


@given(shapes, scales, st.integers(0, 999), st.data())
def test_a_drawn_piece_was_not_excluded(shape: tuple[int, int], scale: float, seed: int, data: st.DataObject):
    scores = top_k(random_scores(shape, scale, seed), data.draw(st.integers(1, 10)))
    numbers = st.floats(0, 1, exclude_max=True)
    uniforms = torch.tensor([data.draw(numbers) for _ in range(shape[0])], dtype=torch.float64)
    pieces = draw(scores, uniforms)
    assert bool(scores.gather(1, pieces[:, None]).isfinite().all())


def test_drawing_covers_every_piece_by_its_share():
    """Numbers evenly spaced over [0, 1) must fall to each piece in proportion to its probability, to one number."""
    probabilities = torch.tensor([0.1, 0.0, 0.45, 0.2, 0.25, 0.0], dtype=torch.float64)
    n = 1000
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    pieces = draw(probabilities.log().expand(n, -1), uniforms)
    assert torch.bincount(pieces, minlength=6).tolist() == pytest.approx((n * probabilities).tolist(), abs=1)


@pytest.mark.parametrize(
    "chosen",
    [
        GenerationSettings(temperature=1.0),
        GenerationSettings(temperature=0.6),
        GenerationSettings(temperature=1.7, top_k=5),
        GenerationSettings(temperature=1.0, top_p=0.7),
        GenerationSettings(temperature=1.0, min_p=0.2),
        GenerationSettings(temperature=1.0, repetition_penalty=1.5),
    ],
)
def test_the_sampler_draws_the_distribution(chosen: GenerationSettings):
    """χ² of 4,000 draws with fixed seeds: below what 99.99 % of honest samplers reach."""
    scores = random_scores((1, 12), 1.5, 7)
    prompt, n = [3, 5], 4000
    expected = filtered(scores, chosen, seen_in(torch.tensor([prompt]), 12)).softmax(1)[0]
    sampler = Sampler(chosen, [prompt] * n, 12, seeds=range(n))
    pieces, logs = sampler(scores.expand(n, -1))
    counts = torch.bincount(pieces, minlength=12).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi = float(((counts - n * expected)[possible] ** 2 / (n * expected)[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert chi < freedom + 4 * math.sqrt(2 * freedom) + 6
    assert logs.double() == pytest.approx(scores.log_softmax(1)[0, pieces], abs=1e-5)  # unfiltered


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6), st.data())
def test_an_entry_draws_by_its_own_seed(seeds: list[int], data: st.DataObject):
    n = len(seeds)
    steps = [random_scores((1, 50), 1.0, i) for i in range(5)]
    chosen = GenerationSettings(temperature=1.0)
    sampler = Sampler(chosen, [[0]] * n, 50, seeds=seeds)
    together = torch.stack([sampler(scores.expand(n, -1))[0] for scores in steps])
    one = data.draw(st.integers(0, n - 1))
    alone = Sampler(chosen, [[0]], 50, seeds=[seeds[one]])
    assert [int(alone(scores)[0]) for scores in steps] == together[:, one].tolist()


def test_no_seed_is_another_one_each_time():
    scores = torch.zeros(64, 1000)
    chosen = GenerationSettings(temperature=1.0)
    draws = [Sampler(chosen, [[0]] * 64, 1000)(scores)[0].tolist() for _ in range(2)]
    assert draws[0] != draws[1] and len({*draws[0]}) > 1


def test_scores_that_are_no_numbers_are_an_error():
    for bad in (torch.nan, torch.inf):
        scores = torch.zeros(1, 5)
        scores[0, 2] = bad
        with pytest.raises(ValueError, match="not finite"):
            Sampler(GenerationSettings(), [[0]], 5)(scores)


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="2 seeds are given for 1 prompts"):
        Sampler(GenerationSettings(), [[0]], 5, seeds=[1, 2])
    with pytest.raises(ValueError, match="seen is None"):
        filtered(torch.zeros(1, 5), GenerationSettings(repetition_penalty=2.0))
