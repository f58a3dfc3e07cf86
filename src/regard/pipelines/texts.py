"""What the pipelines of texts share: errors, and the sequence that the pieces of a text make."""

from __future__ import annotations

from collections.abc import Sequence

from regard.elements import Element
from regard.inputs import word_indices, words
from regard.relations import Sequence as ElementSequence


class RequestError(ValueError):
    """A text that a pipeline cannot read, or a setting that it has not: one line that says what and why."""


class TextTooLong(ValueError):
    """A text has more pieces than the model has positions."""


def name_of(names: Sequence[str] | None, i: int, count: int) -> str:
    """What messages call text i of so many."""
    if names is not None:
        return names[i]
    return "text" if count == 1 else f"text {i + 1} of {count}"


def text_sequence(
    name: str, title: str, text: str, elements: Sequence[Element], writes: Sequence[str] = ()
) -> ElementSequence:
    """The sequence of the pieces of a text, with its words.

    Args:
        name: how sites refer to it.
        title: what a person calls it.
        text: the whole of it.
        elements: its pieces; spans are characters of the text.
        writes: for a decoder, what each position writes.
    """
    spans = words(text)
    return ElementSequence(
        name,
        title,
        tuple(elements),
        text=text,
        words=tuple(Element(i, text[first:stop], span=(first, stop)) for i, (first, stop) in enumerate(spans)),
        word_of=tuple(word_indices(elements, spans)),
        writes=tuple(writes),
    )
