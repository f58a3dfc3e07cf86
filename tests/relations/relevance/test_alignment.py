"""Word alignment from cross-attention: equal to its definition, word by word."""

import pytest
import torch

import regard
import regard.transformer
from regard.attention import Watch, attend_observed
from regard.elements import Element
from regard.relations import Relations, Sequence, Site, align


def _relations(weights: torch.Tensor) -> Relations:
    """One cross-attention with exactly these weights, (H, Lt, Ls)."""
    source = Sequence(
        "source",
        "English",
        tuple(Element(i, s) for i, s in enumerate(["red", "dog", "s", "</s>"])),
        words=(Element(0, "red", span=(0, 3)), Element(1, "dogs", span=(4, 8))),
        word_of=(0, 1, 1, -1),
    )
    target = Sequence(
        "target",
        "German",
        tuple(Element(i, s) for i, s in enumerate(["<s>", "ro", "te", "Hunde"])),
        words=(Element(0, "rote", span=(0, 4)), Element(1, "Hunde", span=(5, 10))),
        word_of=(-1, 0, 0, 1),
    )
    relations = Relations([{"source": source, "target": target}])
    H, _, Ls = weights.shape
    # with orthonormal keys, a query of log-weights has exactly these weights
    query, key = weights.log()[None], torch.eye(Ls).expand(1, H, Ls, Ls)
    _, seen = attend_observed(query, key, key, scale=1.0, watch=Watch())
    site = Site("decoder.blocks.0.cross_attention", "cross", 0, H, "target", "source")
    relations.add(site, seen)
    return relations


def test_weights_are_summed_over_source_pieces_and_averaged_over_target_pieces_and_heads():
    torch.manual_seed(0)
    weights = torch.rand(2, 4, 4).softmax(-1)
    found = align(_relations(weights))
    mean = weights.mean(0)
    expected = torch.stack(
        [
            torch.stack([mean[1:3, 0].mean(), mean[1:3, 1:3].sum(-1).mean()]),
            torch.stack([mean[3, 0], mean[3, 1:3].sum()]),
        ]
    )
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=1e-5)
    assert [(t, s) for t, s, _ in found.links] == [(i, int(row.argmax())) for i, row in enumerate(expected)]
    assert found.to_dict()["links"][0]["weight"] == pytest.approx(float(expected[0].max()), abs=1e-5)
    assert "2004.14837" in found.method


def test_unshifted_alignment_reads_the_row_that_wrote_the_piece():
    torch.manual_seed(0)
    weights = torch.rand(1, 4, 4).softmax(-1)
    found = align(_relations(weights), shifted=False)
    # "Hunde" is element 3, written at row 2
    torch.testing.assert_close(found.weights[1, 0], weights[0, 2, 0], atol=1e-5, rtol=1e-5)


def test_what_has_no_alignment():
    layer = regard.transformer.MultiHeadAttention(8, 2)
    with regard.observe(layer) as relations:
        layer(torch.randn(1, 3, 8))
    with pytest.raises(ValueError, match="layer is -1; there are 0 layers of cross-attention"):
        align(relations)
    relations = _relations(torch.rand(1, 4, 4).softmax(-1))
    relations.sequences = [{}]
    with pytest.raises(ValueError, match="have no words to align"):
        align(relations)
