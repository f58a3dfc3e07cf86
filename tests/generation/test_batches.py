"""Many texts at once: in order, the same as one by one, and never more at a time than the budgets permit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.generation import Hypothesis, batches, translate_ids
from tests.models.small_translator import small_tokenizer, small_translator

lengths = st.lists(st.integers(1, 64), max_size=40)


def sources(sizes: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    eos = small_tokenizer().eos
    return [[*torch.randint(4, 300, (n - 1,), generator=generator).tolist(), eos] for n in sizes]


@given(lengths, st.sampled_from([1, 5, 100]), st.integers(1, 300), st.integers(1, 4000))
def test_every_text_is_in_one_batch_within_the_budgets(sizes: list[int], beams: int, tokens: int, pieces: int):
    limits = [min(2 * n + 10, 64) for n in sizes]
    found = list(batches.plan(sizes, limits, beams=beams, batch_tokens=tokens, batch_pieces=pieces))
    assert sorted(i for batch in found for i in batch) == list(range(len(sizes)))
    for batch in found:
        read = len(batch) * max(sizes[i] for i in batch)
        written = len(batch) * beams * max(limits[i] for i in batch)
        assert len(batch) == 1 or (read <= tokens and written <= pieces)


@settings(max_examples=4)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.sampled_from([1, 4]))
def test_the_budgets_change_no_result(sizes: list[int], beams: int):
    model, tokenizer, ids = small_translator().double(), small_tokenizer(), sources(sizes)

    def found(**budgets: int) -> list[Hypothesis]:
        return translate_ids(model, tokenizer, ids, beams=beams, **budgets)

    together = found()
    for budgets in ({"batch_tokens": 1}, {"batch_pieces": 1}, {"batch_pieces": 400}):
        assert [h.ids for h in found(**budgets)] == [h.ids for h in together]
        assert [h.score for h in found(**budgets)] == pytest.approx([h.score for h in together])


def test_many_beams_are_searched_a_few_texts_at_a_time(monkeypatch: pytest.MonkeyPatch):
    widest: list[int] = []
    search = batches.beam_search

    def watched(steps: object, limits: torch.Tensor, **settings: int) -> list[Hypothesis]:
        widest.append(len(limits) * settings["beams"] * int(limits.max()))
        return search(steps, limits, **settings)

    monkeypatch.setattr(batches, "beam_search", watched)
    translate_ids(small_translator(), small_tokenizer(), sources([2] * 40), beams=100)
    assert len(widest) > 1 and max(widest) <= batches.BATCH_PIECES


def test_no_text():
    assert translate_ids(small_translator(), small_tokenizer(), []) == []
