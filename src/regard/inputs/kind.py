"""What a file is: text, image, audio or video."""

from __future__ import annotations

import codecs
import os
from typing import BinaryIO, Literal

from regard.inputs.media import recording, stream_of
from regard.inputs.source import InputError, name_of, opened

Kind = Literal["text", "image", "audio", "video"]

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "text": (".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".log", ".srt"),
    "image": (
        ".png", ".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".ico",
        ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".psd", ".qoi",
    ),
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".oga", ".m4a", ".opus", ".aac", ".wma", ".aif", ".aiff", ".amr"),
    "video": (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv"),
}  # fmt: skip
"""What a name promises; it decides only where the content says nothing."""

_HEAD = 65_536  # bytes by which text is told
_CONTROLS = {*range(32), 127} - set(b"\t\n\v\f\r\b\x1b")
_WRITTEN_IMAGES = (".pbm", ".pgm", ".ppm", ".pnm", ".xbm", ".xpm")  # in letters: their names decide
# What Pillow only knows the name of, and what it takes nearly everything for.
_NO_IMAGES, _DOUBTFUL = {"BUFR", "GRIB", "HDF5", "MPEG"}, {"IM", "IMT", "IPTC", "PCD", "SPIDER", "TGA"}
_MOVING = {"GIF", "PNG"}


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """What kind of file this is: by what is in it, and where that does not say, by its suffix.

    UTF-8 without control characters is text, whatever its name; what Pillow or FFmpeg knows is image, audio or video.
    A GIF or PNG that moves is video; a recording whose only picture is its cover is audio. A file may be of a kind
    and still be damaged.

    Raises:
        InputError: there is no such file, it is empty, or it is neither text, image, audio nor video.
    """
    name = name_of(path)
    suffix = os.path.splitext(name)[1].lower()
    with opened(path) as file:
        head = file.read(_HEAD)
        if _is_text(head, whole=len(head) < _HEAD):
            return "image" if suffix in _WRITTEN_IMAGES else "text"
        image, sure = _image(file)
    found = image if sure else _recorded(path) or image
    if found is not None:
        return found
    for kind, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return kind
    raise InputError(f"{name} is neither text (UTF-8), image, audio nor video")


def _is_text(head: bytes, *, whole: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        return False
    return _CONTROLS.isdisjoint(head)


def _image(file: BinaryIO) -> tuple[Kind | None, bool]:
    """Whether Pillow knows this file, as an image or a moving one, and whether that is certain."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.format in _NO_IMAGES:
                return None, False
            moves = image.format in _MOVING and getattr(image, "is_animated", False)
            return "video" if moves else "image", image.format not in _DOUBTFUL
    except Image.UnidentifiedImageError:
        return None, False
    except Exception:  # damaged: Pillow raises nearly everything; it knew the format before, and `read_image` will say
        return "image", False


def _recorded(path: str | os.PathLike[str]) -> Kind | None:
    """What FFmpeg finds: video, audio, an image in a format of its own, or none of them."""
    try:
        with recording(path) as container:
            if stream_of(container, "video") is not None:
                still = container.format.name.endswith("_pipe") or container.format.name == "image2"
                return "image" if still else "video"
            return "audio" if stream_of(container, "audio") is not None else None
    except InputError:
        return None
