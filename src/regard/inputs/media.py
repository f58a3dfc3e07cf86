"""Recordings: opening what FFmpeg reads, and decoding one of its streams."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from regard.inputs.source import MOST_PIXELS, InputError, Source, name_of, opened, reading

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame


@contextmanager
def recording(source: Source) -> Generator[InputContainer]:
    """A recording, opened by what is in it.

    A playlist is refused: a file that is given to be read may not have others read, here or in the network.

    Raises:
        InputError: the file cannot be opened, or FFmpeg knows no format like it.
    """
    import av

    with opened(source) as file:
        with reading(source, "is neither audio nor video that can be read"):
            container = av.open(file, "r", container_options={"protocol_whitelist": "none"}, metadata_errors="replace")
        with container:
            yield container


def stream_of(container: InputContainer, kind: Literal["audio", "video"]) -> Stream | None:
    """The first stream of this kind that is no picture of a cover; None where there is none."""
    from av.stream import Disposition

    for stream in container.streams:
        if stream.type == kind and not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def decoded(
    source: Source, kind: Literal["audio", "video"], container: InputContainer
) -> Iterator[AudioFrame | VideoFrame]:
    """The frames of the first audio or video stream, one at a time.

    Raises:
        InputError: there is no such stream, its data is damaged, or its frames have too many pixels.
    """
    stream = stream_of(container, kind)
    if stream is None:
        raise InputError(f"{name_of(source)} has no {kind} in it")
    if kind == "video":
        with reading(source, "cannot be decoded"):
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            stream.thread_type = "AUTO"  # pyright: ignore[reportAttributeAccessIssue]
    frames = container.decode(stream)
    count = 0
    while True:
        with reading(source, f"is damaged after {count} frames"):
            frame = next(frames, None)
        if frame is None:
            return
        count += 1
        yield frame  # pyright: ignore[reportReturnType]
