"""How observe() finds attention outside this library, what it leaves alone, and what it says it could not see."""

import threading
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as imported

import regard
from regard import Watch
from tests.relations.foreign import IDS, KINDS, LEFT

E, H, L = 16, 4, 6


class OneOfMine(nn.Module):
    """A decoder layer with attention called by a name that was imported, grouped queries, and cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(E, E), nn.Linear(E, E), nn.Linear(E, E)

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (H, -1)).transpose(1, 2)
        k, v = self.kv(x if memory is None else memory).unflatten(-1, (4, -1)).transpose(1, 2).chunk(2, 1)
        causal = mask is None and memory is None
        return self.out(imported(q, k, v, mask, is_causal=causal, enable_gqa=True).transpose(1, 2).flatten(2))


def exact(layer: OneOfMine, x: Tensor, memory: Tensor | None, allowed: Tensor) -> Tensor:
    """The weights of the layer, by the definition."""
    q = layer.q(x).unflatten(-1, (H, -1)).transpose(1, 2)
    k = layer.kv(x if memory is None else memory).unflatten(-1, (4, -1)).transpose(1, 2)[:, :2].repeat_interleave(2, 1)
    return (q @ k.mT / 2).masked_fill(~allowed, -torch.inf).softmax(-1)


@pytest.fixture
def layer() -> OneOfMine:
    torch.manual_seed(1)
    return OneOfMine().eval()


@torch.no_grad()
def test_sdpa_by_an_imported_name(layer: OneOfMine):
    model, x = nn.Sequential(layer, layer), torch.randn(2, L, E)
    with regard.observe(model) as relations:
        model(x)
    assert [s.path for s in relations.sites] == ["0"]  # the same layer twice: two steps of one site
    causal = torch.ones(L, L, dtype=torch.bool).tril()
    for step, given in enumerate((x, layer(x))):
        torch.testing.assert_close(relations.weights("0", item=1, step=step), exact(layer, given, None, causal)[1])


@pytest.mark.parametrize("form", ["boolean", "added", "added a head"])
@torch.no_grad()
def test_masks_and_unequal_lengths(layer: OneOfMine, form: str):
    x, memory, allowed = torch.randn(2, L, E), torch.randn(2, 9, E), torch.rand(2, 1, L, 9) > 0.4
    mask = allowed if form == "boolean" else torch.zeros(2, 1, L, 9).masked_fill(~allowed, -torch.inf)
    bias = torch.zeros(())
    if form == "added a head":
        bias = torch.randn(1, H, L, 9)
        mask = mask + bias
    before = layer(x, memory, mask)
    with regard.observe(layer) as relations:
        during = layer(x, memory, mask)
    torch.testing.assert_close(during, before, atol=1e-5, rtol=1e-5)
    q = layer.q(x).unflatten(-1, (H, -1)).transpose(1, 2)
    k = layer.kv(memory).unflatten(-1, (4, -1)).transpose(1, 2)[:, :2].repeat_interleave(2, 1)
    weights = (q @ k.mT / 2 + bias).masked_fill(~allowed, -torch.inf).softmax(-1)
    torch.testing.assert_close(relations.weights("", item=0), weights[0], atol=1e-6, rtol=1e-5)
    assert relations.site("").kind == "cross"


@pytest.mark.parametrize("dimensions", [2, 3, 5])
@torch.no_grad()
def test_sdpa_of_other_dimensions(dimensions: int):
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return imported(x, x, x)

    x, plain = torch.randn(2, 3, 4, 5, 6)[(0,) * (5 - dimensions)], Plain()
    with regard.observe(plain) as relations:
        out = plain(x)
    torch.testing.assert_close(out, imported(x, x, x))
    heads = 1 if dimensions == 2 else 4
    assert relations.weights("").shape == (heads, 5, 5)
    weights = (x @ x.mT / 6**0.5).softmax(-1).reshape(-1, heads, 5, 5)
    torch.testing.assert_close(relations.weights("", item=len(weights) - 1), weights[-1])


def test_an_error_of_sdpa_stays_its_own(layer: OneOfMine):
    mask = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(RuntimeError) as alone:
        layer(torch.randn(1, L, E), None, mask)
    with pytest.raises(RuntimeError) as observed, regard.observe(layer):
        layer(torch.randn(1, L, E), None, mask)
    assert str(observed.value) == str(alone.value)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_torch_transformer(padded: bool, training: bool):
    torch.manual_seed(0)
    model = nn.Transformer(E, H, 2, 2, 32, dropout=0.0, batch_first=True).train(training)
    source, target = torch.randn(2, 7, E), torch.randn(2, 5, E)
    padding = torch.arange(7) >= torch.tensor([[7], [4]]) if padded else None
    masks = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5),
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
    }
    before = model(source, target, **masks)
    with regard.observe(model) as relations, warnings.catch_warnings():
        warnings.simplefilter("error")
        during = model(source, target, **masks)
    torch.testing.assert_close(during, before, atol=1e-5, rtol=1e-5)
    assert not relations.missed
    kinds = {site.path: site.kind for site in relations.sites}
    assert kinds == {
        **{f"{side}.layers.{i}.self_attn": "self" for side in ("encoder", "decoder") for i in range(2)},
        **{f"decoder.layers.{i}.multihead_attn": "cross" for i in range(2)},
    }
    attention = model.encoder.layers[0].self_attn
    _, weights = attention(source, source, source, key_padding_mask=padding, average_attn_weights=False)
    torch.testing.assert_close(relations.weights("encoder.layers.0.self_attn", item=1), weights[1])
    assert float(relations.weights("decoder.layers.1.self_attn").triu(1).abs().max()) == 0
    assert relations.weights("decoder.layers.1.multihead_attn").shape == (H, 5, 7)


@torch.no_grad()
def test_the_fast_path_is_off_meanwhile_and_comes_back():
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 32, batch_first=True), 2).eval()
    x, padding = torch.randn(2, L, E), torch.arange(L) >= torch.tensor([[L], [3]])
    before = layer(x, src_key_padding_mask=padding)
    with pytest.raises(KeyError, match="stop"), regard.observe(layer) as relations:
        during = layer(x, src_key_padding_mask=padding)
        raise KeyError("stop")
    assert len(relations.sites) == 2 and torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(during[~padding], before[~padding], atol=1e-5, rtol=1e-5)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with regard.observe(layer), regard.observe(layer):
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@torch.no_grad()
def test_other_models_and_other_code_are_not_seen(layer: OneOfMine):
    from transformers import modeling_utils

    look_up = modeling_utils.AttentionInterface.get_interface
    first, x = KINDS["llama"].make("eager"), torch.randn(1, L, E)
    second = type(first)(first.config).eval()  # shares the config
    second.load_state_dict(first.state_dict())
    expected = second(IDS).logits
    with regard.observe(first) as relations:
        torch.testing.assert_close(second(IDS).logits, expected, atol=0, rtol=0)
        layer(x)
        imported(x, x, x)
        assert relations.sites == []
        first(IDS)
    assert len(relations.sites) == 2
    assert first.config._attn_implementation == "eager"
    assert modeling_utils.AttentionInterface.get_interface is look_up


@torch.no_grad()
def test_threads_observe_each_its_own():
    models = [KINDS[name].make("sdpa") for name in ("llama", "bert")]
    found: dict[int, list[str]] = {}
    gate = threading.Barrier(2, timeout=60)

    @torch.no_grad()
    def run(number: int) -> None:
        with regard.observe(models[number], this_thread=True) as relations:
            for _ in range(5):
                gate.wait()
                models[number](IDS)
        found[number] = [site.path for site in relations.sites]
        assert all(len(steps) == 5 for steps in relations.observations.values())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    with warnings.catch_warnings(), regard.observe(models[0]) as both:
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {
        0: ["model.layers.0.self_attn", "model.layers.1.self_attn"],
        1: ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"],
    }
    assert both.sites == []  # the inner observer sees a call; the outer one sees what it leaves
    with regard.observe(models[0]) as relations:
        thread = threading.Thread(target=torch.no_grad()(models[0]), args=(IDS,))
        thread.start()
        thread.join()
    assert len(relations.sites) == 2


@torch.no_grad()
def test_layers_and_heads_are_chosen():
    model = KINDS["llama"].make("sdpa")
    before = model(IDS).logits
    with regard.observe(model) as everything:
        model(IDS)
    with regard.observe(model, layers=[1], heads={0: [0], 1: [3, 1]}) as relations:
        during = model(IDS).logits
    assert torch.equal(during, before)
    (site,) = relations.sites
    assert (site.path, site.heads, site.head_numbers) == ("model.layers.1.self_attn", 2, (1, 3))
    whole = everything.weights(site.path)
    torch.testing.assert_close(relations.weights(site.path), whole[[1, 3]])
    torch.testing.assert_close(relations.weights(site.path, heads=[3]), whole[[3]])
    assert {edge.head for edge in relations.edges()} == {1, 3}
    with pytest.raises(KeyError, match="head 0 .* was not observed"):
        relations.weights(site.path, heads=[0])
    with (
        pytest.raises(ValueError, match="heads is .4. for layer 0; it has heads 0 … 3"),
        regard.observe(model, heads=[4]),
    ):
        model(IDS)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.no_grad()
def test_generation_grows_a_step_at_a_time(name: str, cache: str | None):
    model = KINDS[name].make("sdpa")
    asked = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": cache, "eos_token_id": None}
    ids = model.generate(IDS, attention_mask=LEFT, **asked)
    with regard.observe(model) as relations:
        assert torch.equal(model.generate(IDS, attention_mask=LEFT, **asked), ids)
    with regard.observe(model) as at_once:
        model(ids[:, :-1], attention_mask=torch.cat((LEFT, LEFT.new_ones(2, 3)), 1))
    path = "model.layers.1.self_attn"  # the full one
    assert len(relations.observations[path]) == 4
    whole = at_once.observation(path)
    for step, row in enumerate((None, 8, 9, 10)):
        weights = relations.weights(path, item=1, step=step)
        rows = slice(3, 8) if row is None else slice(row, row + 1)
        expected = at_once.weights(path, item=1)[:, rows]
        weights = weights[:, 3:] if row is None else weights
        n = min(weights.shape[-1], expected.shape[-1])  # a static cache has room for what comes, its own rows less
        torch.testing.assert_close(weights[..., :n], expected[..., :n], atol=1e-5, rtol=0)
        assert float(weights[..., n:].abs().sum()) == 0
        distance = (
            relations.observation(path, step).mean_distance[1][:, 3:]
            if row is None
            else (relations.observation(path, step).mean_distance[1])
        )
        torch.testing.assert_close(distance, whole.mean_distance[1][:, rows], atol=1e-4, rtol=0)


def test_training_states_weights_before_dropout_and_gradients_flow():
    model = KINDS["bert"].make("eager")
    with regard.observe(model) as still:
        model(IDS)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    path = "encoder.layer.0.attention.self"
    with regard.observe(model) as relations:
        model(IDS).last_hidden_state.square().sum().backward()
    torch.testing.assert_close(relations.weights(path), still.weights(path))
    gradient = model.get_submodule(path).query.weight.grad
    assert gradient is not None and float(gradient.abs().max()) > 0
    assert not relations.observation(path).top_weights.requires_grad


def test_recomputed_passes_are_no_steps():
    model = KINDS["llama"].make("sdpa").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with regard.observe(model) as relations:
        model(IDS).logits.sum().backward()
    assert [len(steps) for steps in relations.observations.values()] == [1, 1]


@torch.no_grad()
def test_weights_that_a_model_is_asked_for_are_still_given():
    model = KINDS["bert"].make("eager")
    before = model(IDS, output_attentions=True)
    with regard.observe(model) as relations:
        during = model(IDS, output_attentions=True)
    for one, other in zip(during.attentions, before.attentions, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(relations.weights("encoder.layer.1.attention.self"), before.attentions[1][0])


@torch.no_grad()
def test_compiled_models_run_uncompiled_and_it_is_said():
    model = KINDS["llama"].make("sdpa")
    compiled = torch.compile(model, backend="eager")
    compiled(IDS)
    message = "LlamaForCausalLM is compiled; it runs uncompiled"
    with pytest.warns(UserWarning, match=message), regard.observe(compiled) as relations:
        compiled(IDS)
    assert [site.path for site in relations.sites] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    from torch._dynamo import eval_frame

    assert eval_frame._stance.stance == "default"


@torch.no_grad()
def test_a_site_that_was_misread_is_an_error(layer: OneOfMine, monkeypatch: pytest.MonkeyPatch):
    from regard.relations.capture.seeing import Seer

    read = Seer.request
    monkeypatch.setattr(Seer, "request", lambda self, *args, **kwargs: read(self, *args, **{**kwargs, "scale": 0.1}))
    for model, path, given in (
        (nn.Sequential(layer), "0", torch.randn(1, L, E)),
        (KINDS["bert"].make("eager"), "encoder.layer.0.attention.self", IDS),
    ):
        message = f"attention at '{path}' is not what it was read as: .* differ by"
        with pytest.raises(RuntimeError, match=message), regard.observe(model):
            model(given)


@torch.no_grad()
def test_segments_name_the_keys_of_the_prompt():
    model = KINDS["llama"].make("sdpa")
    segments = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    with regard.observe(model, watch=Watch(segments=segments)) as relations:
        model.generate(IDS, max_new_tokens=2, do_sample=False, eos_token_id=None)
    path = "model.layers.0.self_attn"
    mass, weights = relations.observation(path).segment_mass, relations.weights(path)
    torch.testing.assert_close(mass[0, :, :, 0], weights[..., :3].sum(-1))
    torch.testing.assert_close(mass[0, :, :, 1], weights[..., 3:8].sum(-1))
    assert mass.shape == (2, 4, 1, 2) and weights.shape == (4, 1, 9)


@torch.no_grad()
def test_scripted_traced_and_transformed_parts():
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    class Each(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(self[0])(x)

    x = torch.randn(2, H, L, E)
    scripted = torch.jit.script(Plain())
    with pytest.raises(ValueError, match="model is a RecursiveScriptModule"), regard.observe(scripted):
        pass
    for model, path, reason in (
        (nn.Sequential(scripted), "", "fused operator"),
        (nn.Sequential(torch.jit.trace(Plain(), x)), "0", "fused operator"),
        (Each(Plain()), "0", "it runs inside vmap"),
    ):
        expected = model(x)
        with pytest.warns(UserWarning, match="not observed at 1 sites"), regard.observe(model) as relations:
            torch.testing.assert_close(model(x), expected)
        assert [*relations.missed] == [path] and reason in relations.missed[path]


def test_an_interrupt_leaves_nothing_behind(layer: OneOfMine):
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(layer, Interrupted())
    with pytest.raises(KeyboardInterrupt), regard.observe(model) as relations:
        model(torch.randn(1, L, E))
    assert not _get_current_function_mode_stack() and not _get_current_dispatch_mode_stack()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    x = torch.randn(1, 2, 3, 8)
    regard.attend(x, x, x)
    assert [site.path for site in relations.sites] == ["0"] and len(relations.observations["0"]) == 1
    with regard.observe(layer) as relations:
        layer(torch.randn(1, L, E))
    assert len(relations.sites) == 1
