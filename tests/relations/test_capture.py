"""observe(): every call of a model is seen, exactly, its outputs stay what they are, and nobody else is seen."""

import threading

import pytest
import torch

import regard
from regard import Watch
from regard.attention import reference
from regard.elements import Element
from regard.relations import Sequence
from regard.transformer import MultiHeadAttention
from tests.models.small_translator import small_translator

SOURCE = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])
LENGTHS = torch.tensor([4, 3])
TARGET = torch.tensor([[1, 7, 9], [1, 5, 0]])
TARGET_LENGTHS = torch.tensor([3, 2])


def test_outputs_stay_what_they_are_and_hooks_go():
    model = small_translator()
    before = model(SOURCE, LENGTHS, TARGET)
    with regard.observe(model) as relations:
        during = model(SOURCE, LENGTHS, TARGET)
    torch.testing.assert_close(during, before, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(SOURCE, LENGTHS, TARGET), before)
    assert [len(steps) for steps in relations.observations.values()] == [1] * 6
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_weights_are_those_of_the_layer():
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 4, kv_heads=2)
    x = torch.randn(2, 7, 16)
    with regard.observe(layer) as relations:
        layer(x, mask=regard.Causal())
    q, k, _ = layer.qkv(x).split((16, 8, 8), -1)
    query, key = (t.unflatten(-1, (-1, 4)).transpose(1, 2).double() for t in (q, k))
    exact = reference.scores(query, key, mask=regard.Causal())
    torch.testing.assert_close(relations.weights("", item=1).double(), exact[1], atol=1e-6, rtol=1e-5)
    rows = relations.weights("", heads=[2], rows=torch.tensor([6, 0]), item=0)
    torch.testing.assert_close(rows.double(), exact[0, [2]][:, [6, 0]], atol=1e-6, rtol=1e-5)


def test_sites_know_their_kind_layer_and_sequences():
    source = Sequence("source", "English", tuple(Element(i, str(i)) for i in range(4)))
    target = Sequence("target", "German", tuple(Element(i, str(i)) for i in range(3)))
    model = small_translator()
    with regard.observe(model, elements={"encoder": source, "decoder": target}) as relations:
        model(SOURCE, LENGTHS, TARGET)
    found = [(s.path, s.kind, s.layer, s.heads, s.query, s.key, s.part) for s in relations.sites]
    assert found[0] == ("encoder.blocks.0.attention", "self", 0, 2, "source", "source", "encoder")
    assert found[1][2] == 1
    assert found[2] == ("decoder.blocks.0.attention", "self", 0, 2, "target", "target", "decoder")
    assert found[3] == ("decoder.blocks.0.cross_attention", "cross", 0, 2, "target", "source", "decoder")


def test_padding_is_left_out_of_an_item():
    sequences = [{"encoder": _sequence("source", n), "decoder": _sequence("target", m)} for n, m in ((4, 3), (3, 2))]
    model = small_translator()
    with regard.observe(model, elements=sequences) as relations:
        model(SOURCE, LENGTHS, TARGET, TARGET_LENGTHS)
    cross = "decoder.blocks.1.cross_attention"
    assert relations.weights(cross, item=1).shape == (2, 2, 3)
    torch.testing.assert_close(relations.weights(cross, item=1).sum(-1), torch.ones(2, 2))
    edges = list(relations.edges(item=1, site=cross))
    assert {e.query for e in edges} == {0, 1} and {e.key for e in edges} == {0, 1, 2}
    data = relations.to_dict(item=1)
    site = next(s for s in data["sites"] if s["path"] == cross)
    assert (len(site["entropy"][0]), len(site["received"][0])) == (2, 3)
    assert sum(site["received"][0]) == pytest.approx(2, abs=1e-5)


def test_edges_carry_the_exact_weights():
    model = small_translator()
    with regard.observe(model, watch=Watch(top=2)) as relations:
        model(SOURCE, LENGTHS, TARGET)
    frame = relations.to_frame()
    assert list(frame.columns) == ["item", "step", "site", "head", "query", "key", "weight"]
    for row in frame.sample(20, random_state=0).itertuples():
        exact = relations.observation(row.site).weights(torch.tensor([row.query]))
        assert float(exact[row.item, row.head, 0, row.key]) == pytest.approx(row.weight, abs=1e-6)


def test_only_the_observed_model_is_seen_in_any_thread():
    observed, other = small_translator(), small_translator()
    with regard.observe(observed) as relations:
        other(SOURCE, LENGTHS, TARGET)
        assert relations.sites == []
        thread = threading.Thread(target=lambda: observed(SOURCE, LENGTHS, TARGET))
        thread.start()
        thread.join()
    assert len(relations.sites) == 6


def test_everything_is_restored_after_an_exception():
    model = small_translator()
    with pytest.raises(ValueError, match="max_positions|positions"), regard.observe(model):
        model(torch.zeros(1, 100, dtype=torch.int64), torch.tensor([100]), TARGET[:1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    layer = MultiHeadAttention(16, 2)
    with regard.observe(layer) as relations:
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 3, 15))
        x = torch.randn(1, 2, 3, 8)
        regard.attend(x, x, x)  # outside the layer: the failed call must not have left its observer behind
    assert relations.sites == []


def test_several_passes_are_steps():
    layer = MultiHeadAttention(16, 2)
    with regard.observe(layer) as relations:
        layer(torch.randn(1, 3, 16))
        layer(torch.randn(1, 5, 16))
    assert relations.weights("", step=0).shape == (2, 3, 3)
    assert relations.weights("", step=1).shape == (2, 5, 5)
    assert {e.step for e in relations.edges()} == {0, 1}


def test_gradients_flow_through_an_observed_model():
    model = small_translator()
    model(SOURCE, LENGTHS, TARGET).square().sum().backward()
    plain = model.embedding.weight.grad.clone()
    model.zero_grad()
    with regard.observe(model) as relations:
        model(SOURCE, LENGTHS, TARGET).square().sum().backward()
    torch.testing.assert_close(model.embedding.weight.grad, plain, rtol=1e-3, atol=1e-4)
    assert not relations.observation("encoder.blocks.0.attention").logsumexp.requires_grad


def test_what_cannot_be_observed():
    linear = torch.nn.Linear(2, 2)
    with (
        pytest.warns(UserWarning, match="no attention was observed: Linear"),
        regard.observe(linear),
    ):
        linear(torch.ones(1, 2))
    layer = MultiHeadAttention(16, 2)
    with regard.observe(layer, watch=Watch(keep=False)) as relations:
        layer(torch.randn(1, 3, 16))
    with pytest.raises(ValueError, match="keep=False"):
        relations.weights("")
    with pytest.raises(KeyError, match="no attention was observed at 'x'"):
        relations.weights("x")


def _sequence(name: str, length: int) -> Sequence:
    return Sequence(name, name, tuple(Element(i, str(i)) for i in range(length)))


@pytest.mark.parametrize("gradients", [True, False])
def test_a_call_observed_in_some_heads_is_one_step(gradients: bool):
    layer = MultiHeadAttention(16, 4)
    with torch.set_grad_enabled(gradients), regard.observe(layer, heads=[1, 3]) as relations:
        layer(torch.randn(1, 7, 16))
    assert [seen.logsumexp.shape for seen in relations.observations[""]] == [(1, 2, 7)]
