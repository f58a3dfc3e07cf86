"""Alignment error rate: equal to sums by hand, and what must hold of any alignment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.relations import ReferencePair, alignment_scores, diagonal_links

PAIRS = [
    ReferencePair(3, 2, frozenset({(0, 0), (1, 1)}), frozenset({(2, 1)})),
    ReferencePair(2, 3, frozenset({(0, 2), (1, 0)})),
]
FOUND = [frozenset({(0, 0), (1, 0), (2, 1)}), frozenset({(0, 2), (1, 1)})]


def test_the_rates_are_the_sums_by_hand():
    """|A| = 5, |S| = 4; of A two links are sure and one more is possible; 9 of 10 words have a link."""
    found, diagonal, random = alignment_scores({"mine": FOUND}, PAIRS)
    assert found.error.value == pytest.approx(1 - (2 + 3) / (5 + 4))
    assert found.precision.value == pytest.approx(3 / 5)
    assert found.recall.value == pytest.approx(2 / 4)
    assert found.coverage.value == pytest.approx(9 / 10)
    # the diagonal: (0, 0), (1, 0), (2, 1) and (0, 0), (1, 2); two of them possible, one of these sure
    assert (diagonal.method, random.method) == ("diagonal", "random")
    assert diagonal.error.value == pytest.approx(1 - (1 + 2) / (5 + 4))
    assert found.beyond_diagonal.value == pytest.approx(found.error.value - diagonal.error.value)
    assert found.beyond_random.value == pytest.approx(found.error.value - random.error.value)
    assert diagonal.beyond_diagonal.low == diagonal.beyond_diagonal.high == 0
    assert found.to_dict()["error"]["value"] == found.error.value


def test_random_links_have_the_error_to_be_expected():
    """Ten words each, aligned one to one: a link at random is right once in ten times."""
    pairs = [ReferencePair(10, 10, frozenset((i, i) for i in range(10)))] * 5
    *_, random = alignment_scores({}, pairs, controls=400)
    assert random.error.value == pytest.approx(0.9, abs=0.01)
    assert alignment_scores({}, pairs)[0].error.value == 0  # the diagonal is right here


def test_intervals_are_over_pairs():
    good, bad = frozenset({(0, 0), (1, 1)}), frozenset({(0, 1), (1, 0)})
    pairs = [ReferencePair(2, 2, good)] * 100
    found, *_ = alignment_scores({"half": [good, bad] * 50}, pairs, seed=1)
    assert found.error.value == pytest.approx(0.5)
    assert found.error.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert found.error.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)
    assert alignment_scores({"half": [good, bad] * 50}, pairs, seed=1)[0] == found


links = st.frozensets(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1)


@given(links, links, links)
def test_what_holds_of_any_alignment(found: frozenset, sure: frozenset, more: frozenset):
    pair = ReferencePair(5, 4, sure, more)
    perfect, other, nothing, *_ = alignment_scores(
        {"perfect": [sure], "other": [found], "nothing": [frozenset()]}, [pair], resamples=2, controls=1
    )
    assert perfect.error.value == 0 and perfect.recall.value == perfect.precision.value == 1
    assert 0 <= other.error.value <= nothing.error.value == 1
    assert nothing.precision.value == nothing.coverage.value == 0
    strict, *_ = alignment_scores({"other": [found]}, [ReferencePair(5, 4, sure)], resamples=2, controls=1)
    assert other.error.value <= strict.error.value + 1e-12  # possible links only ever excuse
    harmonic = 2 * len(found & sure) / (len(found) + len(sure))
    assert strict.error.value == pytest.approx(1 - harmonic)  # with sure links alone it is 1 - F1


def test_the_diagonal_of_short_sentences():
    assert diagonal_links(1, 1) == {(0, 0)}
    assert diagonal_links(0, 3) == diagonal_links(3, 0) == frozenset()
    assert diagonal_links(1, 5) == {(0, 0)}


def test_what_they_refuse():
    with pytest.raises(ValueError, match=r"link \(0, 2\) is not in a pair of 1 and 2 words"):
        ReferencePair(1, 2, frozenset({(0, 2)}))
    with pytest.raises(ValueError, match=r"link \(9, 0\) of pair 1 is not in a pair of 2 and 3 words"):
        alignment_scores({"a": [frozenset(), frozenset({(9, 0)})]}, PAIRS)
    with pytest.raises(ValueError, match="found has 1 pairs for 'a'; the reference has 2"):
        alignment_scores({"a": FOUND[:1]}, PAIRS)
    with pytest.raises(ValueError, match="no sure link"):
        alignment_scores({}, [ReferencePair(1, 1, frozenset())])
    with pytest.raises(ValueError, match="controls is 0"):
        alignment_scores({"a": FOUND}, PAIRS, controls=0)
