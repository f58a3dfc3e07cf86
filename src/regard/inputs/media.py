"""Recordings: opening what FFmpeg reads, and decoding one of its streams."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from regard.inputs.source import MOST_PIXELS, InputError, Source, name_of, opened, reading

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame


class _Nameless:
    """A file without its name, which FFmpeg would believe: a video called .png would be an image."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


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
            options = {"protocol_whitelist": "none"}
            container = av.open(_Nameless(file), "r", container_options=options, metadata_errors="replace")
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
        context = cast("VideoCodecContext", stream.codec_context)
        if context.width * context.height > MOST_PIXELS:
            size = f"{context.width} × {context.height}"
            raise InputError(f"{name_of(source)} has frames of {size} pixels: more than {MOST_PIXELS} are refused")
        with reading(source, "cannot be decoded"):
            context.options = {"max_pixels": str(MOST_PIXELS)}  # for what turns up later
            context.thread_type = "AUTO"
    frames = container.decode(stream)
    count = 0
    while True:
        with reading(source, f"is damaged after {count} frames"):
            frame = next(frames, None)
        if frame is None:
            return
        count += 1
        yield frame  # pyright: ignore[reportReturnType]
