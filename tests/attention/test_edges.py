"""Where attention has gone wrong before: signs of the scale, autocast, huge biases, layouts, what is kept."""

import pytest
import torch
from torch import Tensor

import regard
from regard import Causal, Documents, KVCache, Padding, RelativeBias, Watch, Window, attend, attend_observed
from regard.attention import LogBuckets, Rotary, strips
from regard.transformer import MultiHeadAttention

BACKENDS = ["fused", "reference"]


def _qkv(L: int = 9, D: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, 4, L, D).to(dtype) for _ in range(3))  # type: ignore[return-value]


@pytest.mark.parametrize("scale", [0.0, -0.3, -1.0])
def test_a_scale_of_zero_or_less(scale: float):
    q, k, v = _qkv()
    exact = attend(q.double(), k.double(), v.double(), mask=Causal(), scale=scale, backend="reference")
    torch.testing.assert_close(attend(q, k, v, mask=Causal(), scale=scale).double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_no_statistic(backend: str):
    q, k, v = _qkv(300)
    _, plain = attend_observed(q, k, v, watch=Watch(), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, cast = attend_observed(q, k, v, watch=Watch(), backend=backend)
        rows = cast.weights(rows=range(3))
        pulled = cast.pull(torch.arange(300.0))
    for name in ("entropy", "mean_position", "mean_distance", "logsumexp", "top_weights"):
        torch.testing.assert_close(getattr(cast, name), getattr(plain, name))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(pulled, plain.mean_position, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("low", [torch.finfo(torch.float32).min, -1e9])
def test_a_row_whose_every_bias_is_very_low_but_finite_is_a_row_like_others(low: float):
    q, k, v = _qkv(5)
    bias = torch.full((1, 1, 5, 5), low)
    bias[..., 2:, :] = 0
    outputs = [attend(q, k, v, bias=bias, backend=backend) for backend in BACKENDS]
    outputs += [attend_observed(q, k, v, bias=bias, backend=backend, watch=Watch())[0] for backend in BACKENDS]
    for output in outputs:
        torch.testing.assert_close(output[:, :, 2:], outputs[0][:, :, 2:], atol=1e-5, rtol=1e-5)
        weights_sum_to_one = output[:, :, :2] <= v.amax(2, keepdim=True) + 1e-5
        assert bool(weights_sum_to_one.all()) and bool((output[:, :, :2] != 0).any())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sink_of_minus_infinity_is_no_sink(backend: str):
    q, k, v = _qkv(4)
    mask = Padding(torch.tensor([0, 4]))
    sink = torch.full((4,), -torch.inf)
    torch.testing.assert_close(
        attend(q, k, v, mask=mask, sink_logits=sink, backend=backend), attend(q, k, v, mask=mask, backend=backend)
    )


def test_keys_in_any_layout_take_little_memory(monkeypatch: pytest.MonkeyPatch):
    q, k, v = _qkv(64)
    turned = k.mT.contiguous().mT
    assert turned.stride(-1) != 1
    given: list[Tensor] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, **more: object) -> Tensor:
        given.extend((query, key, value))
        return plain(query, key, value, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    torch.testing.assert_close(attend(q, turned, v), attend(q, k, v))
    assert all(t.stride(-1) == 1 for t in given)


def test_what_is_kept_stays_what_it_was():
    q, k, v = _qkv(6)
    table, start, lengths = torch.randn(32, 4), torch.tensor([1, 2]), torch.tensor([4, 6])
    mask, bias = Causal() & Padding(lengths), RelativeBias(table, LogBuckets())
    _, seen = attend_observed(q, k, v, mask=mask, bias=bias, start=start, watch=Watch())
    before = seen.weights()
    for tensor in (table, start, q, k, v):
        tensor.zero_()
    lengths.sub_(3)
    assert torch.equal(seen.weights(), before)


def test_a_batch_with_padding_is_trained_in_one_block(monkeypatch: pytest.MonkeyPatch):
    """Blocks are made for the mask's own tile, which has no heads, and only where that is large."""
    q, k, v = (torch.randn(16, 8, 128, 16, requires_grad=True) for _ in range(3))
    walked: list[int] = []
    plain = strips.walk
    monkeypatch.setattr(strips, "walk", lambda *a, **m: iter(_counted(list(plain(*a, **m)), walked)))
    attend(q, k, v, mask=Padding(torch.randint(1, 129, (16,))), backend="fused").sum().backward()
    assert walked == [1]


def _counted(blocks: list[strips.Strip], counts: list[int]) -> list[strips.Strip]:
    counts.append(len(blocks))
    return blocks


def test_rotary_tables_made_while_evaluating_serve_training():
    rotary, x = Rotary(8), torch.randn(1, 2, 5, 8, requires_grad=True)
    with torch.inference_mode():
        rotary(x)
    rotary(x).sum().backward()
    assert x.grad is not None
    for start in (-1, torch.tensor([-1])):
        with pytest.raises(ValueError, match="start is -1; rotary positions begin at 0"):
            rotary(x, start)


def test_a_ring_refuses_masks_that_count_from_the_beginning():
    layer, cache = MultiHeadAttention(16, 2), KVCache.ring(1, window=3)
    mask = Causal() & Window(left=2)
    for i in range(6):
        layer(torch.randn(1, 1, 16), mask=mask, start=i, cache=cache[0])
    with pytest.raises(ValueError, match="mask counts keys from the beginning"):
        layer(torch.randn(1, 1, 16), mask=mask & Documents([4, 4]), start=6, cache=cache[0])


def test_nested_observers_leave_nothing_behind():
    layer, x = MultiHeadAttention(16, 2), torch.randn(1, 3, 16)
    y = torch.randn(1, 2, 3, 8)
    with regard.observe(layer) as outer:
        with regard.observe(layer) as inner:
            layer(x)
            attend(y, y, y)
        assert (len(inner.sites), len(outer.sites)) == (1, 0)
        layer(x)
    attend(y, y, y)
    assert (len(inner.observations[""]), len(outer.observations[""])) == (1, 1)


def test_rows_are_not_chosen_for_a_whole_model():
    layer = MultiHeadAttention(16, 2)
    with (
        pytest.raises(ValueError, match="watch names rows"),
        regard.observe(layer, watch=Watch(rows=torch.tensor([0]))),
    ):
        pass
