"""Muon turns hidden matrices, part by part, and leaves everything else to AdamW."""

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from regard.models.convolutions import Stages
from regard.training import OptimiserConfig, build_optimiser
from regard.training.muon import Muon, hidden_matrices, orthogonal
from regard.transformer import Block, FeedForward, LayerNorm, MultiHeadAttention


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        attention = MultiHeadAttention(8, 4, kv_heads=2)
        cross = MultiHeadAttention(8, 2, kind="cross")
        self.block = Block(attention, FeedForward(8, 12, gated=True), norm=partial(LayerNorm, 8), cross_attention=cross)
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(self.block(x, x))


def gradients(model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def stepped(optimiser: torch.optim.Optimizer, model: nn.Module, count: int, first: int = 0) -> None:
    for seed in range(first, first + count):
        for group in optimiser.param_groups:
            group["lr"] = 0.01
        gradients(model, seed)
        optimiser.step()


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (5, 9), (9, 5), (1, 4)])
def test_singular_values_come_close_to_one_and_directions_stay(rows: int, columns: int) -> None:
    u, s, v = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    turned = orthogonal(u * s @ v)
    values = torch.diagonal(u.T @ turned @ v.T)
    assert 0.6 < values.min() and values.max() < 1.25
    torch.testing.assert_close(u * values @ v, turned, atol=1e-4, rtol=1e-4)
    assert torch.equal(orthogonal(torch.zeros(rows, columns)), torch.zeros(rows, columns))


def test_agrees_with_the_muon_of_torch() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 10, bias=False)
    other = nn.Parameter(linear.weight.detach().clone())
    theirs = torch.optim.Muon([other], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    ours = Muon(Block(MultiHeadAttention(8, 2), linear, norm=partial(LayerNorm, 8)), weight_decay=0.1)
    for seed in range(4):
        gradient = torch.randn(10, 6, generator=torch.Generator().manual_seed(seed))
        linear.weight.grad, other.grad = gradient, gradient.clone()
        for group in ours.param_groups:
            group["lr"] = 0.01
        ours.step()
        theirs.step()
    change = (other - linear.weight).norm() / 0.2 / 0.01 / 10**0.5 / 6**0.5 / 4
    assert change < 0.02  # theirs multiplies in bfloat16


def test_takes_the_matrices_of_blocks_and_their_parts() -> None:
    model = Small()
    found = hidden_matrices(model)
    parts = {name: found[p] for name, p in model.named_parameters() if p in found}
    assert parts == {
        "block.attention.qkv.weight": [8, 4, 4],
        "block.attention.out.weight": [8],
        "block.cross_attention.q.weight": [8],
        "block.cross_attention.kv.weight": [8, 8],
        "block.cross_attention.out.weight": [8],
        "block.feed_forward.up.weight": [12, 12],
        "block.feed_forward.down.weight": [8],
    }


def test_parts_are_turned_by_themselves_and_the_rest_is_adamw() -> None:
    torch.manual_seed(1)
    model, twin = Small(), Small()
    twin.load_state_dict(model.state_dict())
    config = OptimiserConfig(optimiser="muon", weight_decay=0.1)
    optimiser = build_optimiser(model, config)
    before = model.block.attention.qkv.weight.detach().clone()
    gradients(model, 0)
    for group in optimiser.param_groups:
        group["lr"] = 0.01
    optimiser.step()
    gradient = model.block.attention.qkv.weight.grad
    assert gradient is not None
    expected = before * (1 - 0.01 * 0.1)
    for first, stop in itertools.pairwise((0, 8, 12, 16)):
        expected[first:stop] -= 0.2 * 0.01 * 8**0.5 * orthogonal(gradient[first:stop])
    torch.testing.assert_close(model.block.attention.qkv.weight.detach(), expected)
    plain = build_optimiser(twin, OptimiserConfig(weight_decay=0.1))
    stepped(plain, twin, 1)
    for name in ("embedding.weight", "head.weight", "head.bias", "block.attention_norm.weight"):
        assert torch.equal(model.get_parameter(name), twin.get_parameter(name)), name


def test_its_state_can_be_saved_and_loaded() -> None:
    torch.manual_seed(1)
    whole = Small()
    optimiser = Muon(whole)
    stepped(optimiser, whole, 3)
    again = Small()
    again.load_state_dict(whole.state_dict())
    loaded = Muon(again)
    loaded.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    stepped(optimiser, whole, 2, first=3)
    stepped(loaded, again, 2, first=3)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_kernels_of_stages_are_turned_as_matrices_but_the_first() -> None:
    torch.manual_seed(0)
    stages = Stages(3, (4, 6), (1, 0), ((1, 1), (2, 2)))
    kernels = [module.weight for module in stages.modules() if isinstance(module, nn.Conv2d)]
    assert [*hidden_matrices(stages)] == kernels[1:]
    kernel = kernels[-1]
    before, first = kernel.detach().clone(), kernels[0].detach().clone()
    optimiser = Muon(stages, weight_decay=0.0)
    gradients(stages, 0)
    assert kernel.grad is not None
    turned = orthogonal(kernel.grad.flatten(1)).view_as(kernel)
    for group in optimiser.param_groups:
        group["lr"] = 0.01
    optimiser.step()
    torch.testing.assert_close(kernel.detach(), before - 0.01 * 0.2 * 36**0.5 * turned)  # (6, 4 · 9)
    torch.testing.assert_close((kernels[0] - first).abs().max().item(), 0.01, atol=1e-4, rtol=0)  # Adam's first step
