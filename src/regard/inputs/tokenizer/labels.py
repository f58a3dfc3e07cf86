"""What a piece of a text is called, and where in the text it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from regard.elements import Element
from regard.inputs.alignment import Span
from regard.inputs.tokenizer.stream import bytes_of

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def element_of(index: int, piece: str, text: str, span: Span, *, byte_level: bool, label: str | None) -> Element:
    """The element of a piece of a text.

    Args:
        index: its position in the sequence.
        piece: how the vocabulary writes it.
        text: the original.
        span: its characters there, white space around it included.
        byte_level: whether the vocabulary writes pieces in bytes.
        label: what to call it; without one it is called by its characters, or by its bytes if it is only a part of
            one.
    """
    first, stop = trimmed(text, span)
    return Element(index, label or _label(piece, text[first:stop], byte_level=byte_level), span=(first, stop))


def trimmed(text: str, span: Span) -> Span:
    """The span without white space at its ends; the span itself where there is nothing else in it."""
    first, stop = span
    inside = text[first:stop]
    if not inside.strip():
        return span
    return first + len(inside) - len(inside.lstrip()), stop - len(inside) + len(inside.rstrip())


def places(parts: Sequence[str | None], within: Sequence[bool], size: int) -> list[Span | None]:
    """Where each piece is in a text that came out of a stream.

    Args:
        parts: what the stream gave out after each piece, None for one that was left out; pieces after which it gave
            out nothing share what came next.
        within: whether a piece ended inside a character, which is then its last one.
        size: characters of the whole text.
    """
    spans: list[Span | None] = [None] * len(parts)
    first = 0
    waiting: list[int] = []
    for index, part in enumerate(parts):
        if part is None:
            continue
        waiting.append(index)
        stop = first + len(part)
        if part or within[index]:
            for i in waiting:
                spans[i] = (first, min(stop + within[index], size))
            waiting.clear()
        first = stop
    for i in waiting:
        spans[i] = (first, size)
    return spans


def _label(piece: str, characters: str, *, byte_level: bool) -> str:
    single = _BYTE.fullmatch(piece)
    if single:
        return characters if len(characters.encode()) == 1 else f"<{single[1].upper()}>"
    if byte_level:
        data = bytes_of(piece)
        try:
            data.decode()
        except UnicodeDecodeError:
            return f"<{data.lstrip(b' ').hex(' ').upper()}>"
    if not piece.strip(_SPACE) and characters.strip(_SPACE):
        return "␣"  # the space before a word, which has the place of its first character
    return "␣" if not characters or characters.isspace() else characters
