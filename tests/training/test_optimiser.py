"""Schedules, and an optimiser that decays matrices alone."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from regard.training import OptimiserConfig, build_optimiser, build_schedule
from regard.transformer import Block, Encoder, FeedForward, LayerNorm, MultiHeadAttention


def test_inverse_square_root_rises_and_falls() -> None:
    rate = build_schedule(OptimiserConfig(peak_learning_rate=0.005, warmup=100), 1000)
    rates = [rate(step) for step in range(1, 1001)]
    assert max(rates) == rates[99] == pytest.approx(0.005)
    assert rate(400) == pytest.approx(0.0025)
    assert rate(50) == pytest.approx(0.0025)


def test_cosine_ends_at_its_final_fraction() -> None:
    config = OptimiserConfig(peak_learning_rate=1.0, warmup=10, schedule="cosine", final_fraction=0.1)
    rate = build_schedule(config, 110)
    assert rate(10) == pytest.approx(1.0) and rate(110) == pytest.approx(0.1) and rate(200) == pytest.approx(0.1)
    assert rate(60) == pytest.approx(0.55)


def test_linear_falls_from_the_warm_up_on_and_wsd_only_at_the_end() -> None:
    config = OptimiserConfig(peak_learning_rate=1.0, warmup=10, schedule="linear", final_fraction=0.1)
    rate = build_schedule(config, 110)
    assert [rate(step) for step in (5, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.55, 0.1])
    rate = build_schedule(OptimiserConfig(peak_learning_rate=1.0, warmup=10, schedule="wsd", decay_fraction=0.25), 100)
    assert [rate(step) for step in (1, 10, 40, 75, 80, 100)] == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.8, 0.0])
    rate = build_schedule(OptimiserConfig(peak_learning_rate=1.0, warmup=4, schedule="constant"), 2)
    assert [rate(step) for step in (1, 4, 9999)] == [0.25, 1.0, 1.0]


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimiser = build_optimiser(model, OptimiserConfig(weight_decay=0.5))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert changed == [True, False, False, False]


def test_refuses() -> None:
    with pytest.raises(ValueError, match="warmup is 0"):
        build_schedule(OptimiserConfig(warmup=0), 10)
    with pytest.raises(ValueError, match="steps is 10"):
        build_schedule(OptimiserConfig(warmup=10, schedule="cosine"), 10)
    with pytest.raises(ValueError, match="steps is 10 .* the wsd schedule"):
        build_schedule(OptimiserConfig(warmup=10, schedule="wsd"), 10)
    with pytest.raises(ValueError, match="schedule is 'sine'"):
        build_schedule(OptimiserConfig(schedule="sine"), 10)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="decay_fraction is 0"):
        build_schedule(OptimiserConfig(schedule="wsd", decay_fraction=0), 10)
    with pytest.raises(ValueError, match="optimiser is 'sgd'"):
        build_optimiser(nn.Linear(2, 2), OptimiserConfig(optimiser="sgd"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="optimiser is 'muon': the model must have Transformer blocks"):
        build_optimiser(nn.Linear(2, 2), OptimiserConfig(optimiser="muon"))
    with pytest.raises(ValueError, match="no parameter"):
        build_optimiser(nn.Linear(2, 2).requires_grad_(False), OptimiserConfig())


def tower() -> nn.Module:
    """Embeddings, two blocks, a norm and a head."""
    blocks = [Block(MultiHeadAttention(4, 2), FeedForward(4, 8), norm=partial(LayerNorm, 4)) for _ in range(2)]
    model = nn.Sequential(nn.Embedding(5, 4), Encoder(blocks, norm=LayerNorm(4)), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight  # tied: it is embeddings first
    return model


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_lower_layers_learn_more_slowly(optimiser: Any) -> None:
    model = tower()
    built = build_optimiser(model, OptimiserConfig(optimiser=optimiser, layer_decay=0.5, weight_decay=0.1))
    shares = {p: group["share"] for group in built.param_groups for p in group["params"]}
    assert {*shares} == {*model.parameters()}
    found = {name: shares[p] for name, p in model.named_parameters()}
    assert found["0.weight"] == 1 / 8
    assert {share for name, share in found.items() if "blocks.0" in name} == {1 / 4}
    assert {share for name, share in found.items() if "blocks.1" in name} == {1 / 2}
    assert {share for name, share in found.items() if name.startswith("1.norm")} == {1}
    decays = {p: group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert all(decays[p] == (0.1 if p.dim() >= 2 else 0) for p in model.parameters())


def test_without_layer_decay_there_are_no_shares() -> None:
    assert all("share" not in group for group in build_optimiser(tower(), OptimiserConfig()).param_groups)
    with pytest.raises(ValueError, match=r"layer_decay is 0\.5: the model must have Transformer blocks"):
        build_optimiser(nn.Linear(2, 2), OptimiserConfig(layer_decay=0.5))
