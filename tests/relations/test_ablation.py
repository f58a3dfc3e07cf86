"""ablate(): a head that is off adds nothing, in this library's models and in others', and comes back afterwards."""

import threading
from collections.abc import Callable, Collection

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import regard
from regard import Causal, Watch
from regard.transformer import MultiHeadAttention
from tests.models.small_translator import small_translator
from tests.relations.foreign import IDS, KINDS

TRANSLATE = (torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]]), torch.tensor([4, 3]), torch.tensor([[1, 7, 9], [1, 5, 0]]))


def without_columns(heads: Collection[int], size: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """A hook before an output projection: what these heads give it is 0."""

    def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0].clone()
        for head in heads:
            x[..., head * size : (head + 1) * size] = 0
        return (x,)

    return hook


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    off=st.sets(st.integers(0, 3)),
    kv_heads=st.sampled_from([1, 2, 4]),
    length=st.integers(1, 9),
)
def test_a_head_that_is_off_is_a_part_of_the_projection_that_is_zero(
    seed: int, off: set[int], kv_heads: int, length: int
):
    torch.manual_seed(seed)
    layer = MultiHeadAttention(16, 4, kv_heads=kv_heads)
    nn.init.normal_(layer.out.bias)
    x = torch.randn(2, length, 16)
    before = layer(x, mask=Causal())
    with regard.ablate(layer, {0: off}):
        ablated = layer(x, mask=Causal())
    assert torch.equal(layer(x, mask=Causal()), before)
    with torch.no_grad():
        for head in off:
            layer.out.weight[:, 4 * head : 4 * head + 4] = 0
    torch.testing.assert_close(ablated, layer(x, mask=Causal()), atol=1e-6, rtol=1e-5)
    assert off or torch.equal(ablated, before)


@pytest.mark.parametrize("how", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "projection", "heads"),
    [
        ("bert", "encoder.layer.{}.attention.output.dense", {0: [1, 3], 1: [0]}),
        ("gpt2", "transformer.h.{}.attn.c_proj", {1: [2]}),
        ("llama", "model.layers.{}.self_attn.o_proj", {0: [0, 1, 2, 3], 1: [3]}),
        ("t5", "decoder.block.{}.layer.1.EncDecAttention.o", {"decoder.block.1.layer.1.EncDecAttention": [1]}),
    ],
)
@torch.no_grad()
def test_models_of_transformers(name: str, projection: str, heads: dict[int | str, list[int]], how: str):
    kind = KINDS[name]
    model = kind.make(how)
    before = model(**kind.inputs)[0]
    with regard.ablate(model, heads):
        found = model(**kind.inputs)[0]
        attended = model(**kind.inputs, output_attentions=True)[0] if how == "eager" else found
    assert torch.equal(model(**kind.inputs)[0], before)
    for place, numbers in heads.items():
        module = model.get_submodule(projection.format(1 if isinstance(place, str) else place))
        module.register_forward_pre_hook(without_columns(numbers, 4))
    expected = model(**kind.inputs)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)
    assert float((expected - before).abs().max()) > 1e-2


def test_a_layer_number_is_every_attention_of_that_layer():
    model = small_translator()
    paths = ["encoder.blocks.0.attention", "decoder.blocks.0.attention", "decoder.blocks.0.cross_attention"]
    with regard.ablate(model, {0: [1]}):
        by_layer = model(*TRANSLATE)
    with regard.ablate(model, {path: [1] for path in paths}):
        by_path = model(*TRANSLATE)
    assert torch.equal(by_layer, by_path)
    for path in paths:
        part = model.get_submodule(path)
        part.out.register_forward_pre_hook(without_columns([1], part.head_size))
    torch.testing.assert_close(by_layer, model(*TRANSLATE), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", ["within", "around"])
@pytest.mark.parametrize("layers", [None, [1]])
@torch.no_grad()
def test_observing_a_model_whose_heads_are_off(order: str, layers: list[int] | None):
    kind = KINDS["gpt2"]
    for model, run in (
        (kind.make("sdpa"), lambda model: model(**kind.inputs)[0]),
        (small_translator(), lambda model: model(*TRANSLATE)),
    ):
        with regard.ablate(model, {0: [1]}):
            expected = run(model)
        if order == "within":
            with regard.ablate(model, {0: [1]}), regard.observe(model, layers=layers) as relations:
                found = run(model)
        else:
            with regard.observe(model, layers=layers) as relations, regard.ablate(model, {0: [1]}):
                found = run(model)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert {site.layer for site in relations.sites} == ({0, 1} if layers is None else {1})
        assert all(len(steps) == 1 for steps in relations.observations.values())


def test_two_ablations_add_up():
    model = small_translator()
    with regard.ablate(model, {0: [1], 1: [0]}):
        expected = model(*TRANSLATE)
    with regard.ablate(model, {0: [1]}), regard.ablate(model, {1: [0]}):
        assert torch.equal(model(*TRANSLATE), expected)


def test_generation_with_a_cache():
    model = KINDS["gpt2"].make("sdpa")
    given = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with regard.ablate(model, {0: [0, 1], 1: [2]}):
        found = model.generate(IDS[:1], **given)
    for layer, heads in ((0, [0, 1]), (1, [2])):
        model.transformer.h[layer].attn.c_proj.register_forward_pre_hook(without_columns(heads, 4))
    assert torch.equal(found, model.generate(IDS[:1], **given))


def test_no_gradient_reaches_a_head_that_is_off():
    layer = MultiHeadAttention(16, 4)
    with regard.ablate(layer, {0: [2]}):
        layer(torch.randn(1, 5, 16)).square().sum().backward()
    by_head = layer.qkv.weight.grad.reshape(3, 4, 4, 16).abs().amax((0, 2, 3))
    assert float(by_head[2]) == 0 and float(by_head[[0, 1, 3]].min()) > 0


def test_torch_layers_in_any_thread_and_no_other_model():
    torch.manual_seed(0)
    model, other = (nn.TransformerEncoderLayer(16, 4, batch_first=True).eval() for _ in range(2))
    x, found = torch.randn(2, 5, 16), []
    before = other(x)
    with regard.ablate(model, {"self_attn": [1]}):
        thread = threading.Thread(target=lambda: found.append(model(x)))
        thread.start()
        thread.join()
        assert torch.equal(other(x), before)
    with torch.no_grad():
        model.self_attn.out_proj.weight[:, 4:8] = 0
    torch.testing.assert_close(found[0], model(x), atol=1e-5, rtol=1e-5)


def test_everything_is_restored_after_an_exception():
    model = small_translator()
    message = r"heads is \[7\] for 'encoder.blocks.0.attention'; it has heads 0 … 1"
    with pytest.raises(ValueError, match=message), regard.ablate(model, {0: [7]}):
        model(*TRANSLATE)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with regard.observe(model, watch=Watch(top=1)) as relations:
        model(*TRANSLATE)
    assert len(relations.sites) == 6


class Open(nn.Module):
    """Attention with its softmax in the open."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


class Pooled(nn.Module):
    """An attention layer, and beside it a softmax that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(16, 4)
        self.score = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).mT.softmax(-1) @ self.attention(x)


def test_what_cannot_be_switched_off_is_said():
    x = torch.randn(1, 5, 16)
    model = Open()
    with (
        pytest.raises(RuntimeError, match="heads of '' cannot be switched off: it computes softmax in the open"),
        regard.ablate(model, {0: [0]}),
    ):
        model(x.clone().requires_grad_())
    with torch.no_grad(), regard.ablate(model, {0: [0]}):
        assert float(model(x).abs().max()) == 0
    layer = MultiHeadAttention(16, 4)
    heads = {0: [1], 3: [0], "layer": [1]}
    with (
        pytest.raises(RuntimeError, match="heads names 3, 'layer', where no attention was met"),
        regard.ablate(layer, heads),
    ):
        layer(x)
    with regard.ablate(layer, {3: [0]}):
        pass  # it never ran
    with pytest.warns(UserWarning, match="not switched off: '': what enters its softmax"):
        pooled = Pooled()
        with regard.ablate(pooled, {0: [1]}):
            pooled(x)
