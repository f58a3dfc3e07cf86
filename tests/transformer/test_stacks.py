"""Blocks, encoder and decoder against torch's layers with the same weights, and with caches against without."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regard.attention import Causal, KVCache, Padding, Rotary, Window
from regard.transformer import Block, Decoder, DecoderCache, Encoder, FeedForward, LayerNorm, MultiHeadAttention
from tests.transformer.torch_twins import twin

D_MODEL, HEADS = 24, 3
LENGTHS = torch.tensor([5, 2, 4])


def block(*, cross: bool = False, norm_first: bool = True, activation: str = "relu", **attention) -> Block:
    made = Block(
        MultiHeadAttention(D_MODEL, HEADS, **attention),
        FeedForward(D_MODEL, 40, activation=activation),
        norm=partial(LayerNorm, D_MODEL),
        cross_attention=MultiHeadAttention(D_MODEL, HEADS, kind="cross") if cross else None,
        dropout=0.1,
        norm_first=norm_first,
    )
    for parameter in made.parameters():  # biases and norms too must count
        nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


def blocks(count: int = 2, **kind) -> list[Block]:
    return [block(**kind) for _ in range(count)]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_equals_torch(norm_first: bool, activation: str):
    ours = blocks(norm_first=norm_first, activation=activation)
    norm = LayerNorm(D_MODEL).double()
    x = torch.randn(3, 5, D_MODEL, dtype=torch.float64)
    padded = torch.arange(5) >= LENGTHS[:, None]
    y = Encoder(ours, norm)(x, mask=Padding(LENGTHS, LENGTHS))
    expected = x
    for layer in ours:
        expected = twin(layer, activation)(expected, src_key_padding_mask=padded)
    close(y[~padded], norm(expected)[~padded])


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_decoder_equals_torch(norm_first: bool, activation: str):
    ours = blocks(cross=True, norm_first=norm_first, activation=activation)
    x = torch.randn(3, 6, D_MODEL, dtype=torch.float64)
    memory = torch.randn(3, 5, D_MODEL, dtype=torch.float64)
    y = Decoder(ours)(x, memory, mask=Causal(), memory_mask=Padding(LENGTHS))
    expected = x
    causal = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    for layer in ours:
        expected = twin(layer, activation)(
            expected,
            memory,
            tgt_mask=causal,
            memory_key_padding_mask=torch.arange(5) >= LENGTHS[:, None],
        )
    close(y, expected)


cuts = st.lists(st.booleans(), min_size=6, max_size=6)


def chunks(cut: list[bool]) -> list[tuple[int, int]]:
    """0 … 7 cut into chunks."""
    ends = [i + 1 for i, here in enumerate(cut) if here] + [7]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@settings(max_examples=30)
@given(cut=cuts, rotary=st.booleans(), kv_heads=st.sampled_from([1, 3]))
def test_cached_decoding_in_any_chunking_equals_the_uncached_pass(cut: list[bool], rotary: bool, kv_heads: int):
    made = blocks(cross=True, kv_heads=kv_heads, rotary=Rotary(8) if rotary else None)
    decoder = Decoder(made, LayerNorm(D_MODEL).double())
    x = torch.randn(3, 7, D_MODEL, dtype=torch.float64)
    memory = torch.randn(3, 5, D_MODEL, dtype=torch.float64)
    masks = {"mask": Causal(), "memory_mask": Padding(LENGTHS)}
    cache = DecoderCache.empty(2)
    parts = []
    for first, stop in chunks(cut):
        given_memory = memory if first == 0 else None  # the cache holds it from the first call on
        parts.append(decoder(x[:, first:stop], given_memory, start=first, cache=cache, **masks))
    assert cache.length == 7
    assert cache.nbytes > 0
    close(torch.cat(parts, 1), decoder(x, memory, **masks))


@settings(max_examples=30)
@given(cut=cuts)
def test_sliding_window_with_ring_cache_equals_the_uncached_pass(cut: list[bool]):
    decoder = Decoder(blocks(rotary=Rotary(8)))
    x = torch.randn(2, 7, D_MODEL, dtype=torch.float64)
    cache = KVCache.ring(2, window=3)
    parts = [
        decoder(x[:, first:stop], start=first, cache=cache, mask=Window(left=2, right=0)) for first, stop in chunks(cut)
    ]
    close(torch.cat(parts, 1), decoder(x, mask=Window(left=2, right=0)))


@pytest.mark.parametrize("cached", [False, True])
def test_beams_share_the_memory_of_their_sentence(cached: bool):
    decoder = Decoder(blocks(cross=True))
    x = torch.randn(6, 4, D_MODEL, dtype=torch.float64)  # two beams of each of three sentences
    memory = torch.randn(3, 5, D_MODEL, dtype=torch.float64)
    cache = DecoderCache.empty(2) if cached else None
    y = decoder(x, memory, mask=Causal(), memory_mask=Padding(LENGTHS), cache=cache)
    repeated = Padding(LENGTHS.repeat_interleave(2))
    close(y, decoder(x, memory.repeat_interleave(2, 0), mask=Causal(), memory_mask=repeated))
    if cache is not None:
        keys, _ = cache.memory[0].kept
        assert keys.shape[0] == 3


def test_gradients_reach_every_parameter():
    decoder = Decoder(blocks(cross=True), LayerNorm(D_MODEL).double())
    x, memory = torch.randn(2, 3, D_MODEL, dtype=torch.float64), torch.randn(2, 4, D_MODEL, dtype=torch.float64)
    decoder(x, memory, mask=Causal()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_dropout_is_for_training():
    encoder = Encoder(blocks())
    x = torch.randn(2, 3, D_MODEL, dtype=torch.float64)
    assert torch.equal(encoder(x), encoder(x))
    encoder.train()
    assert not torch.equal(encoder(x), encoder(x))


def test_wrong_parts_are_refused():
    attention, cross = MultiHeadAttention(8, 2), MultiHeadAttention(8, 2, kind="cross")
    norm = partial(LayerNorm, 8)
    with pytest.raises(ValueError, match="attention is of kind 'cross': it must be \"self\""):
        Block(cross, FeedForward(8, 8), norm=norm)
    with pytest.raises(ValueError, match="cross_attention is of kind 'self': it must be \"cross\""):
        Block(attention, FeedForward(8, 8), norm=norm, cross_attention=attention)
    with pytest.raises(ValueError, match="this block has no cross_attention"):
        Block(attention, FeedForward(8, 8), norm=norm)(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))


@settings(max_examples=40)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    window=st.none() | st.integers(0, 4),
    kv_heads=st.sampled_from([1, 3]),
    norm_first=st.booleans(),
    head_norm=st.booleans(),
)
def test_the_last_positions_alone(data, lengths, window, kv_heads, norm_first, head_norm):
    """The same rows as those at the end of all, and the same cache: in pieces or at once, padded or not."""
    norm = partial(LayerNorm, 8) if head_norm else None
    made = blocks(kv_heads=kv_heads, rotary=Rotary(8), head_norm=norm, norm_first=norm_first)
    decoder = Decoder(made, LayerNorm(D_MODEL).double())
    x = torch.randn(2, sum(lengths), D_MODEL, dtype=torch.float64)
    mask = Causal() if window is None else Window(left=window, right=0)
    whole, parted = KVCache.dense(2), KVCache.dense(2)
    start = 0
    for length in lengths:
        part = x[:, start : start + length]
        padded = mask & Padding(torch.tensor([start + length, max(1, start + length - 2)]), left=True)
        last = data.draw(st.integers(1, length))
        expected = decoder(part, mask=padded, start=start, cache=whole)[:, -last:]
        close(decoder(part, mask=padded, start=start, cache=parted, last=last), expected)
        start += length
    for mine, other in zip(whole, parted, strict=True):
        assert mine.length == other.length == start
    y = torch.randn(2, 1, D_MODEL, dtype=torch.float64)
    close(decoder(y, mask=mask, start=start, cache=parted), decoder(y, mask=mask, start=start, cache=whole))


@pytest.mark.parametrize("last", [0, 6, -1])
def test_more_rows_than_there_are(last: int):
    with pytest.raises(ValueError, match=rf"last is {last}: it must be from 1 to the 5 rows of x"):
        Decoder(blocks())(torch.randn(1, 5, D_MODEL, dtype=torch.float64), mask=Causal(), last=last)


def test_last_rows_of_a_cross_attention():
    attention = MultiHeadAttention(D_MODEL, HEADS, kind="cross")
    x = torch.randn(1, 5, D_MODEL)
    with pytest.raises(ValueError, match='last is 2, but this attention is of kind "cross": it must be None'):
        attention(x, x, last=2)


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
@pytest.mark.parametrize("last", [None, 1, 2])
def test_a_hook_may_give_what_broadcasts_over_rows(part, last):
    """As one does who puts a mean in the place of what a sublayer gives."""
    decoder = Decoder(blocks())
    x = torch.randn(2, 5, D_MODEL, dtype=torch.float64)
    shown = slice(None) if last is None else slice(-last, None)
    for constant in (torch.zeros(1, 1, D_MODEL).double(), torch.tensor(0.0).double()):
        handles = [
            getattr(made, part).register_forward_hook(lambda *_, constant=constant: constant) for made in decoder.blocks
        ]
        expected = decoder(x, mask=Causal())
        assert expected.shape == x.shape
        close(decoder(x, mask=Causal(), last=last), expected[:, shown])
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("last", [1, 3])
def test_a_hook_may_give_all_rows_where_the_last_are_wanted(last):
    decoder = Decoder(blocks())
    x = torch.randn(2, 5, D_MODEL, dtype=torch.float64)
    patch = torch.randn(2, 5, D_MODEL, dtype=torch.float64)
    decoder.blocks[-1].attention.register_forward_hook(lambda *_: patch)
    close(decoder(x, mask=Causal(), last=last), decoder(x, mask=Causal())[:, -last:])


def test_no_block_leaves_the_last_rows():
    x = torch.randn(1, 5, D_MODEL)
    assert torch.equal(Decoder([])(x, last=2), x[:, -2:])


def test_modules_that_know_nothing_of_last_rows_serve_where_all_are_wanted():
    decoder = Decoder(blocks(1))
    x = torch.randn(1, 5, D_MODEL, dtype=torch.float64)
    decoder.blocks[0].attention.forward = lambda y, *, mask, bias, start, cache: y
    assert decoder(x, mask=Causal()).shape == x.shape
