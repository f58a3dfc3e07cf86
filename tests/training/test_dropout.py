"""ByteDropout drops with the right probability, keeps the mean, and is torch's dropout in every other respect."""

import pytest
import torch
from torch import nn

from regard.training import ByteDropout, use_byte_dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_probability_mean_and_gradient(p: float) -> None:
    x = torch.ones(1000, 333, requires_grad=True)  # 333: the last draw is used in part
    y = ByteDropout(p)(x)
    rounded = round(256 * p) / 256
    assert (y == 0).float().mean().item() == pytest.approx(rounded, abs=4e-3)
    torch.testing.assert_close(y[y > 0].unique(), torch.tensor([1 / (1 - rounded)]))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)  # of ones: the mask and its scale


def test_neighbours_are_independent() -> None:
    kept = (ByteDropout(0.5)(torch.ones(200_000, 2)) > 0).float()
    assert torch.corrcoef(kept.T)[0, 1].abs() < 0.01
    assert torch.corrcoef(kept.view(-1, 16).T).fill_diagonal_(0).abs().max() < 0.03  # the bytes of two draws


def test_seeded() -> None:
    dropout, x = ByteDropout(0.3), torch.randn(50)
    torch.manual_seed(1)
    first = dropout(x)
    assert not torch.equal(dropout(x), first)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)


def test_does_nothing_in_evaluation_or_at_zero() -> None:
    x = torch.randn(4, 5)
    assert ByteDropout(0.5).eval()(x) is x
    assert ByteDropout(0.0)(x) is x
    assert ByteDropout(0.3)(x.bfloat16()).dtype == torch.bfloat16
    assert ByteDropout(0.3)(x[:0]).shape == (0, 5)


def test_gradcheck() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    dropout = ByteDropout(0.4)

    def fixed(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return dropout(x)

    assert torch.autograd.gradcheck(fixed, (x,))


def test_replaces_those_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.1))).eval()
    assert use_byte_dropout(model) == 2
    assert isinstance(model[1], ByteDropout) and model[1].p == 0.3 and not model[1].training
    assert use_byte_dropout(model) == 0


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_refuses(p: float) -> None:
    with pytest.raises(ValueError, match="p is"):
        ByteDropout(p)
