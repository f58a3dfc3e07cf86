"""Rollout equals the paper's product of matrices, on this library's models and on others'."""

from functools import partial

import pytest
import torch
from torch import Tensor

import regard
from regard.attention import Causal, Padding, Watch, attend_observed
from regard.elements import Element
from regard.relations import Relations, Sequence, Site, rollout
from regard.transformer import Decoder, Encoder, MultiHeadAttention
from tests.relations.foreign import KINDS, field_of
from tests.relations.relevance.stacks import D_MODEL, HEADS, L, close, inputs_of_attention, own


def matrix_rollout(layers: list[Tensor], residual: float = 0.5) -> Tensor:
    """The paper's product of matrices, (L, L), of the weights (H, L, L) of each layer, in float64."""
    product = torch.eye(layers[0].shape[-1], dtype=torch.float64)
    for weights in layers:
        mixed = residual * torch.eye(len(product), dtype=torch.float64) + (1 - residual) * weights.double().mean(0)
        product = (mixed / mixed.sum(-1, keepdim=True)) @ product
    return product


def softmax_weights(attention: MultiHeadAttention, x: Tensor, allowed: Tensor) -> Tensor:
    """(H, L, L) from the projections themselves."""
    q, k, _ = attention.qkv(x).split([D_MODEL, D_MODEL, D_MODEL], -1)
    q, k = (t.unflatten(-1, (HEADS, -1)).transpose(0, 1) for t in (q, k))
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf).softmax(-1)


@pytest.mark.parametrize("residual", [0.5, 0.0, 0.9])
@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_rollout_of_our_stacks_is_the_product_of_matrices(kind: type[Encoder] | type[Decoder], residual: float):
    model, lengths = own(kind), torch.tensor([L, L - 2])
    mask, x = Padding(lengths, lengths), torch.randn(2, L, D_MODEL)
    run = partial(model, x, mask=mask if kind is Encoder else Causal() & mask)
    with torch.no_grad(), regard.observe(model) as relations:
        run()
    attentions = [b.attention for b in model.blocks]
    for item, n in enumerate(lengths.tolist()):
        allowed = torch.ones(n, n, dtype=torch.bool)
        allowed = allowed if kind is Encoder else allowed.tril()
        given = [t[item, :n] for t in inputs_of_attention(model, run)]
        with torch.no_grad():
            weights = [softmax_weights(a, t, allowed) for a, t in zip(attentions, given, strict=True)]
        expected = matrix_rollout(weights, residual).float()
        for row in range(n):
            found = rollout(relations, row, residual=residual, item=item).scores
            close(found[:n], expected[row])
            assert float(found[n:].abs().sum()) == 0
            assert float(found.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_of_foreign_models_is_the_product_of_matrices(kind: str):
    chosen = KINDS[kind]
    with torch.no_grad():
        expected = chosen.make("eager")(**chosen.inputs, output_attentions=True)
        model = chosen.make(chosen.implementations[0])
        with regard.observe(model) as relations:
            model(**chosen.inputs)
    for name, path in chosen.sites.items():
        if "cross" in name:
            continue
        under = path.split(".{}")[0]
        for item in range(2):
            product = matrix_rollout([w[item] for w in field_of(expected, name)]).float()
            given = chosen.inputs.get("attention_mask", torch.ones(2, len(product)))
            # a padded row may look at nothing in sdpa, and at all alike in eager
            real = given[item].bool() if given.shape[1] == len(product) else torch.ones(len(product), dtype=torch.bool)
            last = int(real.nonzero().max())
            close(rollout(relations, last, under=under, item=item).scores, product[last])
            shares = real / real.sum()
            close(rollout(relations, shares, under=under, item=item).scores, shares @ product)


def test_a_sink_and_a_row_that_sees_nothing_are_normalised_away():
    torch.manual_seed(1)
    relations, layers = Relations([{}]), []
    allowed = torch.ones(L, L, dtype=torch.bool)
    allowed[3] = False
    for layer in range(3):
        q, k, v = (torch.randn(1, HEADS, L, 5) for _ in range(3))
        sinks = torch.randn(HEADS)
        _, seen = attend_observed(q, k, v, mask=regard.Dense(allowed[None, None]), sink_logits=sinks, watch=Watch())
        scores = (q @ k.mT / 5**0.5).masked_fill(~allowed, -torch.inf)
        with_sink = torch.cat([scores, sinks[None, :, None, None].expand(1, -1, L, 1)], -1).softmax(-1)
        layers.append(with_sink[0, ..., :L])
        relations.add(Site(f"blocks.{layer}.attention", "self", layer, HEADS, "", ""), seen)
    expected = matrix_rollout(layers).float()
    for row in range(L):
        close(rollout(relations, row).scores, expected[row])
    close(rollout(relations, 3).scores, torch.eye(L)[3])


def test_rollout_says_what_it_is():
    model = own(Encoder)
    sequence = Sequence("text", "Text", tuple(Element(i, c) for i, c in enumerate("abcde")))
    with torch.no_grad(), regard.observe(model, elements={"": sequence}) as relations:
        model(torch.randn(1, L, D_MODEL), mask=Padding(torch.tensor([5]), torch.tensor([5])))
    found = rollout(relations)
    close(found.scores, rollout(relations, 4).scores)  # the last element, not the last row
    assert found.scores.shape == (5,)
    assert "2005.00928" in found.method and "row -1 through 3 layers" in found.method
    assert found.sites == tuple(f"blocks.{n}.attention" for n in range(3))
    assert found.to_dict()["sequence"]["title"] == "Text"
    scores = [score for _, score in found.top(3)]
    assert scores == sorted(found.scores.tolist(), reverse=True)[:3]


def test_what_rollout_refuses():
    model, x = own(Encoder), torch.randn(1, L, D_MODEL)
    with torch.no_grad(), regard.observe(model) as relations:
        model(x)
    for message, arguments in {
        "target is 7; there are rows 0 … 6": {"target": L},
        r"target has shape \(3,\)": {"target": torch.ones(3)},
        "residual is 1.0": {"residual": 1.0},
        "item is 1": {"item": 1},
        "no self-attention was observed under 'decoder'": {"under": "decoder"},
    }.items():
        with pytest.raises(ValueError, match=message):
            rollout(relations, **arguments)
    relations.missed["blocks.1.other"] = "it is fused"
    with pytest.raises(ValueError, match="not observed at"):
        rollout(relations)
    for message, settings in {
        r"layers \[1, 2\] were observed": {"layers": [1, 2]},
        "observed with keep=False": {"watch": Watch(keep=False)},
    }.items():
        with torch.no_grad(), regard.observe(model, **settings) as relations:
            model(x)
        with pytest.raises(ValueError, match=message):
            rollout(relations)
    with torch.no_grad(), regard.observe(model) as relations:
        model(x)
        model(x[:, :3])
    with pytest.raises(ValueError, match="observed 2 times"):
        rollout(relations)
    assert rollout(relations, step=0).scores.shape == (L,)
    assert rollout(relations, step=1).scores.shape == (3,)


def test_rollout_refuses_a_pass_that_continues_a_cache_and_two_stacks_at_once():
    llama, bart = KINDS["llama"], KINDS["bart"]
    model = llama.make("sdpa")
    with torch.no_grad(), regard.observe(model) as relations:
        model.generate(llama.inputs["input_ids"][:1], max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert rollout(relations, step=0).scores.shape == (8,)
    with pytest.raises(ValueError, match="has 1 rows of 10 keys"):
        rollout(relations, step=-1)
    model = bart.make("sdpa")
    with torch.no_grad(), regard.observe(model) as relations:
        model(**bart.inputs)
    with pytest.raises(ValueError, match="must be the path of one stack of layers"):
        rollout(relations)
