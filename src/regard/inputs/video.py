"""Videos: any file that FFmpeg reads → frames sampled evenly → resized, cropped, normalised; and tubelets as elements.

T | frames that are chosen    H, W | height and width in pixels    the original | a frame, turned upright
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from regard.elements import Element, Seconds, Tubelet
from regard.inputs.image import ImageSettings, image_tensor, patch_boxes
from regard.inputs.media import decoded, recording, stream_of
from regard.inputs.source import InputError, Source, name_of, reading

if TYPE_CHECKING:
    import numpy
    from av.video.frame import VideoFrame
    from PIL.Image import Image

_T = TypeVar("_T")


@dataclass(frozen=True)
class Frame:
    """A frame of a video."""

    index: int  # its number in the video, from 0
    seconds: Seconds  # while it is seen; 0 is the beginning of the first frame
    image: Image  # RGB, upright


@dataclass(frozen=True)
class Video:
    """Frames of a video as a model takes them, and where they are from."""

    pixels: Tensor  # (T, 3, H, W) float32
    frames: tuple[int, ...]  # T numbers of frames in the video, from 0
    seconds: tuple[Seconds, ...]  # T times at which they are seen
    height: int  # of the original
    width: int


def frame_indices(total: int, count: int, step: int | None = None) -> list[int]:
    """Which frames of a video are taken: a rule without chance, so that a file always gives the same ones.

    Args:
        total: frames that the video has.
        count: frames that are wanted; of a video with fewer, some are taken several times.
        step: None takes the middle frame of each of `count` parts of the whole video, all equally long: number
            ⌊(2i + 1) · total / (2 · count)⌋. A step takes frames that are so far from one to the next, the clip that a
            VideoMAE was trained on (arXiv 2203.12602: 16 frames, a step of 4 on Kinetics), from the middle of the
            video; where the video is shorter than the clip, its last frame is repeated.

    Raises:
        ValueError: one of them is not positive.
    """
    if min(total, count, 1 if step is None else step) < 1:
        raise ValueError(f"total is {total}, count {count} and step {step}: they must be positive")
    if step is None:
        return [(2 * i + 1) * total // (2 * count) for i in range(count)]
    first = max(0, (total - (count - 1) * step - 1) // 2)
    return [min(first + i * step, total - 1) for i in range(count)]


def read_frames(source: Source, count: int, *, step: int | None = None) -> list[Frame]:
    """Frames of a video, chosen by `frame_indices`, as images: what a person is shown.

    The file is decoded once, from its beginning, and only the chosen frames are kept.

    Args:
        source: a file with video in it that FFmpeg reads, or its bytes; of several video streams the first.
        count: how many frames.
        step: see `frame_indices`.

    Raises:
        InputError: the file cannot be read, has no video or no frame in it, or is damaged.
        ValueError: count or step is not positive.
    """
    return _chosen(source, count, step, lambda frame: frame)


def read_video(source: Source, settings: ImageSettings, count: int = 16, *, step: int | None = None) -> Video:
    """A video as a model takes it: frames chosen by `frame_indices`, each preprocessed as an image.

    Args:
        source: whatever `read_frames` takes.
        settings: what the model was trained with, of a VideoMAEImageProcessor for example.
        count: how many frames, T.
        step: see `frame_indices`.

    Raises:
        InputError: as `read_frames`, or the frames change their size.
        ValueError: count or step is not positive.
    """

    sizes: set[tuple[int, int]] = set()

    def prepared(frame: Frame) -> tuple[int, Seconds, Tensor]:
        sizes.add(frame.image.size)
        if len(sizes) > 1:
            forms = " and ".join(f"{w} × {h}" for w, h in sorted(sizes))
            raise InputError(f"{name_of(source)} changes its size: it has frames of {forms} pixels")
        return frame.index, frame.seconds, image_tensor(frame.image, settings)

    numbers, seconds, pixels = zip(*_chosen(source, count, step, prepared), strict=True)
    [(width, height)] = sizes
    return Video(torch.stack(pixels), numbers, seconds, height, width)


def tubelet_elements(
    video: Video,
    settings: ImageSettings,
    grid: tuple[int, int],
    *,
    size: int = 2,
    patch: tuple[int, int] | None = None,
    before: tuple[str, ...] = (),
) -> list[Element]:
    """The positions of a VideoMAE: patches of `size` frames at once, in time, and then row by row.

    Args:
        video: what the model was given.
        settings: by which the frames became tensors.
        grid: rows and columns of patches.
        size: frames of a tubelet; divides T.
        patch: height and width of each, see `regard.inputs.image.patch_boxes`.
        before: labels of positions before the first tubelet; they have no span.

    Returns:
        Elements labelled "seconds row,column"; one that shows padding alone has no span.

    Raises:
        ValueError: size does not divide T.
    """
    T = len(video.frames)
    if size < 1 or T % size:
        raise ValueError(f"size is {size}: it must divide the {T} frames")
    elements = [Element(i, label, "video") for i, label in enumerate(before)]
    boxes = patch_boxes(video.height, video.width, settings, grid, patch)
    for t in range(0, T, size):
        frames = video.frames[t : t + size]
        seconds = Seconds(video.seconds[t].first, video.seconds[t + size - 1].stop)
        for i, box in enumerate(boxes):
            label = f"{seconds.first:.2f} s {i // grid[1]},{i % grid[1]}"
            span = None if box is None else Tubelet(frames, seconds, box)
            elements.append(Element(len(elements), label, "video", span))
    return elements


def _chosen(source: Source, count: int, step: int | None, make: Callable[[Frame], _T]) -> list[_T]:
    """What `make` makes of each of the chosen frames."""
    total = _stored_frames(source)
    # What is stored is nearly always what is decoded. Where it is less, the last frames are not there to be chosen,
    # and the file is read once more with the number that is now known.
    for _ in range(2):
        if total == 0:
            raise InputError(f"{name_of(source)} has no frame in its video")
        wanted = frame_indices(total, count, step)
        made, total = _made(source, wanted, make)
        if len(made) == count:
            return made
    raise InputError(f"{name_of(source)} gives other frames each time it is decoded")


def _stored_frames(source: Source) -> int:
    """How many frames a video says it has, without decoding it."""
    with recording(source) as container:
        stream = stream_of(container, "video")
        if stream is None:
            raise InputError(f"{name_of(source)} has no video in it")
        with reading(source, "is damaged"):
            return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)


def _made(source: Source, wanted: list[int], make: Callable[[Frame], _T]) -> tuple[list[_T], int]:
    """What is made of frames with these numbers, in rising order, and how many were decoded for it."""
    made: list[_T] = []
    start, stop, count = None, 0.0, 0
    with recording(source) as container, closing(decoded(source, "video", container)) as frames:  # pyright: ignore
        rate = getattr(stream_of(container, "video"), "average_rate", None)
        period = 1 / float(rate) if rate else 0.04  # of a frame that does not say itself how long it is seen
        for frame in frames:
            base = float(frame.time_base or 0)
            first = stop if frame.pts is None or not base else frame.pts * base
            stop = first + (frame.duration * base or period)
            start = first if start is None else start
            if count == wanted[len(made)]:
                image = _upright(frame, source)  # pyright: ignore[reportArgumentType]
                result = make(Frame(count, Seconds(first - start, stop - start), image))
                made += [result] * wanted.count(count)
            count += 1
            if len(made) == len(wanted):
                break
    return made, count


def _upright(frame: VideoFrame, source: Source) -> Image:
    """A frame as RGB, turned as its display matrix says."""
    import numpy
    from PIL import Image

    with reading(source, f"has a frame of {frame.width} × {frame.height} pixels that is no picture"):
        pixels: numpy.ndarray[Any, Any] = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    return Image.fromarray(numpy.ascontiguousarray(numpy.rot90(pixels, turns)))
