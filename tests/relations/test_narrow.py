"""One entry of a batch and some heads, alone: the same weights as the whole call has there, and no others computed."""

import pytest
import torch

from regard.attention import (
    ALiBi,
    Causal,
    Dense,
    Documents,
    Padding,
    Prefix,
    RelativeBias,
    Watch,
    Window,
    attend_observed,
    strips,
)
from regard.attention.position import LogBuckets
from regard.relations import Relations, Site
from regard.relations.narrow import visible

B, H, HKV, L, D = 3, 4, 2, 7, 5
SITE = Site("layer", "self", 0, H, "", "")
LENGTHS = torch.tensor([7, 4, 6])


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CALLS = {
    "nothing": {},
    "padding": {"mask": Causal() & Padding(LENGTHS, LENGTHS)},
    "left padding": {"mask": Causal() & Padding(LENGTHS, LENGTHS, left=True)},
    "documents": {"mask": Documents(torch.tensor([[3, 4], [5, 2], [7, 0]])) & Window(2, 2)},
    "prefix": {"mask": Causal() | Prefix(torch.tensor([2, 0, 5]))},
    "dense": {"mask": Dense(tensor(B, H, L, L) > 0) | Causal()},
    "dense heads": {"mask": Dense(tensor(1, H, L, L) > 0)},
    "dense entries": {"mask": Dense(tensor(B, 1, 1, L) > 0)},
    "bias": {"bias": tensor(B, H, L, L)},
    "bias a head": {"bias": tensor(H, 1, L)},
    "forbidding bias": {"bias": tensor(B, 1, L, L).masked_fill(tensor(B, 1, L, L) > 0.5, -torch.inf)},
    "alibi": {"bias": ALiBi.standard(H), "mask": Causal()},
    "buckets": {"bias": RelativeBias(tensor(32, H), LogBuckets())},
    "starts": {"start": torch.tensor([0, 2, 1]), "mask": Causal(), "bias": ALiBi.standard(H)},
    "sinks": {"sink_logits": tensor(H), "softcap": 3.0, "scale": 0.7},
}


def observed(**call: object) -> Relations:
    relations = Relations([{}] * B)
    query, key, value = tensor(B, H, L, D), tensor(B, HKV, L, D), tensor(B, HKV, L, D + 1)
    relations.add(SITE, attend_observed(query, key, value, watch=Watch(), backend="fused", **call)[1])
    return relations


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("heads", [None, [2], [3, 0]])
def test_weights_are_those_of_the_whole_call(call: str, heads: list[int] | None):
    relations = observed(**CALLS[call])
    whole = relations.observation("layer").weights()
    for item in (0, 1, 2, -1):
        expected = whole[item] if heads is None else whole[item, heads]
        torch.testing.assert_close(relations.weights("layer", item=item, heads=heads), expected)
        rows = torch.tensor([4, 1])
        torch.testing.assert_close(relations.weights("layer", item=item, heads=heads, rows=rows), expected[:, rows])
    with pytest.raises(IndexError):
        relations.weights("layer", item=B)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_visible_is_what_has_weight(call: str):
    relations = observed(**CALLS[call])
    whole = relations.observation("layer").weights()  # of scores this small none vanishes
    for item in range(B):
        for rows in (range(L), range(2, 5)):
            seen = visible(relations.observation("layer"), item, rows)
            assert torch.equal(seen.expand(H, len(rows), L), whole[item, :, rows.start : rows.stop] > 0)


def test_no_more_is_computed_than_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    relations, sizes = observed(mask=Causal()), []
    scores = strips.scores

    def watched(request: object, strip: object) -> torch.Tensor:
        computed = scores(request, strip)
        sizes.append(tuple(computed.shape[:3]))
        return computed

    monkeypatch.setattr(strips, "scores", watched)
    relations.weights("layer", item=1, heads=[2], rows=range(3))
    assert sizes == [(1, 1, 3)]
    sizes.clear()
    relations.heads(item=2)
    assert sizes == [(1, H, L)]
