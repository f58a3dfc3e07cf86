"""linear_cross_entropy against the same formula written with plain torch operations, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.training import linear_cross_entropy

N, d, V = 11, 7, 13


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, r_drop: float) -> Tensor:
    logits = hidden @ weight.T
    if r_drop == 0:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    p, q = logits.log_softmax(-1).split(len(labels))
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()
    return F.cross_entropy(logits, labels.repeat(2), label_smoothing=smoothing) + r_drop / 4 * divergence


def inputs(r_drop: float, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rows = 2 * N if r_drop else N
    hidden = (scale * torch.randn(rows, d, dtype=dtype)).requires_grad_()
    weight = torch.randn(V, d, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(V, (N,))


@pytest.mark.parametrize("r_drop", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.1, 1.0, 60.0])  # 60: logits beyond SAFE_EXPONENT take the other branch
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_agrees_with_plain_autograd(r_drop: float, smoothing: float, scale: float, chunk: int) -> None:
    hidden, weight, labels = inputs(r_drop, scale)
    expected = plain(hidden, weight, labels, smoothing, r_drop)
    actual = linear_cross_entropy(hidden, weight, labels, smoothing=smoothing, r_drop=r_drop, chunk=chunk)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(3 * actual, (hidden, weight)),
        torch.autograd.grad(3 * expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * max(1.0, scale))


@pytest.mark.parametrize("r_drop", [0.0, 3.0])
def test_gradcheck(r_drop: float) -> None:
    hidden, weight, labels = inputs(r_drop)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, smoothing=0.1, r_drop=r_drop, chunk=4)

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@pytest.mark.parametrize("r_drop", [0.0, 5.0])
def test_float32_is_as_accurate_as_plain(r_drop: float) -> None:
    hidden, weight, labels = inputs(r_drop)
    exact = torch.autograd.grad(plain(hidden, weight, labels, 0.1, r_drop), (hidden, weight))
    small = [t.detach().float().requires_grad_() for t in (hidden, weight)]
    loss = linear_cross_entropy(*small, labels, smoothing=0.1, r_drop=r_drop, chunk=4)
    for ours, theirs in zip(torch.autograd.grad(loss, small), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_the_same_passes_have_no_divergence() -> None:
    hidden, weight, labels = inputs(0.0)
    once = linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(linear_cross_entropy(hidden.repeat(2, 1), weight, labels, r_drop=9.0), once)


def test_without_gradients_the_value_is_the_same() -> None:
    hidden, weight, labels = inputs(0.0)
    with_gradients = linear_cross_entropy(hidden, weight, labels)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, labels), with_gradients)


def test_a_bad_row_makes_the_loss_nan() -> None:
    hidden, weight, labels = inputs(0.0)
    with torch.no_grad():
        hidden[3, 2] = torch.nan
        assert linear_cross_entropy(hidden, weight, labels).isnan()


@pytest.mark.parametrize(
    ("rows", "columns", "labels", "settings", "message"),
    [
        (4, d + 1, 4, {}, "they may be"),
        (4, d, 5, {}, "4 rows for 5 labels"),
        (4, d, 4, {"r_drop": 1.0}, "it may have 2 a label"),
        (0, d, 0, {}, "N of at least 1"),
        (4, d, 4, {"smoothing": 1.0}, "smoothing is 1.0"),
        (4, d, 4, {"r_drop": -1.0}, "r_drop is -1.0"),
        (4, d, 4, {"chunk": 0}, "chunk is 0"),
    ],
)
def test_refuses(rows: int, columns: int, labels: int, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(
            torch.zeros(rows, columns), torch.zeros(V, d), torch.zeros(labels, dtype=torch.int64), **settings
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_rows_agree_with_plain_autograd(smoothing: float) -> None:
    hidden, weight, labels = inputs(0.0)
    weights = torch.randn(N, dtype=torch.float64).index_fill(0, torch.tensor([2, 7]), 0)
    losses = F.cross_entropy(hidden @ weight.T, labels, label_smoothing=smoothing, reduction="none")
    actual = linear_cross_entropy(hidden, weight, labels, smoothing=smoothing, weights=weights, chunk=4)
    expected = (weights * losses).mean()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(actual, (hidden, weight))
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (hidden, weight)), rtol=1e-9, atol=1e-9)


def test_weights_do_not_go_with_r_drop() -> None:
    hidden, weight, labels = inputs(1.0)
    with pytest.raises(ValueError, match="weights is .* r_drop 0"):
        linear_cross_entropy(hidden, weight, labels, r_drop=1.0, weights=torch.ones(N))
