"""Constraints exclude and force what transformers' processors of scores do, in texts of any length."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import generation as theirs

from regard.generation import Constraints
from regard.generation.constraints import NO_PIECE

V = 7
ids = st.integers(0, V - 1)
texts = st.lists(ids, min_size=1, max_size=9)


def changed(constraints: Constraints, text: list[int], count: int, *, last: bool = False, ends: Any = (2,)):
    scores = torch.arange(float(V)).log_softmax(0)[None]
    at_limit = torch.tensor([last])
    return scores, constraints(scores.clone(), torch.tensor([text]), count, at_limit, ends)


@settings(max_examples=60)
@given(text=texts, size=st.integers(1, 4), phrases=st.lists(st.lists(ids, min_size=2, max_size=3), max_size=4))
def test_repetitions_and_phrases(text: list[int], size: int, phrases: list[list[int]]):
    scores, found = changed(Constraints(no_repeat=size), text, 1)
    assert torch.equal(found, theirs.NoRepeatNGramLogitsProcessor(size)(torch.tensor([text]), scores.clone()))
    scores, found = changed(Constraints(phrases=tuple(map(tuple, phrases))), text, 1)
    if phrases:
        expected = theirs.NoBadWordsLogitsProcessor(phrases)(torch.tensor([text]), scores.clone())
        assert torch.equal(found, expected)


@settings(max_examples=60)
@given(
    text=texts, count=st.integers(0, 8), shortest=st.integers(0, 8), ends=st.lists(ids, max_size=3), last=st.booleans()
)
def test_lengths(text: list[int], count: int, shortest: int, ends: list[int], last: bool):
    """The text is a prompt and `count` pieces more."""
    count = min(count, len(text) - 1)
    prompt = len(text) - count
    scores, found = changed(Constraints(shortest=shortest), text, count, ends=ends)
    expected = scores.clone()
    if ends:
        expected = theirs.MinNewTokensLengthLogitsProcessor(prompt, shortest, ends)(torch.tensor([text]), scores)
    assert torch.equal(found, expected)
    scores, found = changed(Constraints(last=(3,)), text, count, last=last)
    longest = len(text) + 1 if last else len(text) + 2
    assert torch.equal(found, theirs.ForcedEOSTokenLogitsProcessor(longest, 3)(torch.tensor([text]), scores))


@given(banned=st.lists(ids, max_size=4), first=st.none() | ids, count=st.integers(0, 2))
def test_pieces(banned: list[int], first: int | None, count: int):
    text = torch.tensor([[1, 5, 4][: count + 1]])
    scores, found = changed(Constraints(banned=tuple(banned)), text[0].tolist(), count)
    assert torch.equal(found, theirs.SuppressTokensLogitsProcessor(banned)(text, scores) if banned else scores)
    scores, found = changed(Constraints(first=first, banned_first=tuple(banned)), text[0].tolist(), count)
    if first is not None:
        scores = theirs.ForcedBOSTokenLogitsProcessor(first)(text, scores)
    if banned:
        scores = theirs.SuppressTokensAtBeginLogitsProcessor(banned, 1 if first is None else 2)(text, scores)
    assert torch.equal(found, scores)


@given(text=texts, fill=st.integers(0, 5), size=st.integers(1, 4))
def test_what_fills_a_prompt_up_is_no_piece_of_it(text: list[int], fill: int, size: int):
    constraints = Constraints(no_repeat=size, phrases=((1, 2), (3,) * size))
    plain = changed(constraints, text, 1)[1]
    assert torch.equal(changed(constraints, [NO_PIECE] * fill + text, 1)[1], plain)


def test_the_rest_may_get_what_is_banned():
    scores, found = changed(Constraints(banned=(6, 1), renormalised=True), [1], 0)
    assert torch.isclose(found.exp().sum(), torch.tensor(1.0))
    kept = [0, 2, 3, 4, 5]
    torch.testing.assert_close(found[:, kept], scores[:, kept].log_softmax(1))


def test_a_rule_of_ones_own():
    def even(scores: torch.Tensor, text: torch.Tensor, count: int) -> torch.Tensor:
        return scores.masked_fill(torch.arange(V) % 2 == (text.shape[1] + count) % 2, -torch.inf)

    assert changed(Constraints(rule=even), [1, 2], 1)[1].isfinite().tolist() == [[True, False] * 3 + [True]]
    assert not Constraints() and Constraints(rule=even)
