"""Attention computed in the open: followed from product to product where it can be, reported where not."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regard

B, H, L, D = 2, 3, 5, 4
CAUSAL = torch.ones(L, L, dtype=torch.bool).tril()
BIAS = torch.randn(H, L, L, generator=torch.Generator().manual_seed(3))


class Open(nn.Module):
    """Softmax in the open, its scores made from query and key (B, H, L, D) by a function."""

    def __init__(self, scores: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.scores, self.dropout, self.heads = scores, nn.Dropout(0.5), H

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, -1)
        weights = self.dropout(self.scores(q, k).softmax(-1))
        if weights.dim() == 3:
            v = v.flatten(0, 1)
        return weights @ v


def in_place(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT
    scores *= 0.3
    scores += BIAS
    return scores.masked_fill_(~CAUSAL, -torch.inf)


def capped(q: Tensor, k: Tensor) -> Tensor:
    return torch.tanh(q @ k.mT / 2 / 1.5) * 1.5 + torch.zeros(L, L).masked_fill(~CAUSAL, torch.finfo().min)


def windows(q: Tensor, k: Tensor) -> Tensor:
    scores = (q @ k.mT).view(1, B, H, L, L) + BIAS[None, :B, None]
    return scores.view(B, H, L, L)


SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": lambda q, k: q @ k.transpose(-1, -2),
    "scaled query": lambda q, k: (q / 2) @ k.mT,
    "divided by a tensor": lambda q, k: (q @ k.mT) / torch.tensor(D).sqrt(),
    "einsum": lambda q, k: torch.einsum("bhqd,bhkd->bhqk", q, k) * D**-0.5,
    "bias and scale": lambda q, k: (BIAS + q @ k.mT) * 0.5,
    "less its largest": lambda q, k: (s := q @ k.mT) - s.amax(-1, keepdim=True),
    "added mask": lambda q, k: q @ k.mT + torch.zeros(L, L).masked_fill(~CAUSAL, torch.finfo().min),
    "filled": lambda q, k: (q @ k.mT).masked_fill(~CAUSAL, -1e9),
    "where": lambda q, k: torch.where(CAUSAL, q @ k.mT, torch.tensor(-1e4)),
    "where not": lambda q, k: torch.where(~CAUSAL, -torch.inf, q @ k.mT),
    "in place": in_place,
    "capped": capped,
    "baddbmm": lambda q, k: torch.baddbmm(BIAS.repeat(B, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT, beta=2, alpha=0.5),
    "other leading dimensions": windows,
    "a factor a head": lambda q, k: (q @ k.mT) * torch.tensor([0.5, 2.0, 1.0])[:, None, None] + BIAS,
    "a factor a row": lambda q, k: (
        (q.flatten(0, 1) @ k.flatten(0, 1).mT).view(B, H, L, L) / torch.arange(1, L + 1)[:, None]
    ),
    "there and back": lambda q, k: torch.einsum("bhqd,bhkd->qkbh", q, k).permute(2, 3, 0, 1) + BIAS,
    "in float64": lambda q, k: (q @ k.mT).double().add(BIAS),
}


@pytest.mark.parametrize("gradient", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", SCORES)
def test_scores_are_followed(name: str, gradient: Callable[[], torch.no_grad]):
    torch.manual_seed(0)
    model = Open(SCORES[name]).train(name != "in float64")
    x = torch.randn(B, H, L, 3 * D, requires_grad=gradient is torch.enable_grad)
    if name == "in float64":
        model.scores = lambda q, k: SCORES[name](q, k).to(torch.float32)
    q, k, _ = x.detach().chunk(3, -1)
    exact = model.scores(q, k).softmax(-1).reshape(B, H, L, L)
    with gradient():
        torch.manual_seed(1)
        before = model(x)
        with warnings.catch_warnings(), regard.observe(model) as relations:
            warnings.simplefilter("error")
            torch.manual_seed(1)
            during = model(x)
    assert torch.equal(during, before)  # dropout and all: the model computes what it always does
    for item in range(B):
        torch.testing.assert_close(relations.weights("", item=item), exact[item], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "filled"])
def test_scores_in_half_precision(name: str):
    x = torch.randn(B, H, L, 3 * D, dtype=torch.bfloat16)
    model = Open(SCORES[name]).eval()
    with regard.observe(model) as relations:
        model(x)
    q, k, _ = x.float().chunk(3, -1)
    torch.testing.assert_close(relations.weights(""), SCORES[name](q, k).softmax(-1)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention_that_gives_its_weights(masked: bool, average: bool, training: bool):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(12, 3, batch_first=True).train(training)
    x, memory = torch.randn(B, L, 12), torch.randn(B, 7, 12)
    masks = {}
    if masked:
        masks = {
            "key_padding_mask": torch.arange(7) >= torch.tensor([[7], [4]]),
            "attn_mask": torch.zeros(L, 7).tril(-2),
        }
    before = model(x, memory, memory, average_attn_weights=average, **masks)
    with regard.observe(model) as relations:
        during = model(x, memory, memory, average_attn_weights=average, **masks)
    assert all(torch.equal(a, b) for a, b in zip(during, before, strict=True))
    assert relations.site("").kind == "cross"
    for item in range(B):
        found = relations.weights("", item=item)
        torch.testing.assert_close(found.mean(0) if average else found, before[1][item], atol=1e-6, rtol=1e-5)


class Pooling(nn.Module):
    """One learned score a position."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).mT.softmax(-1) @ x


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).relu().softmax(-1) @ x


class Exponentials(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.mT
        return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ x


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad((x @ x.mT).softmax(-1), (0, 2)) @ F.pad(x, (0, 0, 0, 2))


class OtherSide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT @ (x @ x.mT).softmax(-1)


class Linear(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-2) @ x


class Fused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x[None], x[None], x[None])[0]


class Flexible(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(x[None], x[None], x[None])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Pooling(), "what enters its softmax is no product of queries and keys"),
        (Sorted(), "its scores go through aten.relu"),
        (Exponentials(), "its softmax is put together from aten.exp"),
        (Padded(), "its weights go through aten.constant_pad_nd"),
        (OtherSide(), "its weights are the right-hand factor of a product"),
        (Linear(), "its softmax is over dimension -2"),
        (Fused(), "the fused operator aten::_scaled_dot_product_flash_attention_for_cpu computes it whole"),
        (Flexible(), "the fused operator flex_attention computes it whole"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_what_is_not_understood_is_reported(model: nn.Module, reason: str):
    whole, x = nn.ModuleDict({"a": model, "b": Open(SCORES["plain"])}), torch.randn(B, L, D)
    before = model(x)
    message = f"attention was not observed at 1 sites: a: {reason}"
    with pytest.warns(UserWarning, match=message) as warned, regard.observe(whole) as relations:
        torch.testing.assert_close(model(x), before)
        model(x)
        whole["b"](torch.randn(B, H, L, 3 * D))
    assert len([w for w in warned if "not observed" in str(w.message)]) == 1
    assert [*relations.missed] == ["a"] and reason in relations.missed["a"]
    assert [site.path for site in relations.sites] == ["b"]


@torch.no_grad()
def test_a_softmax_that_weighs_nothing_is_nobodys_attention():
    class Classifier(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            weights = super().forward(x).softmax(-1)  # a gate, which a layer mixes
            return F.log_softmax(weights @ self[0].weight, -1) + weights.sum(-1, keepdim=True)

    model = nn.ModuleList([Classifier(nn.Linear(D, 7)), Open(SCORES["plain"])]).eval()
    with warnings.catch_warnings(), regard.observe(model) as relations:
        warnings.simplefilter("error")
        model[0](torch.randn(B, D))
        model[1](torch.randn(B, H, L, 3 * D))
    assert not relations.missed and len(relations.sites) == 1
