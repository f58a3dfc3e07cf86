"""The sampler's merges are the tokenizer's own, and its dropout is reproducible."""

import pytest

from regard.inputs.text import TextTokenizer
from regard.training.subwords import SubwordSampler

TEXTS = [
    "a man in a blue shirt is standing on a ladder",
    "two men are standing at a stove, preparing food.",
    "ein Mann in einem blauen Hemd steht auf einer Leiter",
    "zwei Männer stehen am Herd und bereiten Essen zu!",
] * 5


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train_bpe(TEXTS, 340)


def cuts(sampler: SubwordSampler, epoch: int) -> list[list[int]]:
    ragged = sampler.epoch(epoch)
    return [ragged[i].tolist() for i in range(len(ragged))]


def test_without_dropout_it_is_the_tokenizer(tokenizer: TextTokenizer) -> None:
    texts = [*TEXTS, "Übermut; naïve 3.14  €5 \u201equoted\u201c 犬"]
    sampler = SubwordSampler(tokenizer, texts, dropout=0.0)
    assert cuts(sampler, 4) == [ids[:-1] for ids in tokenizer.encode_batch(texts)]


def test_with_dropout_it_differs_by_epoch_and_is_reproducible(tokenizer: TextTokenizer) -> None:
    first = SubwordSampler(tokenizer, TEXTS, dropout=0.3, seed=1)
    again = SubwordSampler(tokenizer, TEXTS, dropout=0.3, seed=1)
    other = SubwordSampler(tokenizer, TEXTS, dropout=0.3, seed=2)
    assert cuts(first, 3) == cuts(again, 3)
    assert cuts(first, 3) != cuts(first, 4)
    assert cuts(first, 3) != cuts(other, 3)
    for text, ids in zip(TEXTS, cuts(first, 3), strict=True):
        assert tokenizer.decode(ids) == text
    plain = SubwordSampler(tokenizer, TEXTS, dropout=0.0)
    assert first.epoch(0).lengths.sum() > plain.epoch(0).lengths.sum()


def test_refuses(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match="dropout is 1.0"):
        SubwordSampler(tokenizer, TEXTS, dropout=1.0)
