"""ablate(edges=…): a query does not see a key, the other weights of its row grow in proportion, all else stays."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

import regard
from regard import Causal, Dense
from regard.attention import reference
from regard.transformer import MultiHeadAttention
from tests.models.small_translator import small_translator
from tests.relations.foreign import IDS, KINDS, LEFT

Cuts = list[tuple[int, int, int]]


def by_hand(patch: pytest.MonkeyPatch, run: Callable[[], Tensor], calls: dict[int, Cuts]) -> Tensor:
    """What a model under eager gives when its n-th softmax meets scores of -inf at these heads, queries and keys."""
    softmax, number = F.softmax, [0]

    def masked(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scores = scores.clone()
        for head, query, key in calls.get(number[0], []):
            scores[:, head, query, key] = -torch.inf
        number[0] += 1
        return softmax(scores, *args, **kwargs)

    with patch.context() as during:
        during.setattr(F, "softmax", masked)
        found = run()
    assert number[0] > max(calls)
    return found


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6),
    kv_heads=st.sampled_from([1, 2, 4]),
    mask=st.sampled_from([None, Causal()]),
)
def test_an_edge_that_is_cut_is_a_key_that_is_masked(seed: int, cuts: Cuts, kv_heads: int, mask: Causal | None):
    torch.manual_seed(seed)
    layer, x = MultiHeadAttention(16, 4, kv_heads=kv_heads), torch.randn(2, 7, 16, requires_grad=True)
    allowed = torch.ones(1, 4, 7, 7, dtype=torch.bool)
    for cut in cuts:
        allowed[(0, *cut)] = False
    whole = Dense(allowed) if mask is None else mask & Dense(allowed)
    q, k, v = layer.qkv(x).split((16, 4 * kv_heads, 4 * kv_heads), -1)
    query, key, value = (t.unflatten(-1, (-1, 4)).transpose(1, 2).double() for t in (q, k, v))
    weights = reference.scores(query, key, mask=whole)  # softmax
    expected = layer.out((weights @ value.repeat_interleave(4 // kv_heads, 1)).float().transpose(1, 2).flatten(2))
    before = layer(x, mask=mask)
    with regard.ablate(layer, edges=[(0, *cut) for cut in cuts]):
        found = layer(x, mask=mask)
        with torch.no_grad(), regard.observe(layer) as relations:
            observed = layer(x, mask=mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(observed, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(relations.weights("", item=1).double(), weights[1], atol=1e-6, rtol=1e-5)
    grad = torch.randn_like(found)
    for got, want in zip(
        *(torch.autograd.grad(t, [x, layer.qkv.weight], grad) for t in (found, expected)), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert torch.equal(layer(x, mask=mask), before)
    untouched = [row for row in range(7) if row not in {query for _, query, _ in cuts}]
    assert torch.equal(found[:, untouched], before[:, untouched])


NAMES = ("bert", "gpt2", "llama", "t5", "gptj", "falcon", "bloom")


@pytest.mark.parametrize(("name", "how"), [(name, how) for name in NAMES for how in KINDS[name].implementations])
@torch.no_grad()
def test_models_of_transformers(name: str, how: str, monkeypatch: pytest.MonkeyPatch):
    kind = KINDS[name]
    path = next(iter(kind.sites.values())).format(1)
    cuts = [(0, 4, 1), (0, 4, 2), (3, 6, 5), (2, 4, 1)]
    model, eager = kind.make(how), kind.make("eager")
    before = model(**kind.inputs)[0]
    expected = by_hand(monkeypatch, lambda: eager(**kind.inputs)[0], {1: cuts})
    edges = [(path, *cut) for cut in cuts]
    with regard.ablate(model, edges=edges):
        found = model(**kind.inputs)[0]
        with regard.observe(model) as within:
            model(**kind.inputs)
    with regard.observe(model, layers=[1]) as around, regard.ablate(model, edges=edges):
        observed = model(**kind.inputs)[0]
    assert torch.equal(model(**kind.inputs)[0], before)
    real = slice(3 if kind.inputs["attention_mask"] is LEFT else 0, None)  # "sdpa" fills rows of padding otherwise
    for output in (found, observed):
        torch.testing.assert_close(output[:, real], expected[:, real], atol=1e-5, rtol=1e-5)
    assert float((expected - before).abs().max()) > 1e-4
    for relations in (within, around):
        rows = relations.weights(path, heads=[0], rows=range(4, 5))[0, 0]
        assert rows[1] == rows[2] == 0 and float(rows.sum()) <= 1 + 1e-5


@pytest.mark.parametrize("name", ["gptj", "bloom"])
@torch.no_grad()
def test_heads_in_the_open(name: str):
    kind = KINDS[name]
    model, projection = kind.make("eager"), {"gptj": "attn.out_proj", "bloom": "self_attention.dense"}[name]
    with regard.ablate(model, {1: [2]}):
        found = model(**kind.inputs)[0]

    def without(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x[..., 8:12] = 0
        return (x, *args[1:])

    model.get_submodule(f"transformer.h.1.{projection}").register_forward_pre_hook(without)
    torch.testing.assert_close(found, model(**kind.inputs)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_queries_are_positions_where_there_is_a_cache():
    model, ids = KINDS["llama"].make("sdpa"), IDS[:1]
    edges = [(0, 1, 6, 2), (1, 3, 7, 5), (1, 0, 3, 1)]
    with regard.ablate(model, edges=edges):
        whole = model(ids).logits
        first = model(ids[:, :5], use_cache=True)
        rest = model(ids[:, 5:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, atol=1e-5, rtol=1e-5)
    assert float((model(ids).logits - whole).abs().max()) > 1e-4


def test_layers_paths_heads_and_contexts_add_up():
    model = small_translator()
    given = (torch.tensor([[5, 6, 7, 2]]), torch.tensor([4]), torch.tensor([[1, 7, 9]]))
    path = "decoder.blocks.1.cross_attention"
    with regard.ablate(model, {0: [1]}, edges=[(path, 0, 2, 1), ("encoder.blocks.0.attention", 1, 0, 3)]):
        expected = model(*given)
    with (
        regard.ablate(model, edges=[(path, 0, 2, 1)]),
        regard.ablate(model, {0: [1]}),
        regard.ablate(model, edges=[("encoder.blocks.0.attention", 1, 0, 3)]),
    ):
        torch.testing.assert_close(model(*given), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
def test_a_query_that_sees_nothing_more_gets_nothing(grad: bool):
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True).eval()
    x = torch.randn(1, 3, 16)
    edges = [("self_attn", 1, 2, key) for key in range(3)]
    with torch.set_grad_enabled(grad), regard.ablate(layer, edges=edges), regard.observe(layer) as relations:
        output = layer(x)
    assert bool(output.isfinite().all())
    weights = relations.weights("self_attn")
    assert float(weights[1, 2].sum()) == 0 and float(weights[0, 2].sum()) == pytest.approx(1)


class Open(nn.Module):
    """Attention with its softmax in the open."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


def test_what_cannot_be_cut_is_said():
    layer, x = MultiHeadAttention(16, 4), torch.randn(1, 5, 16)
    with pytest.raises(ValueError, match=r"edges has \(0, 1, -1, 2\); head, query and key are numbers from 0 on"):
        regard.ablate(layer, edges=[(0, 1, -1, 2)]).__enter__()
    wrong = r"edges has \(0, 4, 1, 2\) for ''; it has heads 0 … 3"
    with pytest.raises(ValueError, match=wrong), regard.ablate(layer, edges=[(0, 4, 1, 2)]):
        layer(x)
    missing = r"edges names \(0, 1, 5, 2\), \(0, 1, 2, 5\), \('x', 0, 0, 0\), where no attention was met"
    edges = [(0, 1, 5, 2), (0, 1, 2, 5), ("x", 0, 0, 0), (0, 0, 0, 0)]
    with pytest.raises(RuntimeError, match=missing), regard.ablate(layer, edges=edges):
        layer(x)
    message = "edges of '' cannot be switched off: it computes softmax in the open, where gradients would not follow"
    model = Open()
    with pytest.raises(RuntimeError, match=message), regard.ablate(model, edges=[(0, 0, 1, 2)]):
        model(x.requires_grad_())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
