"""Which parts of a prompt were used: segments of any observed model, by number or by name."""

import hypothesis.strategies as st
import pandas
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import regard
from regard import Causal, Watch, attend_observed
from regard.elements import Element
from regard.relations import Relations, SegmentShare, Sequence, Site
from tests.relations.foreign import IDS, KINDS, LEFT

TEXTS = {"first document": (0, 3), "second document": (3, 5), "question": (5, 7)}


def named(name: str, n: int) -> Sequence:
    """A sequence of n characters, an element each, the first three in a segment of its own, and so on."""
    elements = tuple(Element(i, "abcdefgh"[i], span=(i, i + 1)) for i in range(n))
    return Sequence(name, name, elements, text="abcdefgh"[:n]).with_segments(TEXTS)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma3"])
@torch.no_grad()
def test_models_of_transformers(name: str):
    """Shares of every row, and their mean, are those of the weights that the model gives under eager."""
    kind = KINDS[name]
    model, eager = kind.make("sdpa"), kind.make("eager")
    ids, mask = IDS[:2], LEFT
    expected = eager(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    sequences = [{"": named("x", 8)}, {"": named("x", 8)}]
    numbers = torch.tensor([0, 0, 0, 1, 1, 2, 2, -1])
    with regard.observe(model, elements=sequences) as by_name:
        model(input_ids=ids, attention_mask=mask)
    with regard.observe(model, watch=Watch(segments=numbers)) as by_number:
        model(input_ids=ids, attention_mask=mask)
    for relations, names in ((by_name, [*TEXTS]), (by_number, ["0", "1", "2"])):
        for site, weights in zip(relations.sites, expected, strict=True):
            for item, rows in ((0, range(8)), (1, range(3, 8))):  # left padding sees nothing, or what it likes
                mass = torch.stack([weights[item][..., numbers == s].sum(-1) for s in range(3)], -1)
                found = relations.segment_mass(site.path, item=item)
                torch.testing.assert_close(found[:, rows], mass[:, rows], atol=1e-5, rtol=0)
                table = [s for s in relations.segments(item=item, rows=rows) if s.site == site.path]
                assert [(s.head, s.segment, s.name) for s in table] == [
                    (h, *part) for h in range(4) for part in [*enumerate(names), (None, "")]
                ]
                shares = torch.tensor([s.share for s in table]).reshape(4, 4)
                torch.testing.assert_close(shares[:, :3], mass[:, rows].mean(1), atol=1e-5, rtol=0)
                torch.testing.assert_close(shares.sum(-1), torch.ones(4))
    frame = pandas.DataFrame(by_name.segments(rows=[-1]))
    assert [*frame.columns] == ["site", "head", "segment", "name", "share"]
    assert frame.groupby(["site", "head"])["share"].sum().to_numpy() == pytest.approx(1)


@torch.no_grad()
def test_cross_attention_has_the_segments_of_what_it_reads():
    kind = KINDS["t5"]
    model = kind.make("sdpa")
    source, target = named("source", 8), Sequence("target", "T", tuple(Element(i, "t") for i in range(5)))
    with regard.observe(model, elements={"encoder": source, "decoder": target}) as relations:
        model(**{name: tensor[:1] for name, tensor in kind.inputs.items()})
    seen = {site.path: relations.steps(site.path)[0].segment_mass for site in relations.sites}
    assert {path for path, mass in seen.items() if mass is None} == {
        f"decoder.block.{layer}.layer.0.SelfAttention" for layer in range(2)
    }
    cross = relations.segment_mass("decoder.block.1.layer.1.EncDecAttention")
    weights = relations.weights("decoder.block.1.layer.1.EncDecAttention")
    torch.testing.assert_close(cross[..., 0], weights[..., :3].sum(-1), atol=1e-6, rtol=1e-5)
    assert {share.site for share in relations.segments()} == {path for path, mass in seen.items() if mass is not None}


def test_what_is_written_belongs_to_no_segment():
    model = KINDS["llama"].make("sdpa")
    with regard.observe(model, elements={"": named("x", 8)}) as relations:
        model.generate(IDS[:1], max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    path = "model.layers.1.self_attn"
    assert [seen.segment_mass.shape[-1] for seen in relations.steps(path)] == [3] * 4
    weights = relations.steps(path)[3].weights()[0, :, -1]  # eleven keys, eight of them of the prompt
    shares = [s for s in relations.segments(rows=[-1]) if s.site == path and s.segment is None]
    assert [s.share for s in shares] == pytest.approx(weights[:, 7:].sum(-1).tolist(), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    numbers=st.lists(st.integers(-1, 3), min_size=6, max_size=6),
    rows=st.one_of(st.none(), st.lists(st.integers(-6, 5), min_size=1, max_size=4)),
    sink=st.booleans(),
)
def test_shares_are_those_of_the_exact_weights(seed: int, numbers: list[int], rows: list[int] | None, sink: bool):
    torch.manual_seed(seed)
    q, k = 3 * torch.randn(1, 2, 6, 4), 3 * torch.randn(1, 2, 6, 4)
    given = {"sink_logits": torch.randn(2)} if sink else {}
    watch = Watch(segments=torch.tensor(numbers))
    relations = Relations([{}])
    site = Site("a", "self", 0, 2, "", "", (3, 5))
    relations.add(site, attend_observed(q, k, k, mask=Causal(), watch=watch, **given)[1])
    weights = relations.weights("a")[:, list(range(6)) if rows is None else rows].mean(1)  # (H, Lk)
    for share in relations.segments(rows=rows):
        wanted = -1 if share.segment is None else share.segment
        of_segment = torch.tensor(numbers) == wanted
        head = [3, 5].index(share.head)
        assert share.share == pytest.approx(float(weights[head, of_segment].sum()), abs=1e-5)


def test_segments_of_a_text():
    words = ["<s>", "One", " two", " three", "four", "?"]
    spans = [None, (0, 3), (3, 7), (7, 13), (13, 17), (17, 18)]
    elements = tuple(Element(i, *pair) for i, pair in enumerate(zip(words, ["text"] * 6, spans, strict=True)))
    sequence = Sequence("x", "X", elements, text="One two threefour?")
    divided = sequence.with_segments({"a": (0, 6), "b": (6, 17), "empty": (30, 40)})
    assert divided.segment_of == (-1, 0, 0, 1, 1, -1)  # " two" shares three characters with the first, one with "b"
    assert [part.label for part in divided.segments] == ["a", "b", "empty"]
    assert divided.with_segments({}) == sequence
    assert Sequence.from_json(divided.to_json()) == divided and "segments" not in sequence.to_dict()
    with pytest.raises(ValueError, match="segment_of has 2 numbers; 'x' has 6 elements and 3 segments"):
        Sequence("x", "X", elements, segments=divided.segments, segment_of=(0, 1))
    with pytest.raises(ValueError, match="segment_of has other numbers than -1 … 2"):
        Sequence("x", "X", elements, segments=divided.segments, segment_of=(0, 1, 2, 3, 0, 0))


def test_an_empty_segment_has_no_share_and_none_is_an_error():
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True).eval()
    sequence = named("x", 4)  # its question has no element
    with regard.observe(layer, elements={"": sequence}) as relations:
        layer(torch.randn(1, 4, 16))
    assert SegmentShare("self_attn", 1, 2, "question", 0.0) in relations.segments()
    with regard.observe(layer) as relations:
        layer(torch.randn(1, 4, 16))
    with pytest.raises(ValueError, match="no segments were kept; observe with Watch"):
        relations.segments()
    with pytest.raises(ValueError, match="segment_mass of 'self_attn' was not kept"):
        relations.segment_mass("self_attn")
