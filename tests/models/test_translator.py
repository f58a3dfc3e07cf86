"""The translator: masks, caches, initial values, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.models import Translator, TranslatorConfig
from regard.transformer import DecoderCache
from tests.models.small_translator import small_translator

LENGTHS = torch.tensor([6, 1, 4])


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(4, 300, shape)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


positions = pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])


@positions
@pytest.mark.parametrize("norm_first", [True, False])
def test_logits_have_the_vocabulary(positions: str, norm_first: bool):
    model = small_translator(positions=positions, norm_first=norm_first)
    logits = model(ids(3, 6), LENGTHS, ids(3, 5))
    assert logits.shape == (3, 5, model.config.vocab_size)
    assert logits.isfinite().all()
    assert 0.5 < Translator(model.config).eval()(ids(3, 6), LENGTHS, ids(3, 5)).std() < 2


@positions
def test_a_batch_equals_each_sentence_alone(positions: str):
    model = small_translator(positions=positions).double()
    source, target = ids(3, 6), ids(3, 5)
    together = model(source, LENGTHS, target)
    for i, length in enumerate(LENGTHS.tolist()):
        close(together[i : i + 1], model(source[i : i + 1, :length], LENGTHS[i : i + 1], target[i : i + 1]))


def test_target_lengths_change_no_real_piece():
    model = small_translator().double()
    source, target, target_lengths = ids(3, 6), ids(3, 5), torch.tensor([5, 2, 3])
    real = torch.arange(5) < target_lengths[:, None]
    close(model(source, LENGTHS, target, target_lengths)[real], model(source, LENGTHS, target)[real])


def test_a_later_piece_changes_nothing_before_it():
    model = small_translator()
    source, target = ids(3, 6), ids(3, 5)
    changed = target.clone()
    changed[:, 3] = 5
    before, after = model(source, LENGTHS, target), model(source, LENGTHS, changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


@settings(max_examples=20)
@given(first=st.integers(0, 3), second=st.integers(4, 5), positions=st.sampled_from(["sinusoidal", "rotary"]))
def test_cached_decoding_equals_the_uncached_pass(first: int, second: int, positions: str):
    model = small_translator(positions=positions).double()
    source, target = ids(3, 6), ids(3, 6)
    memory = model.encode(source, LENGTHS)
    caches = DecoderCache.empty(2, capacity=6)
    parts = []
    for start, stop in ((0, first), (first, second), (second, 6)):
        if start < stop:
            known = memory if not parts else None
            parts.append(model.decode(target[:, start:stop], known, LENGTHS, start=start, caches=caches))
    close(model.logits(torch.cat(parts, 1)), model(source, LENGTHS, target))


def test_one_embedding_for_source_target_and_output():
    model = small_translator()
    names = [name for name, _ in model.named_parameters() if "embedding" in name]
    assert names == ["embedding.weight"]
    assert "positions" not in model.state_dict()


def test_initial_embedding():
    weight = Translator(TranslatorConfig(vocab_size=2000, d_model=64)).embedding.weight
    assert weight.std().item() == pytest.approx(1 / 8, rel=0.02)


def test_it_learns():
    model = Translator(TranslatorConfig(20, d_model=32, encoder_layers=1, decoder_layers=1, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    source = torch.randint(3, 20, (8, 5))
    target_in = torch.cat([torch.ones(8, 1, dtype=torch.int64), source[:, :-1]], 1)
    lengths = torch.full((8,), 5)
    losses = []
    for _ in range(60):
        logits = model(source, lengths, target_in)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), source.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.full((1, 65), 4), torch.full((1, 2), 4), "source has 65 positions: this model takes at most 64"),
        (torch.full((1, 2), 4), torch.full((1, 65), 4), "target has 65 positions: this model takes at most 64"),
        (torch.full((1, 2), -1), torch.full((1, 2), 4), r"source holds the id -1: ids must be in \[0, 361\)"),
        (torch.full((1, 2), 4), torch.full((1, 2), 361), r"target holds the id 361: ids must be in \[0, 361\)"),
    ],
)
def test_what_does_not_fit_is_refused(source: torch.Tensor, target: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        small_translator()(source, torch.tensor([source.shape[1]]), target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "d_model is 16: it must be a multiple of the 3 heads"),
        ({"positions": "learned"}, "positions is 'learned'"),
        ({"encoder_layers": 0}, "encoder_layers is 0: it must be from 1 to 1,000"),
        ({"dropout": 1.0}, r"dropout is 1.0: it must be in \[0, 1\)"),
        ({"eos": 361}, "eos is 361: it must be an id below vocab_size 361"),
    ],
)
def test_configs_that_make_no_sense(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small_translator(**changes)
