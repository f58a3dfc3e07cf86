"""Composition with places, and words."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regard.inputs import word_indices, words
from regard.inputs.alignment import compose
from tests.models.small_translator import small_tokenizer

marks = st.sampled_from("\u0301\u0323\u0344\u0308\u1161\u11a8\u09be\u09d7\u200d\ufe0f")
starters = st.sampled_from("aeo \u1112한\u09c7é\u212b👩!.1_")
texts = st.text(st.one_of(marks, starters, st.characters(exclude_categories=["Cs"])), max_size=20)


@given(text=texts)
@example(text="\u0301")
@example(text="\u1112\u1161\u11ab\u11a8")
def test_compose_is_nfc_with_places(text: str):
    composed, spans = compose(text)
    assert composed == unicodedata.normalize("NFC", text)
    assert len(spans) == len(composed)
    for (first, stop), character in zip(spans, composed, strict=True):
        assert character in unicodedata.normalize("NFC", text[first:stop])
    assert {i for span in spans for i in range(*span)} == set(range(len(text)))


def test_compose_takes_linear_time():
    text = "e" + "\u0301" * 50_000 + "a"
    composed, spans = compose(text)
    assert composed.endswith("a")
    assert spans[-1] == (len(text) - 1, len(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("A man, 2 dogs.", ["A", "man", ",", "2", "dogs", "."]),
        ("don't T-Shirt", ["don", "'", "t", "T", "-", "Shirt"]),
        ("„Größe“…", ["„", "Größe", "“", "…"]),
        ("e\u0301te\u0301 A4", ["e\u0301te\u0301", "A4"]),
        ("👩‍👩‍👧👍🏽 ❤️!", ["👩‍👩‍👧", "👍🏽", "❤️", "!"]),
        ("a_b\tc\nd", ["a", "_", "b", "c", "d"]),
        ("हिन्दी", ["हिन्दी"]),
    ],
)
def test_words(text: str, expected: list[str]):
    assert [text[first:stop] for first, stop in words(text)] == expected


@given(text=texts)
def test_words_are_all_but_white_space(text: str):
    spans = words(text)
    inside = [i for first, stop in spans for i in range(first, stop)]
    assert inside == sorted(set(inside))
    assert all(text[i].isspace() for i in set(range(len(text))) - set(inside))


def test_pieces_belong_to_words():
    text = "The doghouse  opens."
    elements = small_tokenizer().encode(text).elements
    spans = words(text)
    for element, word in zip(elements, word_indices(elements, spans), strict=True):
        if element.label in ("␣", "</s>"):
            assert word == -1
        else:
            assert spans[word][0] <= element.span[0] < element.span[1] <= spans[word][1]
