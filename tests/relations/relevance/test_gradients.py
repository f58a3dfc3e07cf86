"""Gradient-weighted relevance equals its matrix form, with gradients of the weights themselves."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.attention import Causal
from regard.relations import attention_outputs, gradient_relevance, gradient_times_input
from regard.transformer import Decoder, Encoder
from tests.relations.foreign import KINDS, SMALL, Kind, of
from tests.relations.relevance.stacks import D_MODEL, HEADS, L, close, own

CLASSIFIER = Kind(
    of("BertForSequenceClassification", "BertConfig", **SMALL, vocab_size=50, num_labels=3),
    KINDS["bert"].inputs,
    {"attentions": "bert.encoder.layer.{}.attention.self"},
)


def matrix_relevance(weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """The paper's (L, L), of the weights and their gradients (H, L, L), in float64."""
    relevance = torch.eye(weights[0].shape[-1], dtype=torch.float64)
    for A, G in zip(weights, gradients, strict=True):
        relevance = relevance + (G.double() * A.double()).clamp(min=0).mean(0) @ relevance
    return relevance


@pytest.mark.parametrize("how", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("kind", "projection", "row"),
    [
        (CLASSIFIER, "bert.encoder.layer.{}.attention.output.dense", 0),
        (KINDS["llama"], "model.layers.{}.self_attn.o_proj", 4),
        (KINDS["gpt2"], "transformer.h.{}.attn.c_proj", 7),
    ],
    ids=["bert", "llama", "gpt2"],
)
def test_relevance_of_foreign_models_is_that_of_matrices(kind: Kind, projection: str, row: int, how: str):
    def answer(logits: Tensor, item: int) -> Tensor:
        return logits[item, 2] if logits.dim() == 2 else logits[item, row, 2]

    eager, model = kind.make("eager"), kind.make(how)
    expected = eager(**kind.inputs, output_attentions=True)
    path = kind.sites["attentions"]
    modules = {path.format(n): model.get_submodule(projection.format(n)) for n in range(2)}
    with regard.observe(model) as relations, attention_outputs(modules) as outputs:
        logits = model(**kind.inputs).logits
    assert not any(module._forward_pre_hooks for module in modules.values())
    for item in range(2):
        gradients = torch.autograd.grad(answer(expected.logits, item), expected.attentions, retain_graph=True)
        weights = [w[item].detach() for w in expected.attentions]
        product = matrix_relevance(weights, [g[item] for g in gradients]).float()
        found = gradient_relevance(relations, answer(logits, item), outputs, row, item=item)
        close(found.scores, product[row])
        assert float(found.scores.sum()) > 1.001  # the row itself is 1, and the layers add to it
        assert not found.scores.requires_grad and "2103.15679" in found.method


def test_relevance_through_some_heads_is_that_of_their_matrices():
    model, heads = CLASSIFIER.make("sdpa"), [1, 3]
    expected = CLASSIFIER.make("eager")(**CLASSIFIER.inputs, output_attentions=True)
    modules = {
        f"bert.encoder.layer.{n}.attention.self": layer.attention.output.dense
        for n, layer in enumerate(model.bert.encoder.layer)
    }
    with regard.observe(model, heads=heads) as relations, attention_outputs(modules) as outputs:
        logits = model(**CLASSIFIER.inputs).logits
    gradients = torch.autograd.grad(expected.logits[0, 2], expected.attentions)
    weights = [w[0, heads].detach() for w in expected.attentions]
    product = matrix_relevance(weights, [g[0, heads] for g in gradients]).float()
    close(gradient_relevance(relations, logits[0, 2], outputs, 0).scores, product[0])


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_relevance_of_our_stacks_is_that_of_matrices(kind: type[Encoder] | type[Decoder]):
    model, x = own(kind), torch.randn(1, L, D_MODEL)
    run = partial(model, x, mask=Causal() if kind is Decoder else None)
    modules = {f"blocks.{n}.attention": block.attention.out for n, block in enumerate(model.blocks)}
    with regard.observe(model) as relations, attention_outputs(modules) as outputs:
        answer = run()[0].square().mean()
    gradients, weights = [], []
    for n, block in enumerate(model.blocks):
        output = outputs[f"blocks.{n}.attention"]
        (grad,) = torch.autograd.grad(answer, [output], retain_graph=True)
        value = block.attention.qkv(block.attention_norm(_inputs(model, run)[n]))[0, :, 2 * D_MODEL :].detach()
        grad, value = (t.unflatten(-1, (HEADS, -1)).transpose(0, 1) for t in (grad[0], value))
        gradients.append(grad @ value.mT)
        weights.append(relations.weights(f"blocks.{n}.attention"))
    shares = torch.full((L,), 1 / L)
    found = gradient_relevance(relations, answer, outputs, shares)
    close(found.scores, (shares.double() @ matrix_relevance(weights, gradients)).float())


def _inputs(model: nn.Module, run: partial[Tensor]) -> list[Tensor]:
    """What enters each block."""
    found: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda _, args: found.append(args[0])) for block in model.blocks]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


def test_what_gradient_relevance_refuses():
    model, x = own(Encoder), torch.randn(1, L, D_MODEL)
    modules = {f"blocks.{n}.attention": block.attention.out for n, block in enumerate(model.blocks)}
    with regard.observe(model) as relations, attention_outputs(modules) as outputs:
        y = model(x)
    first = "blocks.0.attention"
    for message, answer, given in (
        (r"answer has shape \(16,\)", y[0, 0], outputs),
        ("must be one number that has a gradient", y[0, 0, 0].detach(), outputs),
        (rf"outputs has none for \['{first}'\]", y[0, 0, 0], {p: t for p, t in outputs.items() if p != first}),
        ("answer does not depend on the output of 'blocks.2.attention'", outputs[first].sum(), outputs),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_relevance(relations, answer, given, 0)
    wide = torch.cat([outputs[first]] * 2, -1)
    with pytest.raises(ValueError, match=r"outputs has shape \(1, 7, 32\) for 'blocks.0.attention'"):
        gradient_relevance(relations, y[0, 0, 0] + wide.sum(), {**outputs, first: wide}, 0)


def test_gradient_times_input_of_a_linear_answer_is_its_parts():
    torch.manual_seed(3)
    x, w = torch.randn(2, L, D_MODEL, requires_grad=True), torch.randn(L, D_MODEL)
    answer = (x[1] * w).sum()
    found = gradient_times_input(answer, x, item=1)
    close(found.scores, (x[1] * w).sum(-1).detach())
    close(found.scores.sum(), answer.detach())
    assert float(gradient_times_input(answer, x, item=0).scores.abs().sum()) == 0
    with pytest.raises(ValueError, match="answer does not depend on inputs"):
        gradient_times_input(answer, torch.randn(2, L, D_MODEL, requires_grad=True))
    with pytest.raises(ValueError, match="require a gradient"):
        gradient_times_input(answer, x.detach())


def test_gradient_times_input_of_a_model_is_the_change_along_its_embeddings():
    model = CLASSIFIER.make("sdpa").double()
    embedded = model.get_input_embeddings()(KINDS["bert"].inputs["input_ids"]).detach().requires_grad_()
    scores = gradient_times_input(model(inputs_embeds=embedded).logits[0, 1], embedded).scores
    with torch.no_grad():
        for element in (0, 3):
            step = torch.zeros_like(embedded)
            step[0, element] = embedded[0, element] * 1e-5
            ends = [float(model(inputs_embeds=embedded + sign * step).logits[0, 1]) for sign in (1, -1)]
            assert float(scores[element]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-6)
