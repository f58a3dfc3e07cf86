"""What the positions of a sequence stand for: pieces of a text, patches of an image, frames of a recording."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Box:
    """A rectangle of an image, in pixels of the image as it was read: x to the right, y downwards."""

    left: float
    top: float
    right: float  # the first column that is no longer in it
    bottom: float  # the first row that is no longer in it


@dataclass(frozen=True)
class Seconds:
    """A stretch of a recording, in seconds from its beginning."""

    first: float
    stop: float


@dataclass(frozen=True)
class Band:
    """A rectangle of a spectrogram."""

    seconds: Seconds
    mel: tuple[int, int]  # the first mel bin, from 0 at the lowest frequency, and the first that is no longer in it


@dataclass(frozen=True)
class Tubelet:
    """A rectangle of some frames of a video."""

    frames: tuple[int, ...]  # their numbers in the video, from 0
    seconds: Seconds  # from the beginning of the first of them to the end of the last
    box: Box  # in pixels of a frame


Span = tuple[int, int] | Box | Seconds | Band | Tubelet
"""Where an element lies: characters of a text (first, stop), a box of an image, seconds of a sound, a band of its
spectrogram, or a tubelet of a video."""


@dataclass(frozen=True)
class Element:
    """One position of a sequence, as a person would point at it."""

    index: int  # position in the sequence
    label: str  # how it is written in a view
    modality: str = "text"
    span: Span | None = None  # None for what stands for no part of the input: a special piece, padding


def span_data(span: Span | None) -> Any:
    """A span as JSON has it, None for none.

    Characters are [first, stop]; the others are objects of lists: {"box": [left, top, right, bottom]}, {"seconds":
    [first, stop]}, for a band {"seconds": [...], "mel": [first, stop]}, and for a tubelet {"frames": [...], "seconds":
    [...], "box": [...]}.
    """
    match span:
        case Box():
            return {"box": [*asdict(span).values()]}
        case Seconds():
            return {"seconds": [*asdict(span).values()]}
        case Band(seconds, mel):
            return {**span_data(seconds), "mel": [*mel]}
        case Tubelet(frames, seconds, box):
            return {"frames": [*frames], **span_data(seconds), **span_data(box)}
        case None:
            return None
        case characters:
            return [*characters]


def span_of(data: Any) -> Span | None:
    """The span that `span_data` made this of.

    Raises:
        ValueError: it made it of none.
    """
    match data:
        case None:
            return None
        case [first, stop]:
            return first, stop
        case {"frames": frames, "seconds": seconds, "box": box}:
            return Tubelet(tuple(frames), Seconds(*seconds), Box(*box))
        case {"seconds": seconds, "mel": [first, stop]}:
            return Band(Seconds(*seconds), (first, stop))
        case {"seconds": seconds}:
            return Seconds(*seconds)
        case {"box": box}:
            return Box(*box)
        case _:
            raise ValueError(f"span is {data!r}; it may be None, [first, stop], or an object of a box or of seconds")
