"""What the positions of a sequence stand for: pieces of a text, patches of an image, frames of a recording."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Element:
    """One position of a sequence, as a person would point at it."""

    index: int  # position in the sequence
    label: str  # how it is written in a view
    modality: str = "text"
    span: tuple[int, int] | None = None  # (first, stop) characters of the text; None for a special piece
