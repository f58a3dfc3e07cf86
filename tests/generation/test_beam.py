"""Beam search against trying everything, against greedy search, and against itself in other batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.generation import Constraints, EncoderDecoderSteps, Hypothesis, beam_search
from tests.generation.table_model import TableSteps, every_hypothesis, scores_after
from tests.models.small_translator import small_translator

BOS, EOS = 1, 2
sentences = st.lists(st.integers(0, 10_000), min_size=1, max_size=5)
alphas = st.sampled_from([0.0, 0.6, 1.0, 2.0])


def search(names: list[int], limits: list[int], vocabulary: int, **settings) -> list[Hypothesis]:
    return beam_search(TableSteps(names, vocabulary, BOS), limits, eos=EOS, **settings)


@settings(max_examples=40)
@given(names=sentences, alpha=alphas, data=st.data())
def test_a_wide_beam_finds_what_trying_everything_finds(names: list[int], alpha: float, data: st.DataObject):
    vocabulary, banned = data.draw(st.sampled_from([(3, ()), (4, ()), (4, (0,)), (5, (0, BOS))]))
    limits = [data.draw(st.integers(1, 4)) for _ in names]
    found = search(names, limits, vocabulary, beams=128, alpha=alpha, constraints=Constraints(banned=banned))
    for name, limit, hypothesis in zip(names, limits, found, strict=True):
        every = every_hypothesis(name, vocabulary, limit, BOS, EOS, banned)
        scored = {ids: (total / ((5 + len(ids)) / 6) ** alpha, total) for ids, total in every}
        best = max(scored, key=scored.__getitem__)
        assert hypothesis.ids == best
        assert (hypothesis.score, hypothesis.log_probability) == pytest.approx(scored[best])


@given(names=sentences, limit=st.integers(1, 8), alpha=alphas)
def test_one_beam_is_greedy_search(names: list[int], limit: int, alpha: float):
    for name, hypothesis in zip(names, search(names, [limit] * len(names), 6, beams=1, alpha=alpha), strict=True):
        written: list[int] = []
        while EOS not in written:
            scores = scores_after(name, (BOS, *written), 6)
            written.append(EOS if len(written) + 1 == limit else int(scores.argmax()))
        assert hypothesis.ids == tuple(written)


@given(names=sentences, beams=st.integers(1, 6), alpha=alphas, data=st.data())
def test_results_do_not_depend_on_the_batch(names: list[int], beams: int, alpha: float, data: st.DataObject):
    limits = [data.draw(st.integers(1, 7)) for _ in names]
    together = search(names, limits, 7, beams=beams, alpha=alpha)
    alone = [search([n], [k], 7, beams=beams, alpha=alpha)[0] for n, k in zip(names, limits, strict=True)]
    assert together == alone
    order = data.draw(st.permutations(range(len(names))))
    shuffled = search([names[i] for i in order], [limits[i] for i in order], 7, beams=beams, alpha=alpha)
    assert shuffled == [together[i] for i in order]


@given(names=sentences, data=st.data())
def test_more_beams_find_no_worse_answer_than_greedy_search_among_everything(names: list[int], data: st.DataObject):
    """With every ended hypothesis compared by probability alone, a full beam cannot lose to a single one."""
    limits = [data.draw(st.integers(1, 4)) for _ in names]
    wide = search(names, limits, 4, beams=128, alpha=0.0)
    narrow = search(names, limits, 4, beams=1, alpha=0.0)
    assert all(w.score >= n.score - 1e-9 for w, n in zip(wide, narrow, strict=True))


def test_finished_sentences_leave_the_batch():
    names = list(range(12))
    steps = TableSteps(names, 5, BOS)
    found = beam_search(steps, [3, 20] * 6, eos=EOS, beams=3)
    assert steps.rows_per_step[0] == 12  # one beginning a sentence, not one a beam
    assert steps.rows_per_step[1] <= 36
    assert steps.rows_per_step[3] <= 18  # half of them had at most three pieces
    assert len(steps.rows_per_step) < 20  # nothing live could win any more
    assert len(steps.rows_per_step) >= max(len(h.ids) for h in found)


def test_scores_are_log_probabilities_over_the_length_penalty():
    (hypothesis,) = search([3], [6], 5, beams=4, alpha=0.7)
    total = sum(
        scores_after(3, (BOS, *hypothesis.ids[:i]), 5).log_softmax(0)[piece].item()
        for i, piece in enumerate(hypothesis.ids)
    )
    assert hypothesis.log_probability == pytest.approx(total)
    assert hypothesis.score == pytest.approx(total / ((5 + len(hypothesis.ids)) / 6) ** 0.7)


def test_no_sentence():
    assert beam_search(TableSteps([], 5, BOS), [], eos=EOS) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beams": 0}, "beams is 0: it must be at least 1"),
        ({"alpha": -1.0}, "alpha is -1.0: it must be at least 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"constraints": Constraints(banned=(2,))}, "banned holds 2, the end piece"),
        ({"limits": [0]}, r"limits are \[0\]"),
    ],
)
def test_settings_that_make_no_sense(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        beam_search(TableSteps([1], 5, BOS), **({"limits": [4], "eos": EOS} | changes))


@pytest.fixture(scope="module", params=["sinusoidal", "rotary"])
def model(request: pytest.FixtureRequest):
    return small_translator(positions=request.param).double()


LENGTHS = torch.tensor([6, 1, 4, 6, 2])


@torch.no_grad()
def translate(model, source: torch.Tensor, lengths: torch.Tensor, *, cached: bool = True, beams: int = 4):
    steps = EncoderDecoderSteps(model, source, lengths, cached=cached)
    return beam_search(steps, lengths * 2 + 3, eos=EOS, constraints=Constraints(banned=(0, BOS)), beams=beams)


def same(first: list[Hypothesis], second: list[Hypothesis]) -> None:
    assert [h.ids for h in first] == [h.ids for h in second]
    assert [h.score for h in first] == pytest.approx([h.score for h in second])


@pytest.mark.parametrize("beams", [1, 4])
def test_cached_equals_uncached(model, beams: int):
    source = torch.randint(4, 300, (5, 6))
    cached = translate(model, source, LENGTHS, beams=beams)
    assert len({h.ids for h in cached}) > 1
    same(cached, translate(model, source, LENGTHS, beams=beams, cached=False))


def test_a_translator_does_not_mind_the_batch(model):
    source = torch.randint(4, 300, (5, 6))
    together = translate(model, source, LENGTHS)
    alone = [translate(model, source[i : i + 1, :n], LENGTHS[i : i + 1])[0] for i, n in enumerate(LENGTHS.tolist())]
    same(together, alone)


def test_the_same_twice(model):
    source = torch.randint(4, 300, (5, 6))
    assert translate(model, source, LENGTHS) == translate(model, source, LENGTHS)


@settings(max_examples=30)
@given(name=st.integers(0, 10_000), limit=st.integers(1, 4), ends=st.sets(st.integers(0, 4), max_size=3), alpha=alphas)
def test_with_several_ends_or_none_a_wide_beam_finds_what_trying_everything_finds(
    name: int, limit: int, ends: set[int], alpha: float
):
    """Nothing has to end at the limit: it is cut off there."""
    scored: dict[tuple[int, ...], float] = {}
    stack: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while stack:
        written, total = stack.pop()
        for piece, log in enumerate(scores_after(name, (BOS, *written), 5).log_softmax(0).tolist()):
            longer = (*written, piece)
            if piece in ends or len(longer) == limit:
                scored[longer] = (total + log) / ((5 + len(longer)) / 6) ** alpha
            else:
                stack.append((longer, total + log))
    best = max(scored, key=scored.__getitem__)
    steps = TableSteps([name], 5, BOS)
    found = beam_search(steps, [limit], eos=sorted(ends), beams=128, alpha=alpha, must_end=False)[0]
    assert found.ids == best
    assert found.score == pytest.approx(scored[best])
