"""Places in a text: characters before and after Unicode's canonical composition (NFC), and words."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence

from regard.elements import Element

Span = tuple[int, int]
"""(first, stop) characters of a text."""

_JOINER = "\u200d"  # makes one emoji of its two neighbours
_SKIN_TONES = range(0x1F3FB, 0x1F400)


def compose(text: str) -> tuple[str, list[Span]]:
    """The composed form of a text, and the characters of the original that each of its characters stands for.

    >>> compose("e\\u0301a")
    ('éa', [(0, 2), (2, 3)])
    """
    if unicodedata.is_normalized("NFC", text):
        return text, [(i, i + 1) for i in range(len(text))]
    parts: list[str] = []
    spans: list[Span] = []
    first = 0
    while first < len(text):
        stop = _end_of_group(text, first)
        part = unicodedata.normalize("NFC", text[first:stop])
        parts.append(part)
        if part == text[first:stop]:
            spans += [(i, i + 1) for i in range(first, stop)]
        else:
            spans += [(first, stop)] * len(part)
        first = stop
    return "".join(parts), spans


def _end_of_group(text: str, first: int) -> int:
    """Where the shortest run from `first` on ends that nothing after it can change by composition."""
    stop = first + 1
    while stop < len(text):
        if not unicodedata.combining(unicodedata.normalize("NFD", text[stop])[0]):
            apart = unicodedata.normalize("NFC", text[first:stop]) + unicodedata.normalize("NFC", text[stop])
            if unicodedata.normalize("NFC", text[first : stop + 1]) == apart:
                break
        stop += 1
    return stop


def words(text: str) -> list[Span]:
    """Where the words of a text are: letters and digits together, every other mark by itself, no white space.

    Combining marks, variation selectors, skin tones and joined emoji belong to the character before them.

    >>> words("Don't, 2 dogs!")
    [(0, 3), (3, 4), (4, 5), (5, 6), (7, 8), (9, 13), (13, 14)]
    """
    spans: list[Span] = []
    within = False  # whether the last word is of letters and digits, and goes on here
    for i, character in enumerate(text):
        letter = unicodedata.category(character)[0] in "LN"
        attached = bool(spans) and spans[-1][1] == i and _extends(text, i)
        if attached or (letter and within):
            spans[-1] = spans[-1][0], i + 1
        elif character.isspace():
            within = False
        else:
            spans.append((i, i + 1))
            within = letter
    return spans


def _extends(text: str, i: int) -> bool:
    """Whether character i only changes or continues the one before it."""
    character = text[i]
    return (
        unicodedata.category(character)[0] == "M"
        or character == _JOINER
        or ord(character) in _SKIN_TONES
        or text[i - 1] == _JOINER
    ) and not character.isspace()


def word_indices(elements: Sequence[Element], spans: Sequence[Span]) -> list[int]:
    """The word that each element is a piece of, by its first character; −1 for a special piece or white space.

    Args:
        elements: with spans in the same text.
        spans: of the words, in order and apart, as from `words`.
    """
    starts = [first for first, _ in spans]
    indices: list[int] = []
    for element in elements:
        word = -1
        if isinstance(element.span, tuple) and element.span[0] < element.span[1]:
            before = bisect_right(starts, element.span[0]) - 1
            if before >= 0 and element.span[0] < spans[before][1]:
                word = before
        indices.append(word)
    return indices
