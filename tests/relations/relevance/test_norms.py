"""Value norms are those of the vectors that the paper transforms one by one."""

from functools import partial

import pytest
import torch

import regard
from regard.attention import Causal
from regard.relations import summed_value_norm_weights, value_norm_weights
from regard.transformer import Decoder, Encoder
from tests.relations.foreign import KINDS, SMALL, of
from tests.relations.relevance.stacks import D_MODEL, HEADS, L, block, close, inputs_of_attention, own


def test_value_norms_of_bert_are_those_of_transformed_vectors():
    model = of("BertModel", "BertConfig", **SMALL, vocab_size=50)("eager")
    inputs = KINDS["bert"].inputs
    with torch.no_grad(), regard.observe(model) as relations:
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
    for number, layer in enumerate(model.encoder.layer):
        path, dense = f"encoder.layer.{number}.attention.self", layer.attention.output.dense
        for item in range(2):
            weights, x = output.attentions[number][item], output.hidden_states[number][item]
            added = torch.zeros(HEADS, 8, 8, 16)  # α f(x), head by head
            for head in range(HEADS):
                at = slice(4 * head, 4 * head + 4)
                value = x @ layer.attention.self.value.weight[at].T + layer.attention.self.value.bias[at]
                added[head] = weights[head, :, :, None] * (value @ dense.weight[:, at].T)
            rows, given = torch.tensor([0, 2, 4]), {"output_weight": dense.weight, "item": item}
            found = value_norm_weights(relations, path, rows=rows, **given)
            close(found, added.detach().norm(dim=-1)[:, rows])
            summed = summed_value_norm_weights(relations, path, rows=rows, **given)
            close(summed, added.detach().sum(0).norm(dim=-1)[rows])
            assert not found.requires_grad and not summed.requires_grad


def test_value_norms_of_a_causal_decoder_with_shared_key_heads():
    torch.manual_seed(2)
    model = Decoder([block(kv_heads=2)]).eval()
    x, attention = torch.randn(1, L, D_MODEL), model.blocks[0].attention
    run = partial(model, x, mask=Causal())
    for heads in (None, [3, 1]):
        with torch.no_grad(), regard.observe(model, heads=heads) as relations:
            run()
        path, numbers = relations.sites[0].path, relations.sites[0].head_numbers or range(HEADS)
        (given,) = inputs_of_attention(model, run)
        value = attention.qkv(given[0])[:, -8:].detach()  # two key heads of 4
        values = torch.stack([value[:, 4 * (h // 2) : 4 * (h // 2) + 4] for h in numbers])
        parts = torch.stack([attention.out.weight.detach()[:, 4 * h : 4 * h + 4].T for h in numbers])
        weights = relations.weights(path)
        plain = value_norm_weights(relations, path, rows=range(L))
        close(plain, weights * values.norm(dim=-1)[:, None])
        added = weights[..., None] * (values @ parts)[:, None]
        projected = {"rows": range(L), "output_weight": attention.out.weight}
        close(value_norm_weights(relations, path, **projected), added.norm(dim=-1))
        close(summed_value_norm_weights(relations, path, **projected), added.sum(0).norm(dim=-1))
        assert float(plain.triu(1).abs().sum()) == 0


@pytest.mark.parametrize("heads", [None, [3]])
def test_an_output_weight_that_does_not_fit(heads: list[int] | None):
    model = own(Encoder)
    with torch.no_grad(), regard.observe(model, heads=heads) as relations:
        model(torch.randn(1, L, D_MODEL))
    for weight in (torch.ones(16, 12), torch.ones(16, 17), torch.ones(16)):
        with pytest.raises(ValueError, match="output_weight has shape"):
            value_norm_weights(relations, "blocks.0.attention", rows=range(1), output_weight=weight)
